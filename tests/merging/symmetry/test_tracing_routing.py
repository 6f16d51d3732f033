"""Experts chosen by index: they may change places, as long as indices only look things up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.symmetry.moves import checked_spec, summary
from wsa_jax.merging.symmetry.tracing import trace_spec

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(7, 5)), jnp.float32)
PARAMS = {
    name: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for name, shape in {"r": (5, 4), "a": (4, 5, 6), "b": (4, 6, 3), "o": (3, 2)}.items()
}
EXPERTS = {"r": (4, "permutation", None)}
NESTED = EXPERTS | {"a/inner": (6, "scaling", "r"), "b": (3, "linear", None)}


def _gates(p, x):
    return jax.nn.softmax(x @ p["r"])


def _all_experts(p, x, weights):
    """Every expert computes, and the weights of those not chosen are 0."""
    h = jax.nn.relu(jnp.einsum("td,edf->tef", x, p["a"]))
    return jnp.einsum("tef,efd,te->td", h, p["b"], weights) @ p["o"]


def _chosen_experts(p, x, index, weights):
    """Only the kernels of the chosen experts are read."""
    h = jax.nn.relu(jnp.einsum("td,tkdf->tkf", x, p["a"][index]))
    return jnp.einsum("tkf,tkfd,tk->td", h, p["b"][index], weights) @ p["o"]


def _one_hot(p, x):
    values, index = jax.lax.top_k(_gates(p, x), 2)
    return _all_experts(p, x, (jax.nn.one_hot(index, 4) * values[..., None]).sum(1))


def _gathered(p, x):
    values, index = jax.lax.top_k(_gates(p, x), 2)
    return _chosen_experts(p, x, index, values / values.sum(-1, keepdims=True))


def _switch(p, x):
    gates = _gates(p, x)
    return _all_experts(p, x, jax.nn.one_hot(jnp.argmax(gates, -1), 4) * gates)


def _clipped(p, x):
    index = jnp.argmax(x @ p["r"], -1)
    return jnp.tanh(jnp.take(p["b"][:, 0], index, axis=0, mode="clip")) @ p["o"]


def _along(p, x):
    logits = x @ p["r"]
    return jnp.take_along_axis(logits, jnp.argmin(logits, -1)[:, None], -1)


@pytest.mark.parametrize("function", [_one_hot, _gathered, _switch, _clipped, _along])
def test_experts_are_a_group(function):
    with jax.numpy_rank_promotion("allow"):
        found = summary(checked_spec(function, PARAMS, X, rtol=1e-3))
    expected = NESTED if function in (_one_hot, _switch) else EXPERTS
    assert expected.items() <= found.items()


def _equal_gates(p, x):
    """Of gates that a ReLU sets to 0, the first are chosen: the order decides."""
    values, index = jax.lax.top_k(jax.nn.relu(x @ p["r"]), 3)
    return _chosen_experts(p, x, index, values + 1)


def _a_number(p, x):
    return jax.lax.top_k(x @ p["r"], 3)[1].astype(jnp.float32) @ p["o"]


def _another_table(p, x):
    return jnp.concatenate([p["b"][:, 0], p["b"][:, 1]])[jnp.argmax(x @ p["r"], -1) + 4]


def _returned(p, x):
    return jnp.argmax(x @ p["r"], -1)


def _in_a_branch(p, x):
    index = jnp.argmax(x @ p["r"], -1)
    return jax.lax.cond(x.sum() > 0, lambda i: i, lambda i: 0 * i, index)


def _in_a_loop(p, x):
    turn = lambda total, row: (total + jnp.argmax(row @ p["r"]), jnp.argmax(row @ p["r"]))  # noqa: E731
    return jax.lax.scan(turn, 0, x)


def _compared(p, x):
    first, second = (jnp.argmax(y @ p["r"], -1) for y in (x, x[::-1]))
    return (first < second) * 1.0


@pytest.mark.parametrize(
    "function",
    [_equal_gates, _a_number, _another_table, _returned, _in_a_branch, _in_a_loop, _compared],
)
def test_experts_whose_number_counts_stay(function):
    with jax.numpy_rank_promotion("allow"):
        spec = trace_spec(function, PARAMS, X)
        checked_spec(function, PARAMS, X, rtol=1e-3)
    assert not any((tie.leaf, tie.axis) == ("r", 1) for group in spec.groups for tie in group.ties)
    reasons = {(pin.leaf, pin.axis): pin.reason for pin in spec.pinned}
    assert reasons["r", 1].split(" at ")[0] in ("argmax", "top_k", "an output")
