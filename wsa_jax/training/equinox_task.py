"""One line from an Equinox module to a `Task`."""

import functools
import inspect
from typing import Any

import jax
from jaxtyping import Array, PyTree

from wsa_jax.data.augmentation import AugmentMode
from wsa_jax.data.registry import DatasetInfo
from wsa_jax.door import door, shown
from wsa_jax.extras import require
from wsa_jax.runs.described import described
from wsa_jax.training.module_options import Loss, Options
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs, Json


@door
def equinox_task(
    model: Any,
    *,
    loss: Loss = "cross_entropy",
    info: DatasetInfo | None = None,
    augmentation: AugmentMode = "none",
    padding_label: int | None = None,
) -> Task:
    """Make the task of an Equinox module, which is called on one example at a time by `vmap`.

    Args:
      model: ``key -> module``, or ``key -> (module, state)`` as `eqx.nn.make_with_state` returns,
        called at each `init`; or a module, whose own weights each `init` returns.
      loss: ``"cross_entropy"`` of integer labels, ``[batch]`` or one for each token; or
        ``"squared_error"`` of numbers.
      info: inputs are images of this data set, as they are stored, ``[height, width, channels]``
        each; None hands inputs on as given.
      augmentation: of images in training: ``"none"``, ``"batch"`` or ``"example"``.
      padding_label: tokens with this label enter no loss and no metric; None for none.

    Guarantees: parameters are the module's floating-point arrays, and are a module themselves; its
    other arrays and functions are the task's. The batch axis is named ``"batch"``, as BatchNorm
    wants; a call that takes ``key`` gets one of its own for each example, in training. `eqx.nn.
    inference_mode` is on in evaluation. Make the task once: jitted callers compile again for a new
    one. A run is resumed by a module of equal fields, or by a maker of the same name, a lambda also
    of the same code: where a named maker changes what it makes, give another directory.

    Raises:
      MissingExtraError: Equinox is not installed.
      ValueError: what is neither a module nor makes one, augmentation without info, or a padding
        label with the squared error.

    >>> import equinox as eqx, jax.numpy as jnp
    >>> task = equinox_task(lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key))
    >>> params, model_state = task.init(jax.random.key(0))
    >>> task.logits(params, model_state, jnp.ones((2, 4))).shape
    (2, 3)
    """
    require("equinox", "equinox_task")
    import equinox as eqx

    options = Options(loss=loss, info=info, augmentation=augmentation, padding_label=padding_label)
    given = isinstance(model, eqx.Module)
    if not given and not callable(model):
        raise ValueError(
            f"model {shown(model)} is no Equinox module and makes none; give key -> module"
        )

    def make(key: Array) -> tuple[Any, Json]:
        # A module may be callable itself: only what is none makes one.
        made = model if given else model(key)
        module, state = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        return module, {} if state is None else {"state": state}

    template, _ = make(jax.random.key(0))
    if not isinstance(template, eqx.Module):
        raise ValueError(f"model makes {shown(template)}; give key -> Equinox module")
    takes_key = "key" in inspect.signature(type(template).__call__).parameters
    static = eqx.partition(template, eqx.is_inexact_array)[1]

    def init(key: Array) -> tuple[PyTree, PyTree]:
        module, model_state = make(key)
        return eqx.filter(module, eqx.is_inexact_array), model_state

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, train: bool, key: Array | None
    ) -> tuple[Array, PyTree]:
        drawn = jax.random.split(jax.random.key(0) if key is None else key)
        module = eqx.nn.inference_mode(eqx.combine(params, static), value=not train)
        inputs = options.prepared(params, inputs, None if key is None else drawn[1])
        # A copy: Equinox refuses a state that was used before, and callers may use theirs again.
        state = jax.tree.map(lambda leaf: leaf, model_state.get("state"))

        def one(example: PyTree, key: Array) -> Any:
            arguments = (example,) if state is None else (example, state)
            return module(*arguments, **({"key": key} if takes_key else {}))

        count = len(jax.tree.leaves(inputs)[0])
        over = functools.partial(jax.vmap, in_axes=(0, 0), axis_name="batch")
        keys = jax.random.split(drawn[0], count)
        if state is None:
            return over(one)(inputs, keys), model_state
        outputs, moved = over(one, out_axes=(0, None))(inputs, keys)
        return outputs, {"state": moved} if train else model_state

    return options.task(init, apply, described(static if given else model))
