"""What a client draws: examples without replacement, in static shapes, and keys of its own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, Key, PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import is_key
from wsa_jax.types import Leaf


def draw_batches(
    key: Key[Array, ""],
    size: Int[Array, ""],
    *,
    capacity: int,
    steps: int,
    batch_size: int,
    epochs: int,
) -> tuple[Integer[Array, "steps batch"], Float[Array, "steps batch"]]:
    """Draw the positions of the examples of each local step, without replacement within an epoch.

    The order is fresh at every call; after the last, possibly smaller, batch of an epoch a new
    order begins. All shapes are static, whatever the size: an incomplete batch is padded with the
    client's examples from the beginning of its order, so that statistics of a batch (BatchNorm) are
    those of the client's own examples, each as often as the others or once more.

    Args:
      key: a JAX key.
      size: number of examples of the client, at most ``capacity``; 0 gives empty batches.
      capacity: length of the client's padded index array.
      steps: number of batches.
      batch_size: examples per batch.
      epochs: at least ``ceil(steps / ceil(size / batch_size))``, see `epochs_needed`.

    Returns:
      Positions ``[steps, batch]`` in ``[0, max(size, 1))`` and a mask, 0 for padding.

    >>> positions, mask = draw_batches(
    ...     jax.random.key(0), jnp.int32(3), capacity=5, steps=2, batch_size=2, epochs=1
    ... )
    >>> sorted(int(p) for p, m in zip(positions.ravel(), mask.ravel()) if m), mask.tolist()
    ([0, 1, 2], [[1.0, 1.0], [1.0, 0.0]])
    """

    def order(epoch: Array) -> Array:
        draws = jax.random.uniform(jax.random.fold_in(key, epoch), (capacity,))
        return jnp.argsort(jnp.where(jnp.arange(capacity) < size, draws, jnp.inf))

    orders = jax.vmap(order)(jnp.arange(epochs))
    per_epoch = steps_of_an_epoch(size, batch_size)
    step = jnp.arange(steps)
    position = (step % per_epoch)[:, None] * batch_size + jnp.arange(batch_size)[None, :]
    valid = position < size
    positions = orders[(step // per_epoch)[:, None], position % jnp.maximum(size, 1)]
    return jnp.where(size > 0, positions, 0), valid.astype(jnp.float32)


@door
def epochs_needed(smallest: int, *, steps: int, batch_size: int) -> int:
    """Count the epochs that the client with the fewest examples goes through in a round.

    >>> epochs_needed(100, steps=20, batch_size=50)
    10
    """
    checks.count("batch_size", batch_size)
    return -(-steps // steps_of_an_epoch(smallest, batch_size))


def steps_of_an_epoch(size: Any, batch_size: int) -> Any:
    """Count the batches of one epoch, at least 1; a known size gives an integer.

    >>> steps_of_an_epoch(101, 50), steps_of_an_epoch(0, 50)
    (3, 1)
    """
    batches = -(-size // batch_size)
    return max(batches, 1) if isinstance(size, int) else jnp.maximum(batches, 1)


def own_keys(key: Key[Array, ""], model_state: PyTree) -> PyTree:
    """Make the keys in a model state specific to this client and round; other leaves stay.

    Otherwise all clients would draw the same noise, and the same again in every round. Legacy keys
    (``jax.random.PRNGKey``) are plain integers to JAX: they cannot be told from counters.

    >>> own_keys(jax.random.key(0), {"step": 3})
    {'step': 3}
    """
    salt = jax.random.bits(jax.random.fold_in(key, 2))

    def fold(leaf: Leaf) -> Leaf:
        if not is_key(leaf):
            return leaf
        folded = jax.vmap(lambda k: jax.random.fold_in(k, salt))(leaf.reshape(-1))
        return folded.reshape(leaf.shape)

    return jax.tree.map(fold, model_state)
