"""What `simulate` keeps in its run directory: the run's identity and one row per round."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax.federated.aggregate import Aggregation
from wsa_jax.federated.alignment import ScopeForm, WeightScopeAlignment
from wsa_jax.federated.diagnostics import RoundInfo
from wsa_jax.federated.local_leaves import kept_leaves
from wsa_jax.federated.local_settings import LocalSettings
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.train_clients import RoundPlan
from wsa_jax.runs.described import described, task_settings
from wsa_jax.runs.identity import digest, run_identity
from wsa_jax.scope.scope import WeightScope
from wsa_jax.types import Json


def simulation_identity(
    key: Array,
    plan: RoundPlan,
    initial: tuple[PyTree, PyTree],
    partition: Partition,
    wsa: WeightScopeAlignment | None,
    target: WeightScope,
    sets: Json,
) -> Json:
    """Return what must be the same for a run to be resumed; numbers per round are in its rows."""
    form, test = plan.scope_form, sets.get("test")
    parts = {
        "initial parameters": digest(*jax.tree.leaves(initial[0])),
        "initial model_state": digest(*jax.tree.leaves(initial[1])),
        "algorithm": [plan.algorithm.name, dict(plan.algorithm.settings)],
        "participants": plan.participants,
        "local": _local(plan.local),
        "aggregation": _aggregation(plan.aggregation),
        "form": None if form is None else _form(form),
        "layers": list(target.names),
        "target": None if wsa is None else _target(wsa),
        "data": digest(partition.indices, partition.sizes, *jax.tree.leaves(sets["train"])),
        "test": None if test is None else digest(*jax.tree.leaves(test)),
    }
    if plan.keep_local is not None:
        kept = [kept_leaves(tree, plan.keep_local) for tree in initial]
        parts["keep_local"] = [name for names in kept for name in names]
    if sets.get("test_partition") is not None:
        own = sets["test_partition"]
        parts["test_partition"] = digest(own.indices, own.sizes)
    if sets.get("evidence") is not None:
        parts["evidence"] = digest(*jax.tree.leaves(sets["evidence"]))
    return run_identity("simulate", key, task_settings(plan.task), parts)


def _form(form: ScopeForm) -> list[str]:
    # Runs from before there was a choice of fusions or directions do not say theirs, and resume.
    said: list[str] = [form.form, form.scale]
    said += [form.fusion] if form.fusion != ScopeForm.fusion else []
    return said + ([form.direction] if form.direction != ScopeForm.direction else [])


def _target(wsa: WeightScopeAlignment) -> Any:
    """Plain values that tell targets apart."""

    def moments(scope: WeightScope) -> list[list[float]]:
        return [np.asarray(scope.mean).tolist(), np.asarray(scope.std).tolist()]

    if isinstance(wsa.target, WeightScope):
        return moments(wsa.target)
    return wsa.target if wsa.start is None else ["fused from", *moments(wsa.start)]


def _local(local: LocalSettings) -> Json:
    """Fields of local settings. Runs from before there was a choice do not say what is usual."""
    fields: Json = dataclasses.asdict(local)
    optimizer, epochs = fields.pop("optimizer"), fields.pop("epochs")
    own = {} if optimizer is None else {"optimizer": described(optimizer)}
    return fields | own | ({} if epochs is None else {"epochs": epochs})


def _aggregation(aggregation: Aggregation) -> Json:
    fields: Json = dataclasses.asdict(aggregation)
    if aggregation.rule not in ("krum", "multi_krum"):
        del fields["faulty"]  # runs from before there was Krum have none
    if callable(aggregation.rule):
        fields["rule"] = described(aggregation.rule)
    return fields


def other_schedules(rates: np.ndarray, strengths: np.ndarray, rows: list[Json]) -> str | None:
    """Return where rounds were run with other numbers than these schedules give, if they were."""
    for i, row in enumerate(rows):
        for name, values in (("learning_rate", rates), ("strength", strengths)):
            if not np.isclose(row[name], values[i], rtol=1e-6):
                return f"{name} {row[name]} in round {i + 1}, but this one has {values[i]}"
    return None


def round_row(
    index: int,
    info: RoundInfo,
    rate: float,
    strength: float,
    seconds: float,
    client_scopes: bool = False,
) -> Json:
    """Return the row of ``metrics.jsonl`` of one round: plain numbers, None for NaN and infinity.

    Means over clients are over those that were accepted. The keys are:

    ==================== ===========================================================================
    round                counted from 1: ``i + 1`` for the round index i that schedules see
    learning_rate        learning rate of the local steps
    strength             strength of WSA, 0 without it
    train_loss           mean over clients and their local steps
    dropped              participants left out because they sent NaN, infinity or huge updates
    refused              1 if the round changed nothing, as its result was not finite, else 0
    update_norm          mean over clients of the norms of their updates
    mean_update_norm     norm of the aggregated update
    layers               names, in the order of all lists below
    client_divergence    mean KL between two participants, nats, by layer
    target_divergence    mean KL of a participant from its target, nats, by layer
    client_mean          mean over clients of their layers' means, by layer
    client_std           mean over clients of their layers' stds, by layer
    average_std          std of the averaged model, by layer
    fused_std            std of the fused scope (Eq. 4), by layer
    stability            largest share of the explicit step's stable range in use; 0 without WSA
    seconds              wall time, averaged over the rounds since rows were last written
    ended_by             ``"on_round"`` in the row after which the callback ended the run
    client_scopes        if requested: ``mean`` and ``std``, ``[participants][layers]``
    ==================== ===========================================================================
    """
    accepted = np.asarray(info.accepted)

    def numbers(values: Any) -> list[float | None]:
        return [json_number(value) for value in np.asarray(values)]

    def mean(values: Any) -> Any:
        kept = np.asarray(values)[accepted]
        return kept.mean(axis=0) if accepted.any() else np.full(kept.shape[1:], np.nan)

    # Plain numbers alone, so that any reader of JSON lines can take them.
    row: Json = {
        "round": index + 1,
        "learning_rate": float(rate),
        "strength": float(strength),
        "train_loss": json_number(mean(info.loss)),
        "dropped": int(info.dropped),
        "refused": int(info.refused),
        "update_norm": json_number(mean(info.update_norm)),
        "mean_update_norm": json_number(info.mean_update_norm),
        "layers": list(info.average.names),
        "client_divergence": numbers(info.client_divergence),
        "target_divergence": numbers(info.target_divergence),
        "client_mean": numbers(mean(info.clients.mean)),
        "client_std": numbers(mean(info.clients.std)),
        "average_std": numbers(info.average.std),
        "fused_std": numbers(info.fused.std),
        "stability": json_number(info.stability.max()),
        "seconds": round(seconds, 4),
    }
    if client_scopes:
        row["client_scopes"] = {
            "mean": [numbers(values) for values in np.asarray(info.clients.mean)],
            "std": [numbers(values) for values in np.asarray(info.clients.std)],
        }
    return row


def json_number(value: Any) -> float | None:
    """Return a number for JSON, None for NaN and infinity, which JSON lacks.

    >>> json_number(np.float32(0.5)), json_number(float("nan"))
    (0.5, None)
    """
    number = float(value)
    return number if np.isfinite(number) else None
