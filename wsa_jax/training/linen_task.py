"""One line from a Linen module to a `Task`, for texts, vectors and graphs."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, PyTree

from wsa_jax.door import door
from wsa_jax.models.graph import Graph
from wsa_jax.runs.described import described
from wsa_jax.training.module_options import Loss, Options
from wsa_jax.training.task import Apply, Task
from wsa_jax.types import Inputs, Json, Leaf


@door
def linen_task(
    module: nn.Module,
    example: Inputs,
    *,
    loss: Loss = "cross_entropy",
    padding_label: int | None = None,
) -> Task:
    """Make the task of a Linen module, for inputs that are no images; for these `classification`.

    Args:
      module: its call takes inputs ``[batch, ...]``, and ``train`` if it has that argument.
      example: inputs of any values, ``[1, ...]``, as arrays or shapes; they say what `init` gets.
      loss: ``"cross_entropy"`` of integer labels, ``[batch]`` or one for each token; or
        ``"squared_error"`` of numbers.
      padding_label: tokens with this label enter no loss and no metric; None for none.

    Guarantees: collections other than params are the model state; dropout draws from the step's
    key. Make it once: jitted callers compile again for a new one.

    Raises:
      ValueError: a padding label with the squared error.

    >>> from wsa_jax.models import TextEncoder
    >>> model = TextEncoder(vocabulary=9, width=4, depth=1, heads=2, hidden=4, num_classes=3)
    >>> task = linen_task(model, jnp.zeros((1, 5), int))
    >>> shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    >>> shapes["Dense_0"]["kernel"].shape
    (4, 3)
    """
    options = Options(loss=loss, info=None, augmentation="none", padding_label=padding_label)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), example)
    init, apply = _linen_functions(module, shapes)
    return options.task(init, apply, described(module))


@door
def node_task(module: nn.Module, graph: Graph) -> Task:
    """Make the task of classifying the nodes of one graph with a Linen module.

    Inputs are numbers of nodes ``[batch]``, and labels their classes: the module sees the whole
    graph at each step, and the loss is of the batch's nodes. Data sets, clients and splits are sets
    of nodes, as of images elsewhere.

    Args:
      module: its call takes a `Graph`, and ``train`` if it has that argument, and returns logits
        ``[nodes, classes]``.
      graph: what all of them see (`wsa_jax.models.graph` makes and checks one).

    Guarantees: as `linen_task`. The graph is part of the task: federated clients all see it.

    Raises:
      ValueError: nodes that the graph does not have, before the first step.

    >>> from wsa_jax.models import GCN, graph
    >>> path = graph(jnp.eye(3), senders=[0, 1, 1, 2], receivers=[1, 0, 2, 1])
    >>> task = node_task(GCN(features=(4, 2)), path)
    >>> params, state = jax.eval_shape(task.init, jax.random.key(0))
    >>> jax.eval_shape(task.logits, params, state, jnp.array([0, 2])).shape
    (2, 2)
    """
    options = Options(loss="cross_entropy", info=None, augmentation="none", padding_label=None)
    on_device = jax.tree.map(jnp.asarray, graph)
    init, on_graph = _linen_functions(module, on_device)

    def apply(params: PyTree, model_state: PyTree, nodes: Inputs, train: bool, key: Array | None):
        logits, model_state = on_graph(params, model_state, on_device, train, key)
        return logits[nodes], model_state

    def check(nodes: Array | np.ndarray, what: str) -> None:
        if isinstance(nodes, jax.core.Tracer) or not jnp.size(nodes):
            return
        if not jnp.issubdtype(nodes.dtype, jnp.integer):
            raise ValueError(f"nodes of {what} are {nodes.dtype}; give their numbers, integers")
        low, high, count = int(nodes.min()), int(nodes.max()), graph.nodes.shape[0]
        if low < 0 or high >= count:
            raise ValueError(
                f"node {low if low < 0 else high} of {what} is not in the graph, which has "
                f"{count}; give numbers 0 .. {count - 1}"
            )

    name = f"{described(module)} on {described(graph)}"
    return options.task(init, apply, name)._replace(check_inputs=check)


def _linen_functions(
    module: nn.Module, example: Inputs
) -> tuple[Callable[[Array], tuple[PyTree, PyTree]], Apply]:
    """`init` and `apply` of a `Task`."""
    takes_train = "train" in inspect.signature(module.__call__).parameters

    def mode(train: bool) -> Json:
        return {"train": train} if takes_train else {}

    def init(key: Array) -> tuple[PyTree, PyTree]:
        inputs = jax.tree.map(_example, example)
        variables = dict(module.init(key, inputs, **mode(False)))
        return variables.pop("params"), variables

    def apply(
        params: PyTree, model_state: PyTree, inputs: Inputs, train: bool, key: Array | None
    ) -> tuple[PyTree, PyTree]:
        variables = {"params": params, **model_state}
        if key is None:
            return module.apply(variables, inputs, **mode(train)), model_state
        outputs, updated = module.apply(
            variables, inputs, mutable=list(model_state), rngs={"dropout": key}, **mode(train)
        )
        return outputs, dict(updated)

    return init, apply


def _example(leaf: Leaf) -> Array:
    shape_only = isinstance(leaf, jax.ShapeDtypeStruct)
    return jnp.zeros(leaf.shape, leaf.dtype) if shape_only else leaf
