"""What a table merges by each of its methods: whole models, or bodies that keep their own heads."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.leaves import key_path
from wsa_jax.merging.aligns import Maps, find_maps, moved
from wsa_jax.merging.combine.own_heads import body_of, head_of
from wsa_jax.merging.combine.task_vectors import check_base
from wsa_jax.merging.combines import OfWeights, repaired
from wsa_jax.merging.evidence import Budget, Evidence, Model
from wsa_jax.merging.methods import Pipeline, lacking
from wsa_jax.merging.result import MergeResult
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.scope.layers import Rule
from wsa_jax.types import Leaf

Method = Callable[..., MergeResult]
"""``method(key, spec, models, evidence, budget=budget) -> MergeResult``; a `Pipeline` is one."""


@dataclass
class WholeModels:
    """Models that each method makes one model of; methods with one align share its result."""

    key: Array
    spec: AxisSpec
    models: Sequence[Model]
    evidence: Evidence
    budget: Budget
    _aligned: dict[str, tuple[Any, float]] = field(default_factory=dict)

    def lacking(self, method: Method, name: str) -> str | None:
        """Why a method cannot be used, with the way out; None if it can."""
        return lacking(method, name, self.evidence)

    def check_base(self, method: Method) -> None:
        """Raise a ValueError where a method needs a base and the evidence's is none."""
        if "base" in getattr(method, "needs", ()) and self.evidence.base is not None:
            check_base(self.evidence.base.params, self.models[0].params)

    def merge(self, method: Method) -> tuple[list[MergeResult], float]:
        """What a method makes of the models, and its seconds, with those of its align."""
        if not isinstance(method, Pipeline):
            begin = time.perf_counter()
            result = method(self.key, self.spec, self.models, self.evidence, budget=self.budget)
            return _waited([result], begin)
        # The same keys for every method, so that those that share an align can share its result.
        align_key, combine_key = jax.random.split(self.key)
        if method.align not in self._aligned:
            begin = time.perf_counter()
            found = self._align(align_key, method.align)
            self._aligned[method.align] = (found, time.perf_counter() - begin)
        aligned, spent = self._aligned[method.align]
        begin = time.perf_counter()
        results, seconds = _waited(self._combine(combine_key, method, aligned), begin)
        return results, spent + seconds

    def _align(self, key: Array, name: str) -> list[Model]:
        return self._moved(self._maps(key, self.models, self.evidence, name))

    def _maps(
        self, key: Array, models: Sequence[Model], evidence: Evidence, name: str
    ) -> Sequence[Maps]:
        return find_maps(key, self.spec, models, evidence, name, restarts=self.budget.restarts)

    def _moved(self, maps: Sequence[Maps]) -> list[Model]:
        return [moved(self.spec, model, own) for model, own in zip(self.models, maps, strict=True)]

    def _combine(self, key: Array, method: Pipeline, aligned: list[Model]) -> list[MergeResult]:
        return [method.merge(key, aligned, self.evidence, self.budget)]


