"""What every merging method returns, and how one says that it does not apply."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax.leaves import key_path
from wsa_jax.types import Json


class NotAdmittedError(ValueError):
    """A method does not apply to these models or to so little data; the message is one line.

    `merge_table` leaves such a method's line empty where methods were not chosen by name.
    """


def check_real(params: PyTree, what: str) -> None:
    """Raise a NotAdmittedError that names the first complex leaf, for what is of real numbers.

    >>> check_real({"w": np.ones(2), "phase": np.ones(2, np.complex64)}, "a sign")
    Traceback (most recent call last):
    wsa_jax.merging.result.NotAdmittedError: leaf phase is of type complex64, and a sign is of ...
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kind = getattr(leaf, "dtype", np.dtype(np.float32))
        if jnp.issubdtype(kind, jnp.complexfloating):
            raise NotAdmittedError(
                f"leaf {key_path(path)} is of type {kind}, and {what} is of real numbers; keep its "
                "real and imaginary parts in leaves of their own"
            )


class MergeResult(NamedTuple):
    """A merged model, and diagnostics of how it was obtained.

    Attributes:
      params: parameters of the merged model, in the structure and dtypes of the models'.
      model_state: its non-parameter collections (BatchNorm statistics); ``{}`` for models without.
      info: diagnostics by name (loss curve, objective, steps), arrays and plain values; not needed
        to use the model.
    """

    params: PyTree
    model_state: PyTree
    info: Json
