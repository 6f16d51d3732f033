"""How hard two models are to merge, and why: scopes, units and barriers in one report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Key, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.aligns import activations_of, align_models
from wsa_jax.merging.evaluate.barrier_interval import barrier_interval, path_losses
from wsa_jax.merging.evaluate.unit_similarity import unit_moments
from wsa_jax.merging.evidence import Evidence, Model, apply_of
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.plots import PALETTE
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.scope.scope import fuse_scopes, scope_divergence, weight_scope
from wsa_jax.training.checks import check_data, check_evaluable
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs, Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SEED = 0  # of the resamples, the same for all barriers


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What stands between two models and their merge.

    Attributes:
      layers: one row a layer: ``layer``, ``divergence`` (mean divergence of the two scopes from
        their fused one, nats), ``std`` of both.
      groups: one row a group of units: ``group``, ``units``, ``cka``, ``dead`` (share of units that
        are constant on the data, in either model), and ``correlation``, the mean correlation of
        units of equal number by the align that put them there.
      barriers: one row an align: ``align``, ``barrier`` (loss, Eq. 7), ``low`` and ``high``, a 95 %
        bootstrap interval over the examples.
      findings: what the numbers say, most important first, in plain words.
    """

    layers: list[Json]
    groups: list[Json]
    barriers: list[Json]
    findings: list[str]

    def json(self) -> Json:
        """The report as plain values for ``json.dump``; what is undefined is None."""
        return {
            "layers": _plain(self.layers),
            "groups": _plain(self.groups),
            "barriers": _plain(self.barriers),
            "findings": list(self.findings),
        }

    def table(self) -> str:
        """The report as Markdown: barriers, units, layers, then what they say."""
        aligns = [row["align"] for row in self.barriers]
        # From the whole to the part: a reader whose barriers are low may stop at the first table.
        parts = [
            _markdown(
                ["align", "loss barrier", "at least (95 %)", "at most (95 %)"],
                [
                    [
                        row["align"],
                        f"{row['barrier']:.3f}",
                        f"{row['low']:.3f} to {row['high']:.3f}",
                    ]
                    for row in self.barriers
                ],
            ),
            _markdown(
                ["units of", "number", "CKA", "dead", *(f"correlation, {a}" for a in aligns)],
                [
                    [row["group"], str(row["units"]), f"{row['cka']:.2f}", f"{row['dead']:.0%}"]
                    + [f"{row['correlation'][align]:.2f}" for align in aligns]
                    for row in self.groups
                ],
            ),
            _markdown(
                ["layer", "scope divergence (nats)", "stds"],
                [
                    [row["layer"], f"{row['divergence']:.2g}", " and ".join(_short(row["std"]))]
                    for row in self.layers
                ],
            ),
            "\n".join(f"- {finding}" for finding in self.findings),
        ]
        return "\n\n".join(parts)

    def figure(self) -> "Figure":
        """Three panels: barriers with intervals, correlations and CKA of units, scopes."""
        from matplotlib.figure import Figure

        rows = max(len(self.layers), len(self.groups), 3)
        figure = Figure(figsize=(12, 1.5 + 0.25 * rows), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        barriers = np.array([[row["barrier"], row["low"], row["high"]] for row in self.barriers])
        names = [row["align"] for row in self.barriers]
        spread = np.abs(barriers[:, 1:] - barriers[:, :1]).T
        left.barh(names, barriers[:, 0], xerr=spread, color=PALETTE[0], ecolor=PALETTE[5])
        left.set_xlabel("loss barrier, with 95 % interval")
        groups = [row["group"] for row in self.groups]
        for index, name in enumerate(names):
            values = [row["correlation"][name] for row in self.groups]
            middle.plot(values, groups, "o", color=PALETTE[index % len(PALETTE)], label=name)
        middle.plot([row["cka"] for row in self.groups], groups, "x", color="#555555", label="CKA")
        middle.set_xlabel("correlation of matched units")
        middle.legend(frameon=False, fontsize=8)
        layers = [row["layer"] for row in self.layers]
        right.barh(layers, [row["divergence"] for row in self.layers], color=PALETTE[1])
        right.set_xlabel("scope divergence from the fused scope (nats)")
        for axes in (left, middle, right):
            axes.invert_yaxis()
            axes.spines[["top", "right"]].set_visible(False)
        return figure


@door
def merge_report(
    task: Task,
    models: Sequence[Model],
    data: tuple[Inputs, Shaped[Array | np.ndarray, "examples ..."]],
    *,
    key: Key[Array, ""] | None = None,
    spec: AxisSpec | None = None,
    aligns: Sequence[str] = ("none", "weight", "activation"),
    select: Rule = kernels,
    calibration: Inputs | None = None,
    num_points: int = 9,
    resamples: int = 1000,
    batch_size: int = 500,
) -> MergeReport:
    """Measure how hard two models are to merge, layer by layer, and say why.

    Args:
      task: what the models were trained for; it must have logits.
      models: two models of one architecture.
      data: inputs and labels, held out from training: some hundreds to thousands.
      key: draws restarts of aligns; key 0 by default.
      spec: of ``models[0].variables``; traced by default.
      aligns: names of aligns, as in `align_models`; before the first one, ``"none"`` is compared.
      select: which leaves have a scope.
      calibration: training inputs, to estimate BatchNorm statistics at every point of a path.
      num_points: points of each path.
      resamples: resamples of the examples for the intervals.
      batch_size: examples at once.

    Guarantees: models are not changed; all aligns are measured on the same examples and resamples,
    and equal arguments give equal reports.

    Edge cases: groups whose activations lie inside loops only have no row (a warning names them).
    Correlations count units that live in both models.

    Raises:
      ValueError: not two models, models that differ in a leaf or hold NaN, no examples, labels that
        are not the task's, a task without logits, or an unknown align.

    >>> from wsa_jax.merging import Model, merge_report
    >>> from wsa_jax.training import classification_task
    >>> def apply(params, model_state, x, train, key):
    ...     return jax.nn.relu(x @ params["w"]) @ params["v"], model_state
    >>> task = classification_task(lambda key: ({}, {}), apply)
    >>> x = np.eye(4, dtype=np.float32)
    >>> one = {"w": 5 * x, "v": x}
    >>> two = {"w": 5 * x[:, ::-1], "v": x[::-1]}  # its units are in another order
    >>> report = merge_report(
    ...     task, [Model(one, {}), Model(two, {})], (x, np.arange(4)), aligns=["weight"],
    ...     select=lambda name, leaf: True, num_points=3, resamples=10,
    ... )
    >>> [(row["align"], round(row["barrier"], 2)) for row in report.barriers]
    [('none', 0.75), ('weight', 0.0)]
    >>> report.findings[0]
    'units do not correspond: "weight" lowers the barrier from 0.752 to 0.000; align first'

    Source: barriers, WSA Eq. 7; scopes, Eq. 3 and 4; CKA, Kornblith et al., ICML 2019.
    """
    if len(models) != 2:
        raise ValueError(f"merge_report compares two models, got {len(models)}; give a pair")
    for name, value in (("resamples", resamples), ("batch_size", batch_size)):
        checks.count(name, value)
    if num_points < 3:
        raise ValueError(f"num_points {num_points} is below 3; give both ends and a point between")
    checks.models([model.variables for model in models])
    check_evaluable(data[1], calibration, "the report")
    check_data(task, models[0].params, models[0].model_state, {"the report's data": data})
    inputs = data[0]
    if spec is None:
        few = jax.tree.map(lambda leaf: leaf[:2], inputs)
        spec = trace_spec(apply_of(task), models[0].variables, few)
    read = activations_of(spec, task)
    evidence = Evidence(task, inputs, data[1])
    names = list(dict.fromkeys(["none", *aligns]))
    key = jax.random.key(0) if key is None else key

    # Each align in turn, since their models are as large as the two that are given.
    barriers, moments = [], {}
    for name in names:
        first, second = align_models(key, spec, models, evidence, name)
        losses = path_losses(
            task,
            tuple(first),
            tuple(second),
            data,
            num_points=num_points,
            calibration=calibration,
            batch_size=batch_size,
        )
        found = barrier_interval(losses, resamples=resamples, seed=_SEED)
        barriers.append(
            {"align": name, "barrier": found.value, "low": found.low, "high": found.high}
        )
        moments[name] = unit_moments(read, first.variables, second.variables, inputs, batch_size)
    layers = _layers(models, select)
    groups = [
        _group(group, {name: moments[name][group] for name in names}) for group in moments["none"]
    ]
    return MergeReport(
        layers=layers,
        groups=groups,
        barriers=barriers,
        findings=_findings(layers, groups, barriers),
    )


def _layers(models: Sequence[Model], select: Rule) -> list[Json]:
    scopes = [weight_scope(model.params, select=select) for model in models]
    fused = fuse_scopes(scopes)
    divergences = np.mean([np.asarray(scope_divergence(scope, fused)) for scope in scopes], axis=0)
    stds = np.array([np.asarray(scope.std) for scope in scopes])
    return [
        {"layer": name, "divergence": float(divergence), "std": std.tolist()}
        for name, divergence, std in zip(fused.names, divergences, stds.T, strict=True)
    ]


def _group(name: str, moments: Json) -> Json:
    plain = moments["none"]
    return {
        "group": name,
        "units": len(plain.means[0]),
        "cka": plain.cka(),
        "dead": float(np.mean(np.concatenate(plain.dead()))),
        "correlation": {align: found.correlation() for align, found in moments.items()},
    }


def _findings(layers: list[Json], groups: list[Json], barriers: list[Json]) -> list[str]:
    """What the numbers say; thresholds are rules of thumb, and the numbers stand beside them."""
    plain, best = barriers[0], min(barriers, key=lambda row: row["barrier"])
    said = []
    # Verdicts on barriers compare intervals: a difference within them is told as none.
    if plain["low"] <= 1e-3:
        said.append(f"no barrier to be told from 0 ({plain['barrier']:.3f}): average as they are")
    elif best is not plain and best["high"] < plain["low"]:
        said.append(
            f'units do not correspond: "{best["align"]}" lowers the barrier from '
            f"{plain['barrier']:.3f} to {best['barrier']:.3f}; align first"
        )
    elif len(barriers) > 1:
        said.append(
            f"aligning does not help for certain ({plain['barrier']:.3f} before, "
            f"{best['barrier']:.3f} at best): repair activations or learn coefficients (NP Merge)"
        )
    # What an order of the units cannot mend comes after what it can.
    worst = max(layers, key=lambda row: row["divergence"])
    if worst["divergence"] > 0.1:
        said.append(
            f"scopes differ most in {worst['layer']} ({worst['divergence']:.2g} nats): rescale "
            "the models, or train them with weight scope alignment"
        )
    for row in groups:
        if row["dead"] > 0.1:
            said.append(
                f"{row['dead']:.0%} of the units of {row['group']} are dead: they match anything, "
                "and an average brings them back to life"
            )
    unlike = [row for row in groups if row["cka"] < 0.5]
    if unlike:
        least = min(unlike, key=lambda row: row["cka"])
        said.append(
            f"the models compute different features at {least['group']} (CKA {least['cka']:.2f}): "
            "no order of units makes them alike; wider models or more common data do"
        )
    return said


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(values: Sequence[float]) -> list[str]:
    return [f"{value:.3g}" for value in values]


def _plain(value: Any) -> Any:
    """Values that JSON has: NaN, which it has not, is None."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