@dataclass
class Bodies(WholeModels):
    """Models whose bodies are merged, and which keep their heads.

    Attributes:
      heads: which leaves of ``Model.variables`` are a head's.
      evidences: each model's own, whose examples its statistics are estimated on.
    """

    heads: Rule = field(kw_only=True)
    evidences: Sequence[Evidence] = field(kw_only=True)

    def lacking(self, method: Method, name: str) -> str | None:
        """Why a method cannot merge bodies alone; None if it can."""
        if not isinstance(method, Pipeline) or not isinstance(method.combine, OfWeights):
            return (
                f"{name} looks at what whole models compute, so it cannot merge bodies alone; give "
                "a method of weights, such as 'weight matching' or 'TIES', or heads='merged'"
            )
        if method.repair != "none":
            return (
                f"{name} repairs heads, too, which heads='own' keeps; give it without a repair, or "
                "heads='merged'"
            )
        return super().lacking(method, name)

    def check_base(self, method: Method) -> None:
        """The same of bodies: the base's own head is not used."""
        if "base" in getattr(method, "needs", ()) and self.evidence.base is not None:
            both = (self.evidence.base, "the base"), (self.models[0], "model 1")
            check_base(*(self._body(model.params, what) for model, what in both))

    def _align(self, key: Array, name: str) -> list[Model]:
        # Heads of different tasks say nothing of which units correspond, and may differ in shape.
        blank = [self._without_head(model) for model in self.models]
        return self._moved(self._maps(key, blank, self.evidence, name))

    def _without_head(self, model: Model) -> Model:
        """The model with a head of zeros, of the first one's shape."""

        def leaf(path: tuple, own: Leaf, first: Leaf) -> Leaf:
            return jnp.zeros_like(first) if self.heads(key_path(path), own) else own

        first = self.models[0].variables
        return Model.of(jax.tree_util.tree_map_with_path(leaf, model.variables, first))

    def _combine(self, key: Array, method: Pipeline, aligned: list[Model]) -> list[MergeResult]:
        assert isinstance(method.combine, OfWeights)
        base = self.evidence.base
        body = method.combine.merge(
            key,
            [self._body(model.params, f"model {i + 1}") for i, model in enumerate(aligned)],
            None if base is None else self._body(base.params, "the base"),
        )
        results = []
        for model, evidence in zip(aligned, self.evidences, strict=True):
            params = jax.tree.map(lambda own, new: own if new is None else new, model.params, body)
            state = repaired(evidence)(params, model.model_state)
            results.append(MergeResult(params, state, {}))
        return results

    def _body(self, params: PyTree, what: str) -> PyTree:
        return body_of({"params": params}, self.heads, what)["params"]


def common_heads(spec: AxisSpec, models: Sequence[Model]) -> Rule:
    """The rule that selects the models' heads.

    Raises:
      ValueError: a head that is no leaf or every leaf, bodies that differ in a leaf, or a model
        that holds NaN.
    """
    heads = head_of(spec)
    variables = [model.variables for model in models]
    try:
        bodies = [body_of(tree, heads, f"model {i + 1}") for i, tree in enumerate(variables)]
        for body in bodies:
            checks.same_structure(bodies[0], body)
            checks.same_dtypes(bodies[0], body)
    except ValueError as error:
        raise ValueError(f"models have no common body: {error}") from None
    names = [{key_path(p) for p, _ in jax.tree_util.tree_leaves_with_path(v)} for v in variables]
    for index, own in enumerate(names):
        if own != names[0]:
            name = min(own ^ names[0])
            raise ValueError(
                f"models have no common body: leaf {name} of a head is in only one of model 1 and "
                f"model {index + 1}; heads may differ in their classes alone"
            )
        if jax.tree.structure(variables[index]) != jax.tree.structure(variables[0]):
            raise ValueError(
                f"models have no common body: model {index + 1} differs from model 1 in what is no "
                "array, such as sizes that a module keeps; give dictionaries of arrays"
            )
        checks.weights(variables[index], f"model {index + 1}")
    return heads


def joint_evidence(evidences: Sequence[Evidence]) -> Evidence:
    """The first model's task, with the examples of all, without labels: what aligns look at.

    Raises:
      ValueError: examples of another shape or type.
    """
    first, *others = evidences
    if all(other is first for other in others):
        return first
    described = [jax.tree.map(_row, evidence.inputs) for evidence in evidences]
    for index, own in enumerate(described):
        if own != described[0]:
            raise ValueError(
                f"an example is {own} in the evidence of model {index + 1} and {described[0]} in "
                "that of model 1; give examples that all of the models take"
            )
    together = [evidence.inputs for evidence in evidences]
    inputs = jax.tree.map(lambda *parts: np.concatenate([np.asarray(p) for p in parts]), *together)
    return first._replace(inputs=inputs, labels=None)


def _row(leaf: Leaf) -> str:
    array = np.asarray(leaf)
    return f"{array.dtype} of shape {array.shape[1:]}"


def _waited(results: list[MergeResult], begin: float) -> tuple[list[MergeResult], float]:
    jax.block_until_ready([(result.params, result.model_state) for result in results])
    return results, time.perf_counter() - begin
