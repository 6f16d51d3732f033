"""What every merging method returns."""

from typing import Any, NamedTuple

from jaxtyping import PyTree


class MergeResult(NamedTuple):
    """A merged model, and what one wants to know of how it came about.

    Attributes:
      params: parameters of the merged model, structure and dtypes of the models'.
      model_state: its non-parameter collections (BatchNorm statistics); ``{}`` for models without.
      info: figures by name (loss curve, objective, steps), arrays and plain values; never needed to
        go on.
    """

    params: PyTree
    model_state: PyTree
    info: dict[str, Any]
