"""AdaMerging: loss and gradient against float64 NumPy, and what it finds where that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import LearningSettings, ada_merge
from wsa_jax.merging.combine.ada_merge import entropy_loss

RNG = np.random.default_rng(0)
SHAPES = {"a": (4, 5), "b": (5, 3)}
BASE, FIRST, SECOND = (
    {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for _ in range(3)
)
INPUTS = RNG.normal(size=(24, 4)).astype(np.float32)


def logits(params, model_state, inputs):
    return jnp.tanh(inputs @ params["a"]) @ params["b"]


def entropy(scales):
    """In float64, for one scale a model and leaf."""
    merged = {
        name: BASE[name].astype(np.float64)
        + scales[0][name] * (FIRST[name].astype(np.float64) - BASE[name])
        + scales[1][name] * (SECOND[name].astype(np.float64) - BASE[name])
        for name in SHAPES
    }
    found = np.tanh(INPUTS @ merged["a"]) @ merged["b"]
    shares = np.exp(found - found.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return -np.mean(np.sum(shares * np.log(shares), axis=1))


def run(steps, granularity="layer", **options):
    settings = LearningSettings(steps=steps, batch_size=24, granularity=granularity)
    options = {"learning_rate": 0.02} | options
    models, base = jax.tree.map(jnp.asarray, ([FIRST, SECOND], BASE))
    return ada_merge(jax.random.key(0), logits, models, base, INPUTS, settings=settings, **options)


def test_one_step_is_adams_down_the_entropy():
    start = [dict.fromkeys(SHAPES, 0.3), dict.fromkeys(SHAPES, 0.3)]
    found = run(1)
    np.testing.assert_allclose(found.info["loss"][0], entropy(start), rtol=1e-5)
    for number in range(2):
        for name in SHAPES:
            up, down = ([dict(part) for part in start] for _ in range(2))
            up[number][name] += 1e-5
            down[number][name] -= 1e-5
            slope = (entropy(up) - entropy(down)) / 2e-5
            # Adam's first step is the rate, against the sign of the gradient.
            expected = 0.3 - 0.02 * np.sign(slope)
            np.testing.assert_allclose(
                found.info["coefficients"][name][number], expected, atol=1e-5
            )


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("parameter", (2, 4, 5)), ("channel", (2, 1, 5)), ("layer", (2,)), ("scalar", (2,))],
)
def test_every_granularity_lowers_the_entropy_within_bounds(granularity, shape):
    found = run(8, granularity, learning_rate=0.1)
    name = "all" if granularity == "scalar" else "a"
    scales = found.info["coefficients"][name]
    assert scales.shape == shape
    assert float(scales.min()) >= 0 and float(scales.max()) <= 1
    assert found.info["loss"][-1] < found.info["loss"][0]


def test_scales_of_0_are_the_base_and_of_1_a_model():
    np.testing.assert_array_equal(run(1, learning_rate=0.0, init=0.0).params["a"], BASE["a"])
    single = run(1, learning_rate=0.0, init=[0, 1]).params["b"]
    np.testing.assert_allclose(single, SECOND["b"], rtol=1e-5, atol=1e-6)


def test_the_best_of_held_out_inputs_is_kept():
    found = run(4, held_out=INPUTS[:7], learning_rate=0.3)
    losses = np.asarray(found.info["held_out_loss"])
    assert losses[int(found.info["best_step"])] == np.nanmin(losses)


def test_entropy_of_sure_answers_is_0_with_a_finite_gradient():
    loss_fn = entropy_loss(logits_of_inputs)
    value, grad = jax.value_and_grad(
        lambda x: loss_fn(jax.random.key(0), {}, {}, x)[0]
    )(jnp.array([[1e4, 0.0, -1e4]]))  # fmt: skip
    assert float(value) == 0 and np.isfinite(grad).all()


def logits_of_inputs(params, model_state, inputs):
    return inputs


def test_errors():
    with pytest.raises(ValueError, match=r"init of shape \(3,\) for 2 models; give one scale, or"):
        run(1, init=[0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"init 1.5 is not a scale in \[0, 1\]; 0.3 is the"):
        run(1, init=1.5)
    settings = LearningSettings(steps=1, batch_size=2)
    narrow = BASE | {"a": BASE["a"][:, :2]}
    with pytest.raises(ValueError, match=r"leaf a has shape \(4, 2\) in the base and \(4, 5\) in"):
        ada_merge(jax.random.key(0), logits, [FIRST], narrow, INPUTS, settings=settings)
