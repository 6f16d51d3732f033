"""What a table of methods is made of, checked before anything is merged."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import shown
from wsa_jax.merging.combine.own_heads import check_same_heads, head_of
from wsa_jax.merging.evidence import Evidence, Model, check_are_models, check_pair, rows_of
from wsa_jax.merging.mergers import common_heads
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.scope.layers import Rule
from wsa_jax.training.checks import check_data, check_inputs

Test = tuple[PyTree, Shaped[Array | np.ndarray, "..."]]
"""Inputs and labels to evaluate on."""


def evidences_of(given: Any, count: int, alone: bool) -> list[Evidence]:
    """One for each model: that of all, or the list of each model's own."""
    if isinstance(given, list) and not alone:
        raise ValueError(
            "evidence is a list, one for each model's head; give one Evidence, or heads='own'"
        )
    listed = _one_each(given, count, "evidence") if isinstance(given, list) else [given] * count
    for index, own in enumerate(listed):
        if not isinstance(own, Evidence):
            whose = f" of model {index + 1}" if isinstance(given, list) else ""
            raise ValueError(
                f"evidence{whose} is {shown(own)}; give Evidence(task, inputs, labels)"
            )
    return listed


def evaluation_sets(given: Any, count: int, alone: bool) -> list[Test]:
    """Likewise; a list of two may be a pair where it is no list of pairs."""
    several = alone and isinstance(given, list)
    listed = _one_each(given, count, "test") if several else [given] * count
    for index, own in enumerate(listed):
        check_pair(own, f"test of model {index + 1}" if several else "test")
    return [tuple(own) for own in listed]


def _one_each(given: list[Any], count: int, what: str) -> list[Any]:
    if len(given) != count:
        raise ValueError(
            f"{what} is a list of {len(given)} for {count} models; give one for each, or one for "
            "all, not in a list"
        )
    return given


def check_table(
    models: Sequence[Any],
    spec: AxisSpec,
    evidences: Sequence[Evidence],
    tests: Sequence[Any],
    alone: bool,
) -> Rule | None:
    """Check all arguments; return the rule of the heads where they are to be kept."""
    if len(models) < 2:
        raise ValueError(f"{len(models)} model to merge; give at least two")
    check_are_models(models, "merge_table")
    _check_spec(spec, models[0])
    rule = common_heads(spec, models) if alone else None
    if alone:
        _check_tasks(models, evidences)
    else:
        check_same_heads([model.variables for model in models], head_of(spec))
        checks.models([model.variables for model in models])
    # One check for each pair of a model and its data; without own heads they are all the same.
    for index in range(len(models) if alone else 1):
        of = f" of model {index + 1}" if alone else ""
        _check_examples(models[index], evidences[index], tests[index], of)
    return rule


def _check_tasks(models: Sequence[Model], evidences: Sequence[Evidence]) -> None:
    """Raise a ValueError where one task is to do for heads of several shapes."""
    shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(model.params)] for model in models]
    for index, (own, evidence) in enumerate(zip(shapes, evidences, strict=True)):
        if own != shapes[0] and evidence is evidences[0]:
            raise ValueError(
                f"the head of model {index + 1} has another shape than that of model 1, so they "
                "have no task in common; give lists of evidence and test, one for each"
            )


def _check_examples(model: Model, evidence: Evidence, test: Any, of: str) -> None:
    sets = {f"test{of}": test}
    if evidence.labels is None:
        rows_of(evidence)
        check_inputs(evidence.task, evidence.inputs, f"evidence{of}")
    else:
        sets = {f"evidence{of}": (evidence.inputs, evidence.labels), **sets}
    for what, (_, labels) in sets.items():
        if not len(labels):
            raise ValueError(f"{what} has no examples; give at least one")
    check_data(evidence.task, *model, sets)


def _check_spec(spec: AxisSpec, model: Model) -> None:
    try:
        check_spec(spec, model.variables)
    except ValueError as error:
        try:
            check_spec(spec, model.params)
        except ValueError:
            raise error from None
        raise ValueError(
            "the spec is that of the parameters alone; give that of models[0].variables, from "
            "trace_spec(apply_fn, models[0].variables, inputs)"
        ) from None
