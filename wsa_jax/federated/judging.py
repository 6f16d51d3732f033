"""Evaluation of a federated model: the server's, and each client's own on its own examples."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from wsa_jax.federated.local_leaves import ClientMemory, with_leaves
from wsa_jax.federated.mesh import local_copy
from wsa_jax.federated.partition import Partition
from wsa_jax.federated.round import ServerState
from wsa_jax.federated.train_clients import RoundPlan
from wsa_jax.training.evaluation import evaluate, zero_metrics
from wsa_jax.training.task import Batch, Metrics, Task, take
from wsa_jax.types import Examples, Json


class HeldOut(NamedTuple):
    """Examples to evaluate on, and which of them are each client's own, if that is known."""

    examples: Examples
    partition: Partition | None


def judged(plan: RoundPlan, held_out: HeldOut, state: ServerState) -> Json:
    """Means of the task's metrics: of the model to keep, and over clients of each one's own.

    Where leaves stay at the clients, the server has no whole model, so only theirs are judged.
    """
    server, params, model_state = local_copy((state.server, state.params, state.model_state))
    params = plan.algorithm.evaluated(server, params)
    found: Json = {}
    if plan.keep_local is None:
        size = plan.execution.evaluation_batch
        sums = evaluate(plan.task, params, model_state, *held_out.examples, batch_size=size)
        found |= sums.means()
    if held_out.partition is not None:
        memory = _memory(plan, state)
        found |= over_clients(
            client_metrics(
                plan.task,
                params,
                model_state,
                memory,
                *held_out.examples,
                jnp.asarray(held_out.partition.indices),
                jnp.asarray(held_out.partition.sizes),
                batch_size=plan.execution.evaluation_batch,
            )
        )
    return found


def over_clients(sums: Metrics) -> Json:
    """Mean over clients of each metric, and of loss and accuracy over the worst tenth of them.

    A client counts as much as any other, whatever the number of its examples; one without any does
    not count. A tenth is at least one client.

    >>> sums = Metrics(jnp.array([2.0, 9.0]), jnp.array([4.0, 1.0]), jnp.array([4.0, 3.0]))
    >>> {name: round(float(value), 4) for name, value in over_clients(sums).items()}
    {'client_loss': 1.75, 'client_accuracy': 0.6667, 'client_loss_worst': 3.0, ...}
    """
    tested = np.asarray(sums.count) > 0
    if not tested.any():
        return {}
    means = {
        name: np.sort(np.asarray(values)[tested].astype(np.float64))
        for name, values in sums.means().items()
    }
    tenth = max(int(tested.sum()) // 10, 1)
    found: Json = {f"client_{name}": values.mean() for name, values in means.items()}
    found["client_loss_worst"] = means["loss"][-tenth:].mean()
    if "accuracy" in means:
        found["client_accuracy_worst"] = means["accuracy"][:tenth].mean()
    return found


@functools.partial(jax.jit, static_argnames=("task", "batch_size"))
def client_metrics(
    task: Task,
    params: PyTree,
    model_state: PyTree,
    memory: ClientMemory,
    inputs: PyTree,
    labels: Array,
    indices: Array,
    sizes: Array,
    *,
    batch_size: int,
) -> Metrics:
    """Sum a task's metrics over each client's own examples, of its own model, ``[clients]``."""
    zero = zero_metrics(task, params, model_state, inputs, labels)
    capacity = indices.shape[1]
    batch_size = min(batch_size, max(capacity, 1))
    places = jnp.arange(-(-capacity // batch_size) * batch_size).reshape(-1, batch_size)

    def one(client: tuple[ClientMemory, Array, Array]) -> Metrics:
        own, rows, size = client
        whole = with_leaves(params, own.params)
        statistics = with_leaves(model_state, own.model_state)

        def add(total: Metrics, place: Array) -> tuple[Metrics, None]:
            chosen = rows[jnp.minimum(place, capacity - 1)]
            mask = (place < size).astype(jnp.float32)
            batch = Batch(take(inputs, chosen), take(labels, chosen), mask)
            found = task.metrics(whole, statistics, batch)
            if total.correct is None:
                found = found._replace(correct=None)
            return jax.tree.map(jnp.add, total, found), None

        return jax.lax.scan(add, zero, places)[0]

    return jax.lax.map(one, (memory, indices, sizes))


def _memory(plan: RoundPlan, state: ServerState) -> ClientMemory:
    """The leaves that stay at the clients, on this process's first device; none without a rule."""
    if plan.keep_local is None:
        return ClientMemory((), {}, {})
    memory = state.clients._replace(algorithm=())
    if plan.execution.mesh is None:
        return memory
    whole = NamedSharding(plan.execution.mesh, PartitionSpec())
    return local_copy(jax.jit(lambda tree: tree, out_shardings=whole)(memory))
