"""Random programs of a few steps: whatever a traced spec allows keeps the function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.symmetry.equivalence import check_equivalence
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import permute_units, scale_units


def _step(kind, choice, weight, h, other):
    """One step on ``[2, 12]``, with another array of that shape at hand."""
    groups = h.reshape(2, (2, 3, 4)[choice], -1)
    _, count, size = groups.shape
    if kind == 0:
        return h @ weight(12, 12)
    if kind == 1:
        return jax.nn.relu(h)
    if kind == 2:
        return h * weight(1, 12) + weight(1, 12)
    if kind == 3:
        return h + other
    if kind == 4:
        return h * jnp.tanh(other)
    if kind == 5:  # halves of two arrays
        return jnp.concatenate([jnp.split(h, 2, -1)[choice % 2], other[:, :6]], -1)
    if kind == 6:  # a norm in groups
        return (groups - groups.mean(-1, keepdims=True)).reshape(2, 12)
    if kind == 7:  # a shuffle
        return groups.swapaxes(1, 2).reshape(2, 12)
    if kind == 8:  # maxout, and back to 12 by one kernel
        return groups.max(1 + choice % 2) @ weight((size, count)[choice % 2], 12)
    if kind == 9:  # one kernel a group, or one for all
        kernel = weight(count, size, size) if choice % 2 else weight(1, size, size)
        kernel = jnp.broadcast_to(kernel, (count, size, size))
        return jnp.einsum("bgc,gcd->bgd", groups, kernel).reshape(2, 12)
    if kind == 10:
        scores = jax.nn.softmax(jnp.einsum("bgc,bhc->bgh", groups, groups))
        return jnp.einsum("bgh,bhc->bgc", scores, groups).reshape(2, 12)
    if kind == 11:
        return jnp.pad(h[:, 1:-1], ((0, 0), (1, 1)))
    return _indexed_step(kind, choice, weight, groups, h, other)


def _indexed_step(kind, choice, weight, groups, h, other):
    """Steps that cut inside each group, or read and write by index."""
    half = groups.shape[-1] // 2
    first, second = groups[..., :half], groups[..., half:]
    if kind == 12:  # rotary embeddings: one half turned by the other
        return jnp.concatenate([-second, first], -1).reshape(2, 12)
    if kind == 13:  # a part of each group alone
        first = (jnp.tanh(first), first * weight(1, half)[None], jnp.cumsum(first, -1))[choice]
        return jnp.concatenate([first, second], -1).reshape(2, 12)
    if kind == 14:
        written = (other[1], 0.0, weight(1, 12)[0])[choice]
        return h.at[choice % 2].set(written)
    if kind == 15:
        rows = h.at[jnp.array([1, 0])]
        return (rows.add(other), rows.max(other), h.at[:, 3:6].add(other[:, 3:6]))[choice]
    if kind == 16:
        units = list(jnp.moveaxis(groups, 1 + choice % 2, 0))
        return jnp.stack(units[::-1], 1).reshape(2, 12)
    if kind == 17:
        rows = jnp.array([1, 1])
        return jax.ops.segment_sum(h, rows, 2) + jax.ops.segment_max(other, rows, 2).clip(-9)
    if kind == 18:
        return jax.lax.sort((other, h), dimension=0, num_keys=1)[1]
    if kind == 19:
        return jnp.abs(jnp.fft.fft(h, axis=0))
    largest = jnp.argmax(h, -1)  # units that are read where others are largest
    if choice == 0:
        return jax.nn.one_hot(largest, 12) * other
    if choice == 1:
        return jnp.take(weight(12, 12), largest, axis=0)
    values, index = jax.lax.top_k(jax.nn.softmax(h), 3)
    return jnp.take_along_axis(other, index, -1) * values @ weight(3, 12)


def _program(seed, kinds=12):
    """A function and its parameters; the first calls of weights draw them."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, kinds, 7).tolist()
    choices = rng.integers(0, 3, 7).tolist()
    places = rng.random((7, 2)).tolist()

    def run(weight, x):
        seen = [x @ weight(5, 12), x @ weight(5, 12)]
        for kind, choice, (here, there) in zip(kinds, choices, places, strict=True):
            recent = seen[-3:]
            h, other = recent[int(here * len(recent))], seen[int(there * len(seen))]
            seen.append(_step(kind, choice, weight, h, other))
        return seen[-1] @ weight(12, 3) + jnp.tanh(seen[-2]) @ weight(12, 3)

    params = {}

    def draw(*shape):
        values = rng.normal(size=shape) / np.sqrt(shape[-2])
        params[f"w{len(params):02}"] = np.asarray(values, np.float32)
        return params[f"w{len(params) - 1:02}"]

    jax.eval_shape(lambda x: run(draw, x), jax.ShapeDtypeStruct((2, 5), jnp.float32))

    def apply(params, x):
        leaves = iter(params.values())
        return run(lambda *shape: next(leaves), x)

    return apply, params


@functools.cache
def _traced(seed, kinds=12):
    apply, params = _program(seed, kinds)
    return apply, params, trace_spec(apply, params, jax.ShapeDtypeStruct((2, 5), jnp.float32))


# Programs of all kinds of steps have those of the first twelve, too; half of these are long.
@pytest.mark.parametrize(
    ("seed", "kinds"),
    [(seed, 21) for seed in range(16)]
    + [pytest.param(seed, 12, marks=[pytest.mark.long] * (seed % 2)) for seed in range(16)],
)
def test_moves_of_a_random_programs_units_keep_it(seed, kinds):
    apply, params, spec = _traced(seed, kinds)
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.normal(size=(2, 5)), np.float32)
    orders, scales = {}, {}
    for group in spec.groups:
        shape = (group.size,)
        shape = shape if group.parent is None else (spec[group.parent].size, *shape)
        orders[group.name] = rng.permuted(np.broadcast_to(np.arange(group.size), shape), axis=-1)
        if group.admits != "permutation":
            scales[group.name] = np.exp(0.5 * rng.normal(size=shape)).astype(np.float32)
    move = jax.jit(lambda params: permute_units(spec, scale_units(spec, params, scales), orders))
    check_equivalence(jax.jit(apply), params, move(params), x, rtol=2e-3)


def test_random_programs_have_something_to_move():
    groups = [group for seed in range(16) for group in _traced(seed)[-1].groups]
    assert {group.admits for group in groups} == {"linear", "scaling", "permutation"}
    assert any(group.parent for group in groups) and len(groups) >= 16
