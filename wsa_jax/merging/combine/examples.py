"""The few examples that a merge learns from, and checks of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from wsa_jax.training.checks import check_labels
from wsa_jax.training.task import Batch


def labelled_examples(
    images: Array | np.ndarray,
    labels: Shaped[Array | np.ndarray, " examples"],
    *,
    num_classes: int | None = None,
) -> Batch:
    """Make examples for `training.Task.loss` from images and labels.

    Raises:
      ValueError: no images, a different number of labels, or labels outside
        ``0 .. num_classes - 1`` (only those below 0 if ``num_classes`` is None).

    >>> labelled_examples(jnp.ones((2, 3)), jnp.array([0, 1]), num_classes=2).mask.tolist()
    [1.0, 1.0]
    """
    examples = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(len(labels)))
    check_examples(examples, 1, "images")
    check_labels(labels, num_classes, "examples")
    return examples


def check_examples(examples: PyTree, batch_size: int, what: str = "examples") -> None:
    """Raise a ValueError where examples have no rows, too few rows for a batch, or unequal numbers.

    >>> check_examples({"x": jnp.ones((0, 2))}, 1)
    Traceback (most recent call last):
    ValueError: examples hold no samples; give at least one
    """
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)}
    if not counts or counts <= {(0,), ()}:
        raise ValueError(f"{what} hold no samples; give at least one")
    if len(counts) > 1:
        rows = sorted(count[0] if count else "none" for count in counts)
        raise ValueError(f"arrays of {what} have {rows} rows; give each the same number")
    count = counts.pop()[0]
    if not 0 < batch_size <= count:
        raise ValueError(
            f"batch_size {batch_size} does not fit {count} examples; "
            "give 1 <= batch_size <= the number of examples"
        )
