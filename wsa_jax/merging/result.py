"""What every merging method returns, and how one says that it does not apply."""

from typing import NamedTuple

from jaxtyping import PyTree

from wsa_jax.types import Json


class NotAdmittedError(ValueError):
    """A method does not apply to these models or to so little data; the message is one line.

    `merge_table` leaves such a method's line empty where methods were not chosen by name.
    """


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
