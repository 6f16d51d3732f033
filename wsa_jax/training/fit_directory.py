"""What `wsa_jax.training.fit` keeps in its run directory: what the run's identity is."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax.runs.identity import digest, run_identity
from wsa_jax.scope.scope import WeightScope
from wsa_jax.types import Examples, Json


def fit_identity(
    key: Array,
    task_settings: tuple[tuple[str, str], ...],
    settings: Any,
    rates: np.ndarray,
    target: WeightScope | None,
    strength: Any,
    initial: PyTree,
    data: Examples,
) -> Json:
    """Return what must be the same for a run to be resumed, as JSON holds it.

    How its models are run (`map_models`) and how often it is saved are not part of it.
    """
    wsa = None
    if target is not None:
        wsa = {
            "strength": strength,
            "layers": list(target.names),
            "mean": np.asarray(target.mean).tolist(),
            "std": np.asarray(target.std).tolist(),
        }
    # The selection rule is a function; the target's layers say what it selects. Runs from before
    # there was a choice of directions do not say theirs.
    said: Json = {k: v for k, v in dataclasses.asdict(settings).items() if k != "select"}
    if said.get("direction") == "weights||target":
        del said["direction"]
    parts = {
        "settings": said,
        "learning rates": digest(rates),
        "weight scope regularization": wsa,
        "initial model": digest(*jax.tree.leaves(initial)),
        "data": digest(*jax.tree.leaves(data)),
    }
    return run_identity("fit", key, task_settings, parts)
