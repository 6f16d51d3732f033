"""Activation matching: moments against NumPy, planted answers, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.merging.align.architectures import attention, draw, mlp, plant
from wsa_jax.merging.align import activation_matching, align, assign
from wsa_jax.merging.result import NotAdmittedError
from wsa_jax.merging.symmetry.spec import Tie, hand_written

KEY = jax.random.key(0)
INPUTS = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)


def mlp_activations(params, x):
    first = jax.nn.relu(x @ params["a"] + params["a/bias"][None])
    second = jax.nn.relu(first @ params["b"] + params["b/bias"][None])
    return {"first": first, "second": second}


def attention_activations(params, x):
    """Of each head's queries and values; positions count like examples."""
    return {
        "dots": jnp.einsum("bti,ihd->bthd", x, params["q"]) + params["q/bias"][None, None],
        "values": jnp.einsum("bti,ihd->bthd", x, params["v"]),
    }


@pytest.mark.parametrize("measure", ["product", "correlation"])
def test_a_planted_permutation_is_undone(measure):
    shapes, spec = mlp()
    first = draw(2, shapes)
    first["a/bias"] += 3.0  # Else a unit may be dead, and then any order of it is as good.
    first["b/bias"] += 6.0
    second = plant(0, spec, first)
    found = activation_matching(
        KEY, spec, first, second, mlp_activations, INPUTS, measure=measure, batch_size=5
    )
    for name, value in align(spec, second, found).items():
        np.testing.assert_array_equal(value, first[name])


@pytest.mark.parametrize("measure", ["product", "correlation"])
def test_scores_are_those_of_float64_numpy(measure):
    shapes, spec = mlp()
    first, second = draw(2, shapes), draw(3, shapes)
    # Means a thousand times the deviations: uncentred float32 sums would lose the correlation.
    first["b/bias"] += 1e4
    ours, theirs = (mlp_activations(params, INPUTS) for params in (first, second))
    several = [
        activation_matching(
            KEY, spec, first, second, mlp_activations, INPUTS, measure=measure, batch_size=size
        )
        for size in (5, 23, 100)
    ]
    for name in spec.names:
        a, b = np.asarray(ours[name], np.float64), np.asarray(theirs[name], np.float64)
        if measure == "correlation":
            a, b = a - a.mean(0), b - b.mean(0)
            a, b = (_normalised(x) for x in (a, b))
        else:
            a, b = a / np.sqrt(23), b / np.sqrt(23)
        _, best = assign(a.T @ b)
        for found in several:
            np.testing.assert_allclose(found.info["objective"][name], best, rtol=1e-3)


@pytest.mark.parametrize("measure", ["product", "correlation"])
def test_complex_activations_are_scored_by_the_real_part_of_their_products(measure):
    shapes, spec = mlp()
    first, second = draw(2, shapes), draw(3, shapes)

    def activations(params, x):
        values = mlp_activations(params, x)
        return {n: v + 1j * (2.0 - v**2) for n, v in values.items()}

    found = activation_matching(
        KEY, spec, first, second, activations, INPUTS, measure=measure, batch_size=5
    )
    for name in spec.names:
        a, b = (np.asarray(activations(p, INPUTS)[name], complex) for p in (first, second))
        if measure == "correlation":
            a, b = a - a.mean(0), b - b.mean(0)
            a, b = (_normalised(x) for x in (a, b))
        else:
            a, b = a / np.sqrt(23), b / np.sqrt(23)
        _, best = assign((a.conj().T @ b).real)
        np.testing.assert_allclose(found.info["objective"][name], best, rtol=1e-4)


def _normalised(x):
    norm = np.sqrt(np.square(np.abs(x)).sum(0))
    return np.divide(x, norm, out=np.zeros_like(x), where=norm > 0)


def test_nested_groups_are_paired_inside_the_heads_that_they_choose():
    shapes, spec = attention()
    first = draw(4, shapes)
    second = plant(4, spec, first)
    inputs = np.random.default_rng(1).normal(size=(4, 6, 5)).astype(np.float32)
    found = activation_matching(KEY, spec, first, second, attention_activations, inputs)
    for name, value in align(spec, second, found).items():
        np.testing.assert_array_equal(value, first[name])


def test_samples_are_drawn_by_the_key():
    shapes, spec = mlp()
    first, second = draw(2, shapes), draw(3, shapes)

    def objective(key, **settings):
        found = activation_matching(
            key, spec, first, second, mlp_activations, INPUTS, num_samples=10, **settings
        )
        assert found.info["samples"] == 10
        return found.info["objective"]

    assert objective(KEY) == objective(KEY) != objective(jax.random.key(1))


