"""One table of merging methods: the same models, the same data, the same budget."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import door, shown
from wsa_jax.extras import MissingExtraError
from wsa_jax.merging.aligns import align_models
from wsa_jax.merging.combine.own_heads import check_same_heads, head_of
from wsa_jax.merging.evaluate.ensemble import ensemble
from wsa_jax.merging.evidence import Budget, Evidence, Model, rows_of
from wsa_jax.merging.methods import (
    METHODS,
    Pipeline,
    applicable,
    check_needs,
    lacking,
)
from wsa_jax.merging.result import MergeResult, NotAdmittedError
from wsa_jax.merging.symmetry.spec import AxisSpec, check_spec
from wsa_jax.progress import one_by_one
from wsa_jax.training.checks import check_data, check_inputs, logits_shape
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Metrics
from wsa_jax.types import Json

Row = Json

Method = Callable[..., MergeResult]
"""``method(key, spec, models, evidence, budget=budget) -> MergeResult``; a `Pipeline` is one."""


@door
def merge_table(
    key: Key[Array, ""],
    models: Sequence[Model],
    spec: AxisSpec,
    evidence: Evidence,
    *,
    test: tuple[PyTree, Shaped[Array | np.ndarray, "examples ..."]],
    methods: str | Method | Iterable[str | Method] | Mapping[str, Method] | None = None,
    budget: Budget | None = None,
    progress: bool = False,
) -> list[Row]:
    """Merge models by every method and evaluate the results: a tidy table.

    Args:
      key: the same key for every method.
      models: at least two, of one architecture.
      spec: spec of ``models[0].variables``.
      evidence: the examples that methods may use.
      test: inputs and labels to evaluate on; no method sees them.
      methods: names of `METHODS`, functions ``method(key, spec, models, evidence, budget=budget) ->
        MergeResult``, or both; one of them alone; or a dictionary of functions by name. All
        of `METHODS` that the task admits if None.
      budget: budget of learned methods; `Budget()` by default.
      progress: show a progress bar of the methods.

    Returns:
      A list of dictionaries, one per method, with keys ``method``, ``accuracy`` in [0, 1], ``loss``
      (mean, nats), the task's own metrics by name, ``seconds`` (align and combine, compilation
      included) and ``info`` (without the state of learning). The models themselves come first
      (``model 1`` and so on); their ``ensemble``, a reference, not a merge, comes last for a
      classifier. Accuracy is None for a task that counts no correct answers. A method that a model
      does not admit (rescaling across norms) has accuracy and loss None; so has, unless it was
      asked for, one that needs what the evidence is without (logits, labels, a base, samples
      enough) or an extra that is not installed, and ``info`` tells it under ``left out``.

    Guarantees: models are not changed, and are checked once; equal keys give equal tables except
    for ``seconds``. Aligns are shared: methods with the same align combine the same models.

    Raises:
      ValueError: fewer than two models, models that differ in a leaf or its dtype or hold NaN, a
        spec for another model, no examples, inputs and labels of unequal number, a label that is
        not one of the models' classes, an unknown method, a base of another shape, or evidence
        without what a method that was asked for needs.
    """
    _check(models, spec, evidence, test)
    budget = Budget() if budget is None else budget
    chosen = chosen_methods(methods)
    rows = [
        _row(f"model {index + 1}", _evaluate(evidence, model, test))
        for index, model in enumerate(models)
    ]
    # The same keys for every method, so that those that share an align can share its result.
    align_key, combine_key = jax.random.split(key)
    aligned: dict[str, tuple[list[Model], float]] = {}

    def merge(method: Method) -> tuple[MergeResult, float]:
        begin, spent = time.perf_counter(), 0.0
        if isinstance(method, Pipeline):
            if method.align not in aligned:
                moved = align_models(
                    align_key, spec, models, evidence, method.align, restarts=budget.restarts
                )
                aligned[method.align] = (moved, time.perf_counter() - begin)
                begin = time.perf_counter()
            moved, spent = aligned[method.align]
            result = method.merge(combine_key, moved, evidence, budget)
        else:
            result = method(key, spec, models, evidence, budget=budget)
        jax.block_until_ready((result.params, result.model_state))
        return result, spent + time.perf_counter() - begin

    for name, method in one_by_one(chosen, enabled=progress):
        lack = lacking(method, name, evidence) if methods is None else None
        if lack or not applicable(spec, method):
            rows.append(_row(name, None, info={"left out": lack} if lack else None))
            continue
        check_needs(method, name, models[0], evidence)
        try:
            result, seconds = merge(method)
        except (NotAdmittedError, MissingExtraError) as error:
            # Found out on the way: by the number of samples, or at an import.
            if methods is not None:
                raise
            rows.append(_row(name, None, info={"left out": str(error)}))
            continue
        merged = Model(result.params, result.model_state)
        # The state of learning is larger than the model, and nothing continues from it.
        info = {key: value for key, value in result.info.items() if key != "state"}
        rows.append(_row(name, _evaluate(evidence, merged, test), seconds, info))

    # A reference, for classifiers of whole examples: mean probabilities need classes.
    logits_fn = evidence.task.logits
    shape = logits_shape(evidence.task, *models[0], evidence.inputs)
    if logits_fn is not None and shape is not None and len(shape) == 1:
        sums = ensemble(
            logits_fn,
            [model.params for model in models],
            *test,
            model_states=[model.model_state for model in models],
        )
        rows.append(_row("ensemble", sums))
    return rows


def chosen_methods(methods: Any) -> dict[str, Method]:
    """Return methods by name, as `merge_table` takes them.

    Raises:
      ValueError: an unknown name, what is no function, or a function without a name of its own.

    >>> list(chosen_methods("average"))
    ['average']
    """
    if methods is None:
        return dict(METHODS)
    if isinstance(methods, Mapping):
        return dict(methods)
    listed = [methods] if isinstance(methods, str) or callable(methods) else list(methods)
    chosen: dict[str, Method] = {}
    for method in listed:
        name = method if isinstance(method, str) else getattr(method, "__name__", None)
        if isinstance(method, str) and method not in METHODS:
            raise ValueError(f"method {method!r} is unknown; give one of {', '.join(METHODS)}")
        if not isinstance(method, str) and not callable(method):
            raise ValueError(
                f"method {shown(method)} is neither a name nor a function; "
                f"give one of {', '.join(METHODS)}"
            )
        if name is None or name in chosen:
            raise ValueError(
                f"method {shown(method)} has no name of its own; give a dictionary {{name: method}}"
            )
        chosen[name] = METHODS[method] if isinstance(method, str) else method
    return chosen


def _check(models: Sequence[Any], spec: AxisSpec, evidence: Evidence, test: Any) -> None:
    if len(models) < 2:
        raise ValueError(f"{len(models)} model to merge; give at least two")
    for index, model in enumerate(models):
        if not isinstance(model, Model):
            raise ValueError(
                f"model {index + 1} of merge_table is {shown(model)}; "
                "give Model(params, model_state)"
            )
    _check_spec(spec, models[0])
    check_same_heads([model.variables for model in models], head_of(spec))
    checks.models([model.variables for model in models])
    sets = {"test": test}
    if evidence.labels is None:
        rows_of(evidence)
        check_inputs(evidence.task, evidence.inputs, "evidence")
    else:
        sets = {"evidence": (evidence.inputs, evidence.labels), **sets}
    for what, (_, labels) in sets.items():
        if not len(labels):
            raise ValueError(f"{what} has no examples; give at least one")
    check_data(evidence.task, models[0].params, models[0].model_state, sets)


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


def _evaluate(evidence: Evidence, model: Model, test: Any) -> Metrics:
    inputs, labels = jax.tree.map(np.asarray, tuple(test))
    return evaluate(evidence.task, model.params, model.model_state, inputs, labels)


def _row(name: str, sums: Metrics | None, seconds: float = 0.0, info: Any = None) -> Row:
    found = {} if sums is None else {name: float(value) for name, value in sums.means().items()}
    return {
        "method": name,
        **({"accuracy": None, "loss": None} | found),
        "seconds": seconds,
        "info": info or {},
    }
