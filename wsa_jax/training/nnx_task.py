"""One line from an NNX module to a `Task`."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.data.augmentation import AugmentMode
from wsa_jax.data.registry import DatasetInfo
from wsa_jax.door import door, shown, taken_by
from wsa_jax.leaves import is_key
from wsa_jax.runs.described import described
from wsa_jax.runs.identity import text_digest
from wsa_jax.training.module_options import Loss, Options
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs


@door
def nnx_task(
    model: Any,
    *,
    loss: Loss = "cross_entropy",
    info: DatasetInfo | None = None,
    augmentation: AugmentMode = "none",
    padding_label: int | None = None,
) -> Task:
    """Make the task of an NNX module.

    Args:
      model: ``rngs -> module``, for example a module's class with its sizes filled in, called with
        `nnx.Rngs` at each `init`; or a module, whose own weights each `init` returns.
      loss: ``"cross_entropy"`` of integer labels, ``[batch]`` or one for each token; or
        ``"squared_error"`` of numbers.
      info: inputs are images of this data set, as they are stored; None hands inputs on as given.
      augmentation: of images in training: ``"none"``, ``"batch"`` or ``"example"``.
      padding_label: tokens with this label enter no loss and no metric; None for none.

    Guarantees: parameters are the `nnx.State` of `nnx.Param`; all other variables are the model
    state, but for the streams of random numbers, which are derived from the step's key. Modules are
    in train or eval mode as `nnx.Module.train` and `eval` set it; a call that takes ``train`` gets
    it. A given module is not changed. Make the task once: jitted callers compile again for a new
    one. A run is resumed by a module of equal attributes, or by a maker of the same name, a lambda
    also of the same code: where a named maker changes what it makes, give another directory.

    Raises:
      ValueError: what is neither a module nor makes one, augmentation without info, or a padding
        label with the squared error.

    >>> from flax import nnx
    >>> task = nnx_task(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
    >>> params, model_state = task.init(jax.random.key(0))
    >>> task.logits(params, model_state, jnp.ones((2, 4))).shape
    (2, 3)
    """
    # Imported late: it takes a fifth of a second, and no other part needs it.
    from flax import nnx

    options = Options(loss=loss, info=info, augmentation=augmentation, padding_label=padding_label)
    given = isinstance(model, nnx.Module)
    if not given and not callable(model):
        raise ValueError(
            f"model {shown(model)} is no NNX module and makes none; give rngs -> module"
        )

    def make(key: Array) -> Any:
        with taken_by("model, which should make an NNX module,", "nnx.Rngs"):
            made = model if given else model(nnx.Rngs(key))
        if not isinstance(made, nnx.Module):
            raise ValueError(
                f"model makes {shown(made)}; give rngs -> NNX module (of a Linen module, the task "
                "is linen_task or classification)"
            )
        return made

    def parts(module: Any) -> Any:
        """What defines it, parameters, streams of random numbers, the rest."""
        return nnx.split(module, nnx.Param, nnx.RngState, ...)

    template = nnx.eval_shape(lambda: make(jax.random.key(0)))
    takes_train = "train" in inspect.signature(type(template).__call__).parameters
    streams = parts(template)[2]
    template.eval()
    in_eval = parts(template)[0]
    template.train()
    in_training = parts(template)[0]

    def init(key: Array) -> tuple[PyTree, PyTree]:
        _, params, _, rest = parts(make(key))
        return params, {"state": rest} if jax.tree.leaves(rest) else {}

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        drawn = jax.random.split(jax.random.key(0) if key is None else key)
        # Variables made anew: NNX lets only those change that are of this trace.
        rest = jax.tree.map(lambda leaf: leaf, model_state.get("state", nnx.State({})))
        definition = in_training if train else in_eval
        module = nnx.merge(definition, params, _fresh(streams, drawn[0]), rest)
        mode = {"train": train} if takes_train else {}
        inputs = options.prepared(params, inputs, None if key is None else drawn[1])
        outputs = module(inputs, **mode)
        moved = {"state": parts(module)[3]} if model_state else {}
        return outputs, moved if train else model_state

    # A digest, since what defines a module says much that is of NNX alone.
    name = described(type(template))
    name = f"{name} ({text_digest(described(in_training))})" if given else described(model)
    return options.task(init, apply, name)


def _fresh(streams: PyTree, key: Array) -> PyTree:
    """The streams of random numbers of a module, begun anew from one key."""
    leaves, structure = jax.tree.flatten(streams)
    begun = [
        jax.random.split(jax.random.fold_in(key, index), leaf.shape)
        if is_key(leaf)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for index, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, begun)