@pytest.mark.parametrize("settings", [{"batch_size": 5}, {"num_samples": 10}])
def test_a_pytree_of_inputs_is_as_its_arrays_side_by_side(settings):
    shapes, spec = mlp()
    first, second = draw(2, shapes), draw(3, shapes)

    def activations(params, x):
        return mlp_activations(params, jnp.concatenate([x["left"], x["right"]], axis=1))

    parts = {"left": INPUTS[:, :1], "right": INPUTS[:, 1:]}
    found = activation_matching(KEY, spec, first, second, activations, parts, **settings)
    alone = activation_matching(KEY, spec, first, second, mlp_activations, INPUTS, **settings)
    assert found.info["samples"] == alone.info["samples"] == settings.get("num_samples", 23)
    for name, order in alone.permutations.items():
        np.testing.assert_array_equal(found.permutations[name], order)
        np.testing.assert_allclose(found.info["objective"][name], alone.info["objective"][name])
    with pytest.raises(ValueError, match="or a pytree of arrays of one length"):
        activation_matching(KEY, spec, first, second, activations, parts | {"left": INPUTS[1:, :1]})


def mixing_activations(params, x):
    """Channels of tokens, and hidden units along which tokens are mixed, channel by channel."""
    channels = x @ params["embed"]
    hidden = jnp.tanh(jnp.einsum("btc,th->bch", channels, params["mix"]))
    return {"channels": channels, "hidden": hidden}


def mixing():
    shapes = {"embed": (3, 16), "mix": (4, 12), "back": (12, 4), "out": (16, 2)}
    ties = {
        "channels": [Tie(leaf="embed", axis=1), Tie(leaf="out", axis=0, role="consumed")],
        "hidden": [Tie(leaf="mix", axis=1), Tie(leaf="back", axis=0, role="consumed")],
    }
    first = draw(0, shapes)
    return first, hand_written(ties, first)


@pytest.mark.parametrize("measure", ["product", "correlation"])
@pytest.mark.parametrize("phase", [1.0, 1.0 + 0.5j])
def test_an_axis_of_another_group_is_brought_into_its_order(measure, phase):
    first, spec = mixing()
    second = plant(0, spec, first)
    # As many examples as channels: which axis is which is not told by its length.
    inputs = np.random.default_rng(2).normal(size=(16, 4, 3)).astype(np.float32)

    def activations(params, x):
        return {name: phase * value for name, value in mixing_activations(params, x).items()}

    found = activation_matching(KEY, spec, first, second, activations, inputs, measure=measure)
    for name, value in align(spec, second, found).items():
        np.testing.assert_array_equal(value, first[name])
    assert found.info["converged"]
    if measure == "correlation":
        np.testing.assert_allclose(list(found.info["objective"].values()), [16, 12], rtol=1e-5)


def test_a_group_without_an_axis_of_its_own_is_named():
    first, spec = mixing()
    inputs = np.random.default_rng(2).normal(size=(20, 4, 3)).astype(np.float32)

    def mixed_up(params, x):
        hidden = mixing_activations(params, x)["hidden"]
        return {"hidden": jnp.cumsum(hidden, axis=1)}  # No two channels are told apart.

    with pytest.raises(NotAdmittedError, match="hidden change with the order of group channels"):
        activation_matching(KEY, spec, first, first, mixed_up, inputs)


def test_errors_name_the_setting():
    shapes, spec = mlp()
    first = draw(2, shapes)

    def match(activations=mlp_activations, inputs=INPUTS, second=first, **settings):
        activation_matching(KEY, spec, first, second, activations, inputs, **settings)

    with pytest.raises(ValueError, match="no calibration data: inputs are empty"):
        match(inputs=INPUTS[:0])
    with pytest.raises(ValueError, match="measure 'cosine' is unknown"):
        match(measure="cosine")
    with pytest.raises(ValueError, match="num_samples 24 between 1 and the 23 examples"):
        match(num_samples=24)
    with pytest.raises(ValueError, match=r"activations of group first have shape \(23, 4\)"):
        match(activations=lambda params, x: {"first": x})
    with pytest.raises(ValueError, match="max_sweeps 0 is below 1"):
        match(max_sweeps=0)
    with pytest.raises(ValueError, match="group pixels is not in the spec"):
        match(activations=lambda params, x: {"pixels": x})
    with pytest.raises(ValueError, match="leaf a of the second model holds 28 NaN"):
        match(second=first | {"a": first["a"] * jnp.nan})
    with pytest.raises(ValueError, match="leaf c is only in the first model"):
        match(second={n: v for n, v in first.items() if n != "c"})
