"""One table of merging methods: the same models, the same data, the same budget."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, Shaped

from wsa_jax import checks
from wsa_jax.merging.evaluate.ensemble import ensemble
from wsa_jax.merging.methods import (
    METHODS,
    Budget,
    Evidence,
    Model,
    Pipeline,
    align_models,
    applicable,
)
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.training.checks import check_labels, check_one_label_each, class_count
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Metrics

Row = dict[str, Any]


def merge_table(
    key: Key[Array, ""],
    models: Sequence[Model],
    spec: AxisSpec,
    evidence: Evidence,
    *,
    test: tuple[Array | np.ndarray, Shaped[Array | np.ndarray, " examples"]],
    methods: Iterable[str] | Mapping[str, Any] = tuple(METHODS),
    budget: Budget | None = None,
) -> list[Row]:
    """Merge models by every method and evaluate the results: a tidy table.

    Args:
      key: the same key for every method.
      models: at least two, of one architecture.
      spec: spec of ``models[0].variables``.
      evidence: the examples that methods may use.
      test: images and labels to evaluate on; no method sees them.
      methods: names of `METHODS`, or functions by name,
        ``method(key, spec, models, evidence, budget=budget) -> MergeResult``.
      budget: budget of learned methods; `Budget()` by default.

    Returns:
      A list of dictionaries, one per method, with keys ``method``, ``accuracy`` in [0, 1], ``loss``
      (mean, nats), ``seconds`` (align and combine, compilation included) and ``info`` (without the
      state of learning). The models themselves come first (``model 1`` and so on); their
      ``ensemble``, a reference, not a merge, comes last if the task has logits. A method that a
      model does not admit (rescaling across norms) has accuracy and loss None.

    Guarantees: models are not changed; equal keys give equal tables except for ``seconds``. Aligns
    are shared: methods with the same align combine the same models.

    Raises:
      ValueError: fewer than two models, models that differ in a leaf or hold NaN, a spec for
        another model, no examples, images and labels of unequal number, a label that is not one
        of the models' classes, or an unknown method.
    """
    _check(models, spec, evidence, test)
    budget = Budget() if budget is None else budget
    if not isinstance(methods, Mapping):
        methods = {name: _named(name) for name in methods}
    rows = [
        _row(f"model {index + 1}", _evaluate(evidence, model, test))
        for index, model in enumerate(models)
    ]
    align_key, combine_key = jax.random.split(key)
    aligned: dict[str, tuple[list[Model], float]] = {}
    for name, method in methods.items():
        if not applicable(spec, method):
            rows.append(_row(name, None))
            continue
        begin, spent = time.perf_counter(), 0.0
        if isinstance(method, Pipeline):
            if method.align not in aligned:
                moved = align_models(
                    align_key, spec, models, evidence, method.align, restarts=budget.restarts
                )
                aligned[method.align] = (moved, time.perf_counter() - begin)
                begin = time.perf_counter()
            moved, spent = aligned[method.align]
            result = method.combine(combine_key, moved, evidence, budget)
        else:
            result = method(key, spec, models, evidence, budget=budget)
        jax.block_until_ready((result.params, result.model_state))
        seconds = spent + time.perf_counter() - begin
        merged = Model(result.params, result.model_state)
        # The state of learning is larger than the model, and nothing continues from it.
        info = {key: value for key, value in result.info.items() if key != "state"}
        rows.append(_row(name, _evaluate(evidence, merged, test), seconds, info))
    if evidence.task.logits is not None:
        sums = ensemble(
            evidence.task.logits,
            [model.params for model in models],
            *test,
            model_states=[model.model_state for model in models],
        )
        rows.append(_row("ensemble", sums))
    return rows


def _named(name: str) -> Pipeline:
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; give one of {', '.join(METHODS)}")
    return METHODS[name]


def _check(models: Sequence[Model], spec: AxisSpec, evidence: Evidence, test: Any) -> None:
    if len(models) < 2:
        raise ValueError(f"{len(models)} model to merge; give at least two")
    check_spec(spec, models[0].variables)
    checks.models([model.variables for model in models])
    classes = class_count(evidence.task, *models[0], evidence.images)
    for what, images, labels in (("evidence", *evidence[1:]), ("test", *test)):
        if not len(labels):
            raise ValueError(f"{what} has no examples; give at least one")
        check_one_label_each(images, labels, what)
        check_labels(labels, classes, what)


def _evaluate(evidence: Evidence, model: Model, test: Any) -> Metrics:
    return evaluate(evidence.task, model.params, model.model_state, *map(np.asarray, test))


def _row(name: str, sums: Metrics | None, seconds: float = 0.0, info: Any = None) -> Row:
    found = {} if sums is None else {name: float(value) for name, value in sums.means().items()}
    return {
        "method": name,
        **({"accuracy": None, "loss": None} | found),
        "seconds": seconds,
        "info": info or {},
    }
