"""Checks of images and labels before anything is compiled."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from wsa_jax.training.task import Task


def class_count(task: Task, params: PyTree, model_state: PyTree, images: Any) -> int | None:
    """Number of classes that a task's logits distinguish; None for a task without logits."""
    if task.logits is None:
        return None
    one = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), images.dtype)
    return jax.eval_shape(task.logits, params, model_state, one).shape[-1]


def check_one_label_each(images: Any, labels: Any, what: str) -> None:
    """Raise a ValueError unless there are as many labels as images."""
    if len(images) != len(labels):
        raise ValueError(
            f"{what} has {len(images)} images and {len(labels)} labels; give one label per image"
        )


def check_labels(labels: Any, num_classes: int | None, what: str) -> None:
    """Raise a ValueError if a label is outside ``0 .. num_classes - 1``.

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
    bad = values[(values < 0) | (values >= (np.inf if num_classes is None else num_classes))]
    if bad.size:
        allowed = "count from 0" if num_classes is None else f"are 0 .. {num_classes - 1}"
        raise ValueError(f"label {bad[0]} of {what} is out of range; classes {allowed}")


def check_data(
    task: Task, params: PyTree, model_state: PyTree, sets: Mapping[str, tuple[Any, Any]]
) -> None:
    """Check the images and labels of each data set, by its name, against a task's classes.

    Only a task with logits says what its labels mean; otherwise only their number is checked.
    """
    for what, (images, labels) in sets.items():
        check_one_label_each(images, labels, what)
    images, _ = next(iter(sets.values()))
    classes = class_count(task, params, model_state, images)
    if classes is not None:
        for what, (_, labels) in sets.items():
            check_labels(labels, classes, what)
