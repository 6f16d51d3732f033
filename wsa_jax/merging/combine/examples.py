"""What a merge learns from and what it learns: checks at the door, and the few examples."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import door, shown
from wsa_jax.leaves import is_array, is_traced, is_weight, key_path
from wsa_jax.merging.result import check_real
from wsa_jax.training.checks import check_labels, check_one_label_each
from wsa_jax.training.task import Batch
from wsa_jax.types import Inputs


@door
def labelled_examples(
    inputs: Inputs,
    labels: Shaped[ArrayLike, "examples ..."] | Sequence[object],
    *,
    num_classes: int | None = None,
) -> Batch:
    """Make examples for `training.Task.loss` from inputs and labels.

    Args:
      inputs: an array ``[examples, ...]``, or a pytree of such arrays.
      labels: one for each example, or one for each of its positions.
      num_classes: the number of classes, if labels are classes.

    Raises:
      ValueError: no inputs, a different number of labels, or labels outside
        ``0 .. num_classes - 1`` (only those below 0 if ``num_classes`` is None).

    >>> labelled_examples(jnp.ones((2, 3)), jnp.array([0, 1]), num_classes=2).mask.tolist()
    [1.0, 1.0]
    """
    labels = jnp.asarray(labels)
    if any(np.ndim(leaf) and not len(leaf) for leaf in jax.tree.leaves(inputs)):
        raise ValueError("images hold no samples; give at least one")
    check_one_label_each(inputs, labels, "examples")
    check_labels(labels, num_classes, "examples")
    return Batch(jax.tree.map(jnp.asarray, inputs), labels, jnp.ones(len(labels)))


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


def check_finite_examples(examples: PyTree) -> None:
    """Raise a ValueError that names the first array of examples holding NaN or infinity.

    >>> check_finite_examples({"x": jnp.array([1.0, jnp.nan])})
    Traceback (most recent call last):
    ValueError: array x of examples holds 1 NaN or infinite value of 2; give finite examples
    """
    if is_traced(examples):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(examples):
        values = np.asarray(leaf)
        if not is_weight(values):
            continue
        bad = int(values.size - np.isfinite(np.asarray(values, np.float64)).sum())
        if bad:
            where = f"array {key_path(path)} of examples" if path else "the array of examples"
            raise ValueError(
                f"{where} holds {bad} NaN or infinite value{'s' if bad > 1 else ''} of "
                f"{values.size}; give finite examples"
            )


def check_learnable(models: Sequence[PyTree]) -> None:
    """Raise a ValueError unless models are finite, real, of one structure, and of arrays alone.

    >>> check_learnable([{"w": jnp.ones(1), "act": jax.nn.relu}])
    Traceback (most recent call last):
    ValueError: leaf act of model 1 is the function relu; give the arrays alone, ...
    """
    for index, model in enumerate(models):
        for path, leaf in jax.tree_util.tree_leaves_with_path(model):
            name = f"leaf {key_path(path)} of model {index + 1}"
            if not is_array(leaf):
                raise ValueError(
                    f"{name} is {shown(leaf)}; give the arrays alone, "
                    "for example equinox.partition(model, equinox.is_array)[0]"
                )
        check_real(model, "what is learnt")
    checks.models(models)
