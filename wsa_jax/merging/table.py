"""One table of merging methods: the same models, the same data, the same budget."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Key

from wsa_jax.door import door, shown
from wsa_jax.extras import MissingExtraError
from wsa_jax.merging.evaluate.ensemble import ensemble
from wsa_jax.merging.evidence import (
    Budget,
    Evidence,
    Model,
)
from wsa_jax.merging.mergers import Bodies, Method, WholeModels, joint_evidence
from wsa_jax.merging.methods import METHODS, not_admitted
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.table_checks import Test, check_table, evaluation_sets, evidences_of
from wsa_jax.progress import one_by_one
from wsa_jax.training.checks import logits_shape
from wsa_jax.training.evaluation import evaluate
from wsa_jax.training.task import Metrics
from wsa_jax.types import Json

Row = Json


@door
def merge_table(
    key: Key[Array, ""],
    models: Sequence[Model],
    spec: AxisSpec,
    evidence: Evidence | list[Evidence],
    *,
    test: Test | list[Test],
    methods: str | Method | Iterable[str | Method] | Mapping[str, str | Method] | None = None,
    budget: Budget | None = None,
    heads: Literal["merged", "own"] = "merged",
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
        MergeResult``, or both; one of them alone; or a dictionary of either by names of your own.
        All of `METHODS` that the task admits if None.
      budget: budget of learned methods; `Budget()` by default.
      heads: ``"own"`` merges bodies alone and leaves each model its head, for models of different
        tasks or classes: give lists of evidence and test then, one for each model, if they differ.
      progress: show a progress bar of the methods.

    Returns:
      A list of dictionaries, one per method, with keys ``method``, ``accuracy`` in [0, 1], ``loss``
      (mean, nats), the task's own metrics by name, ``seconds`` (align and combine, compilation
      included) and ``info`` (without the state of learning). The models themselves come first
      (``model 1`` and so on); their ``ensemble``, a reference, not a merge, comes last for a
      classifier. Accuracy is None for a task that counts no correct answers. A method that a model
      does not admit (rescaling across norms) has accuracy and loss None; so has, unless it was
      asked for, one that needs what the model is without (biases for REPAIR, layers outside of
      loops for RegMean), what the evidence is without (logits, labels, a base, samples enough) or
      an extra that is not installed. ``info`` tells why under ``left out``.

      With ``heads="own"`` a method has a row for each model, whose number stands under ``model``:
      the merged body under that model's head, with statistics from its own evidence, on its own
      test. Bodies are merged by weights: methods that learn, look at labels, or repair heads are
      left out by name. Aligns do not look at heads, and see the examples of all models through the
      first one's task. The base is the first evidence's; its head is not used. No ensemble.

    Guarantees: models are not changed, and are checked once; equal keys give equal tables except
    for ``seconds``. Aligns are shared: methods with the same align combine the same models.

    Raises:
      ValueError: fewer than two models, models that differ in a leaf or its dtype or hold NaN, a
        spec for another model, no examples, inputs and labels of unequal number, a label that is
        not one of the models' classes, an unknown method, a base of another shape, evidence or
        models without what a method that was asked for needs, or models without a common body.
    """
    chosen, alone = chosen_methods(methods), heads == "own"
    evidences = evidences_of(evidence, len(models), alone)
    tests = evaluation_sets(test, len(models), alone)
    rule = check_table(models, spec, evidences, tests, alone)
    budget = Budget() if budget is None else budget
    if rule is None:
        merger = WholeModels(key, spec, models, evidences[0], budget)
    else:
        joint = joint_evidence(evidences)
        merger = Bodies(key, spec, models, joint, budget, heads=rule, evidences=evidences)
    rows = [
        _row(f"model {index + 1}", evaluated, model=index + 1 if alone else None)
        for index, evaluated in enumerate(_evaluated(evidences, models, tests))
    ]
    for name, method in one_by_one(chosen, enabled=progress):
        lack = merger.lacking(method, name)
        if lack and methods is not None:
            raise ValueError(lack)
        lack = lack or not_admitted(spec, method)
        if lack:
            rows.append(_row(name, None, info={"left out": lack}))
            continue
        merger.check_base(method)
        try:
            results, seconds = merger.merge(method)
        except (NotAdmittedError, MissingExtraError) as error:
            # Found out on the way: by the number of samples, in a trace, or at an import.
            if methods is not None:
                raise
            rows.append(_row(name, None, info={"left out": str(error)}))
            continue
        merged = [Model(result.params, result.model_state) for result in results]
        for index, evaluated in enumerate(_evaluated(evidences, merged, tests)):
            # The state of learning is larger than the model, and nothing continues from it.
            info = {key: value for key, value in results[index].info.items() if key != "state"}
            rows.append(_row(name, evaluated, seconds, info, index + 1 if alone else None))
    return rows if alone else rows + _ensemble(evidences[0], models, tests[0])


def chosen_methods(methods: Any) -> dict[str, Method]:
    """Return methods by name, as `merge_table` takes them.

    Raises:
      ValueError: an array, an unknown name, what is no function, or a function without a name of
        its own.

    >>> list(chosen_methods("average"))
    ['average']
    """
    if methods is None:
        return dict(METHODS)
    if isinstance(methods, Mapping):
        return {name: _method_of(method) for name, method in methods.items()}
    if isinstance(methods, np.ndarray | jax.Array):
        raise ValueError(f"methods is {shown(methods)}; give names or functions, not in an array")
    listed = [methods] if isinstance(methods, str) or callable(methods) else list(methods)
    chosen: dict[str, Method] = {}
    for method in listed:
        name = method if isinstance(method, str) else getattr(method, "__name__", None)
        found = _method_of(method)
        if name is None or name in chosen:
            raise ValueError(
                f"method {shown(method)} has no name of its own; give a dictionary {{name: method}}"
            )
        chosen[name] = found
    return chosen


def _method_of(given: Any) -> Method:
    """A method, given itself or by its name."""
    if isinstance(given, str) and given not in METHODS:
        raise ValueError(f"method {given!r} is unknown; give one of {', '.join(METHODS)}")
    if not isinstance(given, str) and not callable(given):
        raise ValueError(
            f"method {shown(given)} is neither a name nor a function; "
            f"give one of {', '.join(METHODS)}"
        )
    return METHODS[given] if isinstance(given, str) else given


def _evaluated(
    evidences: Sequence[Evidence], models: Sequence[Model], tests: Sequence[Any]
) -> Iterator[Metrics]:
    """Each model on its own test; one model on the first."""
    for evidence, model, test in zip(evidences, models, tests, strict=False):
        inputs, labels = jax.tree.map(np.asarray, test)
        yield evaluate(evidence.task, *model, inputs, labels)


def _ensemble(evidence: Evidence, models: Sequence[Model], test: Any) -> list[Row]:
    """A reference, for classifiers of whole examples: mean probabilities need classes."""
    logits_fn = evidence.task.logits
    shape = logits_shape(evidence.task, *models[0], evidence.inputs)
    if logits_fn is None or shape is None or len(shape) != 1:
        return []
    params, states = zip(*models, strict=True)
    return [_row("ensemble", ensemble(logits_fn, params, *test, model_states=states))]


def _row(
    name: str,
    sums: Metrics | None,
    seconds: float = 0.0,
    info: Any = None,
    model: int | None = None,
) -> Row:
    found = {} if sums is None else {name: float(value) for name, value in sums.means().items()}
    return {
        "method": name,
        **({} if model is None else {"model": model}),
        **({"accuracy": None, "loss": None} | found),
        "seconds": seconds,
        "info": info or {},
    }
