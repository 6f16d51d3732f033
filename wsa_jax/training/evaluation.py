"""Sums of a task's metrics over a data set."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.training.checks import check_data
from wsa_jax.training.task import Batch, Metrics, Task, take
from wsa_jax.types import Inputs


@door
def evaluate(
    task: Task,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Shaped[ArrayLike, "examples ..."],
    *,
    batch_size: int = 500,
) -> Metrics:
    """Sum a task's metrics over a data set, in batches of bounded memory.

    `Metrics.means` gives mean loss and accuracy; an empty data set counts 0.

    Raises:
      ValueError: inputs and labels of unequal number, labels that do not fit the task's logits (if
        they have values here, not under a trace), or a batch size that is no positive integer.
    """
    checks.count("batch_size", batch_size)
    check_data(task, params, model_state, {"the data": (inputs, labels)})
    return _evaluate(task, params, model_state, inputs, labels, batch_size=int(batch_size))


@functools.partial(jax.jit, static_argnames=("task", "batch_size"))
def _evaluate(
    task: Task,
    params: PyTree,
    model_state: PyTree,
    inputs: Inputs,
    labels: Array,
    *,
    batch_size: int,
) -> Metrics:
    count = labels.shape[0]
    zero = zero_metrics(task, params, model_state, inputs, labels)
    if not count:
        return zero
    batch_size = min(batch_size, count)

    def body(total: Metrics, index: Array) -> tuple[Metrics, None]:
        rows = index * batch_size + jnp.arange(batch_size)
        rows_of = functools.partial(take, rows=rows, mode="clip")
        mask = (rows < count).astype(jnp.float32)
        found = task.metrics(params, model_state, Batch(rows_of(inputs), rows_of(labels), mask))
        if total.correct is None:
            found = found._replace(correct=None)
        return jax.tree.map(jnp.add, total, found), None

    return jax.lax.scan(body, zero, jnp.arange(-(-count // batch_size)))[0]


def zero_metrics(
    task: Task, params: PyTree, model_state: PyTree, inputs: Inputs, labels: Array
) -> Metrics:
    """Sums over no examples, of a task's own structure; ``correct`` is None where undefined.

    It is undefined where it depends on nothing: a task that counts no correct answers may return
    None or a constant 0, jitted or not, and an accuracy of 0 would be a wrong answer.
    """
    one_row = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), (inputs, labels)
    )
    batch = Batch(one_row[0], one_row[1], jnp.ones(1))
    shapes = jax.eval_shape(task.metrics, params, model_state, batch)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def correct(params: PyTree, model_state: PyTree, batch: Batch) -> Array | None:
        return task.metrics(params, model_state, batch).correct

    traced = jax.make_jaxpr(correct)(params, model_state, batch).jaxpr
    defined = any(_needed(traced, [True] * len(traced.outvars)))
    return zero if defined else zero._replace(correct=None)


def _needed(traced: Any, wanted: list[bool]) -> list[bool]:
    """Which inputs of a jaxpr the wanted outputs depend on; looks into jitted functions."""
    needed = {id(x) for x, is_wanted in zip(traced.outvars, wanted, strict=True) if is_wanted}
    for equation in reversed(traced.eqns):
        made = [id(variable) in needed for variable in equation.outvars]
        if any(made):
            used = [True] * len(equation.invars)
            if equation.primitive.name in ("jit", "pjit"):
                used = _needed(equation.params["jaxpr"].jaxpr, made)
            needed |= {id(x) for x, is_used in zip(equation.invars, used, strict=True) if is_used}
    return [id(variable) in needed for variable in traced.invars]
