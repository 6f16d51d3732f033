"""Flat names (``layers.0.weight``), as files have them, and the trees that they stand for."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.door import door, shown
from wsa_jax.files.model_file import ModelFileError, listed
from wsa_jax.leaves import is_array, is_key, key_path
from wsa_jax.types import Json, Leaf


@door
def flatten(params: PyTree) -> dict[str, Leaf]:
    """Name the leaves of a tree by their paths, joined by dots, in the order of the tree.

    A flat dictionary, as PyTorch's, keeps its names: ``{"layers.0.weight": ...}``.

    Raises:
      ModelFileError: a leaf is no array, or two have one name.

    >>> flatten({"layers": [{"weight": np.ones(2)}]})
    {'layers.0.weight': array([1., 1.])}
    """
    named: dict[str, Leaf] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = key_path(path, ".")
        if is_key(leaf) or not is_array(leaf):
            raise ModelFileError(
                f"leaf {name} is {shown(leaf)}; a file holds arrays of numbers only: leave it out, "
                "as equinox.filter(model, equinox.is_array) does, and save keys as "
                "jax.random.key_data(key)"
            )
        if name in named:
            raise ModelFileError(f"two leaves are named {name}; rename one of them")
        named[name] = leaf
    return named


@door
def unflatten(leaves: Mapping, like: PyTree | None = None) -> PyTree:
    """Make a tree of named leaves: nested dictionaries, or the structure of another tree.

    Args:
      leaves: a dictionary, or an open file, of which each leaf is read once.
      like: a tree whose structure is taken: any pytree, of arrays or of shapes, such as the result
        of ``jax.eval_shape``. Its leaves that are no arrays (functions, numbers of Python) stay.
        Dtypes are those of ``leaves``.

    Raises:
      ModelFileError: names cannot be nested, or names or shapes differ from those of ``like``; up
        to ten are listed.

    >>> unflatten({"layers.0.weight": 1, "layers.0.bias": 2})
    {'layers': {'0': {'weight': 1, 'bias': 2}}}
    >>> unflatten({"0.w": np.ones(2)}, like=[{"w": np.zeros(2)}])
    [{'w': array([1., 1.])}]
    """
    if like is None:
        return _nested(leaves)
    return filled(leaves, like, str(getattr(leaves, "path", "the dictionary")))


def _nested(leaves: Mapping[str, Leaf]) -> PyTree:
    if set(leaves) == {""}:
        return leaves[""]  # the tree was one array
    tree: Json = {}
    for name in leaves:
        *folders, last = name.split(".")
        place: Any = tree
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or last in place:
            raise ModelFileError(
                f"leaf {name} is also the beginning of another leaf's name, so they cannot be "
                "nested; use the open file, a flat dictionary, or give like=, a tree of the names"
            )
        place[last] = leaves[name]
    return tree


def filled(leaves: Mapping[str, Leaf], like: PyTree, origin: str) -> PyTree:
    """Put leaves into the structure of a tree; messages call them by their origin.

    >>> filled({"w": np.ones(2)}, {"w": np.ones(3)}, "model.npz")
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: model.npz has other shapes than the tree: w [2] for ...
    """
    wanted = jax.tree_util.tree_leaves_with_path(like)
    names = [key_path(path, ".") if _has_shape(leaf) else None for path, leaf in wanted]
    known = {name for name in names if name is not None}
    problems = []
    if missing := [name for name in names if name is not None and name not in leaves]:
        problems.append(f"it lacks {listed(missing)}")
    if more := [name for name in leaves if name not in known]:
        problems.append(f"it has {listed(more)}, which the tree has not")
    if problems:
        raise ModelFileError(
            f"{origin} does not fit the tree: {'; '.join(problems)}; give the tree of "
            "this architecture, or a name map"
        )
    shapes = getattr(leaves, "shapes", leaves)
    differ = [
        f"{name} {list(np.shape(shapes[name]))} for {list(leaf.shape)}"
        for name, (_, leaf) in zip(names, wanted, strict=True)
        if name is not None and tuple(shapes[name].shape) != tuple(leaf.shape)
    ]
    if differ:
        raise ModelFileError(
            f"{origin} has other shapes than the tree: {listed(differ)}; give the tree of "
            "this architecture"
        )
    found = [
        leaf if name is None else leaves[name]
        for name, (_, leaf) in zip(names, wanted, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), found)


def _has_shape(leaf: Leaf) -> bool:
    return is_array(leaf) and not is_key(leaf)
