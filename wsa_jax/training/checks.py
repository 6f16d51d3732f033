"""Checks of inputs and labels before anything is compiled."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.door import taken_by
from wsa_jax.leaves import key_path
from wsa_jax.training.task import Task
from wsa_jax.types import Examples, Labels, Leaf


def logits_shape(
    task: Task, params: PyTree, model_state: PyTree, inputs: PyTree, what: str = "the data"
) -> tuple[int, ...] | None:
    """Shape of one example's logits, ``(..., classes)``; None for a task without logits.

    Raises:
      ValueError: the task's model does not take inputs of this shape.
    """
    if task.logits is None:
        return None
    model = jax.tree.map(_described, (params, model_state))
    one_row = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype),
        jax.tree.map(_described, inputs),
    )
    leaves, structure = jax.tree.flatten((*model, one_row))
    shapes = [leaf.shape[1:] for leaf in jax.tree.leaves(one_row)]
    given = shapes[0] if len(shapes) == 1 else shapes
    with taken_by("this task's model", f"examples of shape {given}, which {what} has"):
        return _logits_shape(task, structure, tuple(leaves))


@functools.lru_cache(maxsize=256)
def _logits_shape(task: Task, structure: Any, leaves: tuple[Any, ...]) -> tuple[int, ...]:
    assert task.logits is not None
    return jax.eval_shape(task.logits, *jax.tree.unflatten(structure, leaves)).shape[1:]


def _described(leaf: Leaf) -> jax.ShapeDtypeStruct:
    array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def check_one_label_each(inputs: PyTree, labels: Labels, what: str) -> None:
    """Raise a ValueError unless each array of the inputs has as many rows as there are labels.

    >>> check_one_label_each({"x": np.ones((2, 3)), "y": np.ones(3)}, np.zeros(2), "train")
    Traceback (most recent call last):
    ValueError: train has 3 rows of y and 2 labels; give one label per row
    """
    named = jax.tree_util.tree_leaves_with_path(inputs)
    if not named:
        raise ValueError(f"{what} has no inputs; give at least one array")
    for path, leaf in named:
        rows = "images" if not path else f"rows of {key_path(path)}"
        if isinstance(inputs, list | tuple) and not np.ndim(leaf):
            raise ValueError(
                f"{what} has its inputs as lists of numbers; give an array [examples, ...], for "
                "example np.asarray(inputs)"
            )
        if not np.ndim(leaf) or not np.ndim(labels):
            raise ValueError(f"{what} holds no rows; give arrays [examples, ...] and their labels")
        if len(leaf) != len(labels):
            unit = "image" if not path else "row"
            raise ValueError(
                f"{what} has {len(leaf)} {rows} and {len(labels)} labels; give one label per {unit}"
            )


def check_inputs(task: Task, inputs: PyTree, what: str) -> None:
    """Raise the ValueError of a task that does not take inputs of this type or range."""
    if task.check_inputs is not None:
        task.check_inputs(inputs, what)


def check_labels(
    labels: Labels, num_classes: int | None, what: str, padding_label: int | None = None
) -> None:
    """Raise a ValueError if a label is outside ``0 .. num_classes - 1``, and no padding.

    If num_classes is None, only labels below 0 are refused. Labels that are traced, or are not
    integers, are not checked.

    >>> check_labels(np.array([0, 3]), 3, "test")
    Traceback (most recent call last):
    ValueError: label 3 of test is out of range; classes are 0 .. 2
    """
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    if not np.issubdtype(values.dtype, np.integer):
        return
    wrong = (values < 0) | (values >= (np.inf if num_classes is None else num_classes))
    bad = values[wrong if padding_label is None else wrong & (values != padding_label)]
    if bad.size:
        allowed = "count from 0" if num_classes is None else f"are 0 .. {num_classes - 1}"
        raise ValueError(f"label {bad[0]} of {what} is out of range; classes {allowed}")


def check_label_shape(labels: Labels, logits: tuple[int, ...], what: str) -> None:
    """Raise a ValueError unless labels are integers, one for each position of the logits.

    >>> check_label_shape(np.zeros((5, 3)), (3,), "train")
    Traceback (most recent call last):
    ValueError: labels of train are float64 of shape (5, 3); give integers of shape (5,), ...
    """
    dtype = getattr(labels, "dtype", None) or np.asarray(labels).dtype
    wanted = (len(labels), *logits[:-1])
    if np.issubdtype(dtype, np.integer) and np.shape(labels) == wanted:
        return
    one_hot = np.shape(labels) == (*wanted, logits[-1])
    hint = "; of one-hot labels, the argmax over the last axis" if one_hot else ""
    kind = "text" if dtype.kind in "US" else dtype
    raise ValueError(
        f"labels of {what} are {kind} of shape {np.shape(labels)}; give integers of shape "
        f"{wanted}, each a class 0 .. {logits[-1] - 1}{hint}"
    )


def check_data(
    task: Task, params: PyTree, model_state: PyTree, sets: Mapping[str, Examples]
) -> None:
    """Check the inputs and labels of each data set, by its name, against a task's logits.

    Only a task with logits says what its labels mean; otherwise only their number is checked.

    Raises:
      ValueError: unequal numbers of inputs and labels, inputs that the model does not take, images
        in other units than the task's, or labels of another type, shape or range.
    """
    for what, (inputs, labels) in sets.items():
        check_one_label_each(inputs, labels, what)
        check_inputs(task, inputs, what)
        if not len(labels):
            continue
        logits = logits_shape(task, params, model_state, inputs, what)
        if logits is None:
            continue
        if task.integer_labels:
            check_label_shape(labels, logits, what)
        check_labels(labels, logits[-1], what, task.padding_label)


def check_evaluable(labels: Labels, calibration: PyTree, where: str) -> None:
    """Raise a ValueError where there is nothing to evaluate on or to estimate statistics from."""
    if len(labels) == 0:
        raise ValueError(f"no examples to evaluate {where} on; give at least one")
    rows = [np.shape(leaf)[:1] for leaf in jax.tree.leaves(calibration)]
    if calibration is not None and (not rows or set(rows) & {(), (0,)}):
        raise ValueError("no calibration images to estimate BatchNorm statistics from; give some")


def check_statistics(params: PyTree, model_state: PyTree, initial_state: PyTree) -> None:
    """Raise a ValueError if parameters are given without the statistics they need."""
    if params is not None and model_state is None and jax.tree.leaves(initial_state):
        raise ValueError(
            "params are given and model_state is not, but this task has one; give both, or "
            "model_state=task.init(key)[1] for fresh statistics"
        )
