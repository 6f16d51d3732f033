"""Merge the bodies of models and leave each its own head: models of different tasks or classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.door import door, shown, taken_by
from wsa_jax.leaves import is_array, key_path
from wsa_jax.merging.result import MergeResult
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.scope.layers import Rule
from wsa_jax.tree import at_least_one
from wsa_jax.types import Leaf


@door
def merge_bodies(
    merge: Callable[..., PyTree], models: PyTree, heads: Rule, *, base: PyTree = None
) -> list[PyTree]:
    """Merge all but the heads of several models: one body, each with its own head.

    Args:
      merge: ``bodies -> body`` such as `average`, or with a base ``(bodies, base's body) -> body``
        such as `task_arithmetic` or `ties`; a body is a model whose head's leaves are None. It may
        return a `MergeResult`, whose parameters are taken.
      models: a list of models in correspondence, equal up to their heads.
      heads: rule that says which leaves are a head's, for example `head_of` or
        ``matching("Dense_2/.*")``.
      base: the model that all were fine-tuned from; its own head is not used.

    Returns:
      One model for each given, which differ in their heads alone.

    Guarantees: heads are the models' own, bitwise, whatever their shapes; every leaf of the body is
    what ``merge`` makes of the bodies.

    Raises:
      ValueError: no models, a rule that selects no leaf of a model or all of them, bodies that
        differ in a leaf, a ``merge`` that returns no body, or as for it.

    >>> models = [
    ...     {"body": np.full(2, value, np.float32), "head": np.ones((2, classes), np.float32)}
    ...     for value, classes in ((1.0, 3), (3.0, 5))
    ... ]
    >>> from wsa_jax.merging import average
    >>> from wsa_jax.scope import matching
    >>> merged = merge_bodies(average, models, matching("head"))
    >>> [(model["body"].tolist(), model["head"].shape) for model in merged]
    [([2.0, 2.0], (2, 3)), ([2.0, 2.0], (2, 5))]

    Source: how multi-task merges are evaluated, for example by Ilharco et al., ICLR 2023.
    """
    models = at_least_one(models)
    bodies = [body_of(model, heads, f"model {i + 1}") for i, model in enumerate(models)]
    checks.models(bodies)
    given = (bodies,) if base is None else (bodies, body_of(base, heads, "the base"))
    merged = merge(*given)
    body = merged.params if isinstance(merged, MergeResult) else merged
    if jax.tree.structure(body) != jax.tree.structure(bodies[0]):
        raise ValueError(
            f"merge returned {shown(merged)}, which is no body; give a function that makes one "
            "body of several, such as average, or of several and a base, such as ties"
        )
    return [
        jax.tree.map(lambda own, new: own if new is None else new, model, body) for model in models
    ]


@door
def head_of(spec: AxisSpec) -> Rule:
    """The rule that selects a model's head: what reads its units and makes none, with its bias.

    Args:
      spec: of the models' function, as `trace_spec` returns it; the models must be trees of the
        same key paths.

    Edge cases: leaves that the function does not read, those with a pinned axis, and scalars are no
    head, and neither is what stands at the input. A spec written by hand does not tell what the
    function does: there a head's bias is what stands beside its kernel in the tree.

    >>> from wsa_jax.merging.symmetry.tracing import trace_spec
    >>> params = {"a": np.ones((3, 4)), "b": np.ones((4, 2)), "c": np.ones(2)}
    >>> apply = lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"] + p["c"]
    >>> spec = trace_spec(apply, params, np.ones(3))
    >>> rule = head_of(spec)
    >>> [name for name, leaf in params.items() if rule(name, leaf)]
    ['b', 'c']
    """
    ties = [tie for group in spec.groups for tie in group.ties]
    body = {tie.leaf for tie in ties if tie.role != "consumed"} | {p.leaf for p in spec.pinned}
    if spec.head is not None:
        return _Head(frozenset(spec.head) - body)
    kernels = frozenset(tie.leaf for tie in ties) - body
    return _Head(kernels, frozenset(map(_folder, kernels)), frozenset(body))


def check_same_heads(models: Sequence[PyTree], heads: Rule) -> None:
    """Raise a ValueError where models differ in the shapes of their heads alone.

    >>> from wsa_jax.scope import matching
    >>> models = [{"w": np.ones((2, 3))}, {"w": np.ones((2, 5))}]
    >>> check_same_heads(models, matching("w"))
    Traceback (most recent call last):
    ValueError: heads of different classes: leaf w has shape (2, 3) in model 1 and (2, 5) in ...
    """
    first = _shapes(models[0])
    for index, model in enumerate(models[1:]):
        other = _shapes(model)
        differing = [name for name in first if first[name] != other.get(name)]
        if set(first) != set(other) or not all(heads(name, None) for name in differing):
            continue
        for name in differing:
            raise ValueError(
                f"heads of different classes: leaf {name} has shape {first[name]} in model 1 and "
                f"{other[name]} in model {index + 2}; merge the bodies alone: merge_table(..., "
                "heads='own'), or merge_bodies(..., heads=head_of(spec))"
            )


def body_of(model: PyTree, heads: Rule, what: str) -> PyTree:
    """The model without its head, whose leaves are None.

    Raises:
      ValueError: the rule selects no leaf, or every leaf.

    >>> from wsa_jax.scope import matching
    >>> body_of({"body": 1.0, "head": np.ones(2)}, matching("head"), "model 1")
    {'body': 1.0, 'head': None}
    """

    def body(path: tuple, leaf: Leaf) -> Leaf:
        return None if is_array(leaf) and heads(key_path(path), leaf) else leaf

    with taken_by("heads", "a leaf's name and the leaf"):
        found = jax.tree_util.tree_map_with_path(body, model)
    whole, rest = len(jax.tree.leaves(model)), len(jax.tree.leaves(found))
    if rest in (0, whole):
        which = "no leaf" if rest == whole else "every leaf"
        raise ValueError(
            f"heads selects {which} of {what}; give a rule for the last layer, such as "
            "head_of(spec) or matching('Dense_2/.*')"
        )
    return found


@dataclass(frozen=True)
class _Head:
    """The leaves of a head, and those beside them that are not a body's."""

    leaves: frozenset[str]
    folders: frozenset[str] = frozenset()
    body: frozenset[str] = frozenset()

    def __call__(self, name: str, leaf: Leaf) -> bool:
        """Whether a leaf is a head's."""
        del leaf
        return name in self.leaves or (name not in self.body and _folder(name) in self.folders)


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _shapes(model: PyTree) -> dict[str, tuple[int, ...]]:
    named = jax.tree_util.tree_leaves_with_path(model)
    return {key_path(path): np.shape(leaf) for path, leaf in named}
