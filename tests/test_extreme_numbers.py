"""The ends of the number range, through public functions: each right value is in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.trees import flat
from wsa_jax import WeightScope, fuse_scopes, weight_scope
from wsa_jax.federated import LocalSettings, ServerContext, fed_exp, iid, simulate
from wsa_jax.merging import average, fisher_merge, slerp
from wsa_jax.merging.evaluate.plane import _coordinates
from wsa_jax.training import FitSettings, classification_task, fit


@pytest.fixture(scope="module")
def half_task():
    """A linear model in float16 whose first gradient has norm 569.5: its square is infinite."""
    start = {"w": jnp.zeros((400, 10), jnp.float16)}
    return classification_task(
        lambda key: (start, {}),
        lambda params, state, x, train, key: (x.astype(jnp.float16) @ params["w"], state),
    )


@pytest.fixture(scope="module")
def half_data():
    return np.full((40, 400), 30.0, np.float32), np.zeros(40, np.int32)


def test_fit_clips_a_float16_gradient(half_task, half_data):
    settings = FitSettings(steps=1, batch_size=40, momentum=0.0, clip_norm=10.0)
    found = fit(jax.random.key(0), half_task, *half_data, learning_rate=0.01, settings=settings)
    assert np.linalg.norm(flat(found.params)) == pytest.approx(0.1, rel=2e-2)


def test_a_client_clips_a_float16_gradient(half_task, half_data):
    x, y = half_data
    local = LocalSettings(steps=1, batch_size=20, weight_decay=0.0)
    found = simulate(
        jax.random.key(0), half_task, (x, y), iid(y, clients=2, seed=0), rounds=1,
        learning_rate=0.01, local=local,
    )  # fmt: skip
    assert np.linalg.norm(flat(found.params)) == pytest.approx(0.1, rel=2e-2)
    assert found.history[-1]["dropped"] == 0


@pytest.mark.parametrize(
    ("algorithm", "index"),
    [(fed_exp(), 25000), (fed_exp(epsilon_decay=0.5), 70), (fed_exp(1e-46, epsilon_decay=1), 0)],
)
def test_fed_exp_stays_where_nothing_moves_and_epsilon_is_0(algorithm, index):
    params, zero = {"w": jnp.ones(3)}, jnp.float32(0)
    context = ServerContext(
        params, {"w": jnp.zeros(3)}, zero, zero, jnp.int32(index), jnp.float32(3), jnp.float32(1)
    )
    np.testing.assert_array_equal(algorithm.apply(params, context)[0]["w"], 1.0)


def test_fed_exp_extrapolates_updates_whose_squares_underflow():
    """Two clients at right angles: |mean|² is half of the mean |.|², so the step is 1."""
    algorithm = fed_exp(1e-46, epsilon_form="paper", epsilon_decay=1)
    context = ServerContext(
        {"w": jnp.zeros(2)}, {"w": jnp.full(2, 5e-23)}, jnp.float32(0), jnp.float32(0),
        jnp.int32(0), jnp.float32(2), jnp.float32(1),
    )  # fmt: skip
    found = algorithm.apply(context.params, context)[0]["w"]
    np.testing.assert_allclose(found, 5e-23, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-37, 1e-25, 1.0, 1e25, 2e38])
@pytest.mark.parametrize("per", ["leaf", "model"])
def test_slerp_at_every_magnitude(size, per):
    first, second = {"w": size * jnp.array([1.0, 0.0])}, {"w": size * jnp.array([0.0, 1.0])}
    for call in (slerp, jax.jit(slerp, static_argnames="per")):
        found = np.asarray(call(first, second, 1 / 3, per=per)["w"], np.float64) / size
        np.testing.assert_allclose(found, [np.sqrt(0.75), 0.5], rtol=1e-5)


def test_slerp_and_average_keep_the_digits_of_float64():
    with jax.enable_x64(True):
        first, second = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([0.0, 1.0])}
        found = jax.jit(slerp)(first, second, 1 / 3)["w"]
        np.testing.assert_allclose(found, [np.sqrt(0.75), 0.5], rtol=1e-14)
        mean = average([first, second], weights=[1.0, 2.0])["w"]
        np.testing.assert_allclose(mean, [1 / 3, 2 / 3], rtol=1e-15)
        huge = average([{"w": jnp.array([1e308])}, {"w": jnp.array([1.5e308])}])["w"]
        np.testing.assert_allclose(huge, 1.25e308, rtol=1e-15)


@pytest.mark.parametrize("size", [1e-300, 1e-50, 1e-38, 1.0, 1e38, 1e300])
def test_weights_of_an_average_are_relative(size):
    models = [{"w": jnp.array([0.0])}, {"w": jnp.array([4.0])}]
    assert average(models, weights=[size, 3 * size])["w"].item() == pytest.approx(3.0)
    scopes = [weight_scope({"w": k * jnp.eye(2)}) for k in (1.0, 3.0)]
    fused = fuse_scopes(scopes, weights=[size, 3 * size])
    np.testing.assert_allclose(fused.mean, 1.25, rtol=1e-6)


@pytest.mark.parametrize("std", [1e-30, 1.0, 1e30])
def test_fused_std_at_every_magnitude(std):
    def scope(value):
        value = jnp.array([std * value])
        return WeightScope(mean=jnp.zeros(1), std=value, names=("w",), sizes=(4,))

    fused = fuse_scopes([scope(3.0), scope(4.0)])
    np.testing.assert_allclose(np.float64(fused.std[0]) / std, np.sqrt(12.5), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 3e38])
def test_fisher_information_is_relative(size):
    models = [{"w": jnp.array([0.0])}, {"w": jnp.array([4.0])}]
    fishers = [{"w": jnp.array([size / 3])}, {"w": jnp.array([size])}]
    found = fisher_merge(models, fishers, floor=1e-37)
    np.testing.assert_allclose(found.params["w"], 3.0, rtol=1e-6)
    nothing = [{"w": jnp.zeros(1)}] * 2
    found = fisher_merge(models, nothing, floor=1e-46, weights=[1, 3])
    np.testing.assert_allclose(found.params["w"], 3.0, rtol=1e-6)


def test_fisher_merge_of_numbers_whose_difference_is_infinite():
    models = [{"w": jnp.array([3e38])}, {"w": jnp.array([-3e38])}]
    fishers = [{"w": jnp.array([1.0])}, {"w": jnp.array([1.0])}]
    np.testing.assert_allclose(fisher_merge(models, fishers).params["w"], 0.0, atol=1e32)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_plane_at_every_magnitude(size):
    corners = [{"w": size * jnp.array(at)} for at in ((0.0, 0.0), (3.0, 4.0), (5.0, 0.0))]
    found = _coordinates(*corners) / size
    np.testing.assert_allclose(found, [[0, 0], [5, 0], [3, 4]], rtol=1e-5, atol=1e-5)
