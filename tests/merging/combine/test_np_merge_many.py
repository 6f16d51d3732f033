"""NP Merge of many models: orders, starts, joint shares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.combine.learning import LearningSettings
from wsa_jax.merging.combine.np_merge import np_merge
from wsa_jax.merging.combine.np_merge_many import np_merge_joint, np_merge_many
from wsa_jax.merging.combine.penalties import Strengths

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 2, 3))
MODELS = [{"kernel": jnp.asarray(value, jnp.float32)} for value in VALUES]
ONE = LearningSettings(steps=1, batch_size=4)


def loss_fn(key, params, model_state, batch):
    del key
    return jnp.mean((params["kernel"][None] - batch) ** 2), model_state


def data(target):
    return jnp.broadcast_to(jnp.asarray(target, jnp.float32), (4, 2, 3))


DATA = data(np.zeros((2, 3)))


def start_of(count, **options):
    """The share of each model in a merge that learns nothing (rate 0)."""
    result = np_merge_many(
        KEY, loss_fn, MODELS[:count], DATA, settings=ONE, learning_rate=0.0, **options
    )
    basis = VALUES[:count].reshape(count, -1).T
    found = np.asarray(result.params["kernel"], np.float64).ravel()
    return np.linalg.lstsq(basis, found, rcond=None)[0], result.info


class TestPairs:
    @pytest.mark.parametrize("order", ["given", "accuracy", "tree"])
    def test_begins_at_the_true_average_in_every_order(self, order):
        shares, info = start_of(5, order=order, scores=[0.3, 0.1, 0.5, 0.2, 0.5])
        np.testing.assert_allclose(shares, 0.2, atol=1e-5)
        expected = {
            "given": [(0, 1), (0, 2), (0, 3), (0, 4)],
            "accuracy": [(2, 4), (2, 0), (2, 3), (2, 1)],
            "tree": [(0, 1), (2, 3), (0, 2), (0, 4)],
        }
        assert info["merges"] == expected[order]
        assert len(info["loss"]) == len(info["diverged"]) == len(info["coefficients"]) == 4

    def test_equals_np_merge_by_hand(self):
        settings = LearningSettings(steps=5, batch_size=2)
        many = np_merge_many(KEY, loss_fn, MODELS[:3], DATA, settings=settings)
        keys = [jax.random.fold_in(KEY, i) for i in range(2)]
        first = np_merge(keys[0], loss_fn, MODELS[:2], DATA, settings=settings)
        second = np_merge(
            keys[1], loss_fn, (first.params, MODELS[2]), DATA, settings=settings,
            init=np.float32(2 / 3),
        )  # fmt: skip
        np.testing.assert_array_equal(many.params["kernel"], second.params["kernel"])
        np.testing.assert_array_equal(many.info["loss"][1], second.info["loss"])

    def test_one_compilation_serves_all_merges_and_one_model_needs_none(self):
        traces = []

        def counted(key, params, model_state, batch):
            traces.append(1)
            return loss_fn(key, params, model_state, batch)

        np_merge_many(KEY, counted, MODELS[:2], DATA, settings=ONE)
        once = len(traces)
        seen = []
        result = np_merge_many(
            KEY, counted, MODELS, DATA, settings=ONE, model_state={"mean": jnp.zeros(())},
            repair=lambda params, state: seen.append(params) or {"mean": 1.0},
        )  # fmt: skip
        assert len(traces) == 2 * once  # another structure of the state, and no more
        assert result.model_state == {"mean": 1.0}
        assert len(seen) == 1
        alone = np_merge_many(KEY, counted, MODELS[:1], DATA, settings=ONE)
        assert alone.params is MODELS[0]

    def test_errors(self):
        def merge(models=MODELS, **options):
            return np_merge_many(KEY, loss_fn, models, DATA, settings=ONE, **options)

        with pytest.raises(ValueError, match="no models to merge"):
            merge([])
        with pytest.raises(ValueError, match=r"leaf kernel has shape \(2, 3\) .* \(3, 2\)"):
            merge([*MODELS, {"kernel": jnp.ones((3, 2))}])
        with pytest.raises(ValueError, match="order 'random' is unknown; give one of 'given'"):
            merge(order="random")
        with pytest.raises(ValueError, match="needs a score for each of 5 models, got none"):
            merge(order="accuracy")


class TestJoint:
    def planted(self):
        """Of each weight, the model whose value the data wants; no two of them are close."""
        spread = [{"kernel": model["kernel"] + 3 * i} for i, model in enumerate(MODELS)]
        owner = RNG.integers(0, 5, (2, 3))
        values = np.stack([model["kernel"] for model in spread])
        wanted = np.take_along_axis(values, owner[None], 0)[0]
        # The values at both ends of the range are mixtures of no others, so shares are unique.
        owner[0], wanted[0] = [0, 4, 0], [values[i, 0, j] for j, i in enumerate([0, 4, 0])]
        settings = LearningSettings(steps=600, batch_size=4)
        result = np_merge_joint(
            KEY, loss_fn, spread, data(wanted), settings=settings, learning_rate=0.5
        )
        return result, owner, wanted

    def test_finds_the_owners(self):
        result, owner, wanted = self.planted()
        shares = np.asarray(result.info["coefficients"]["kernel"])
        np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-5)
        np.testing.assert_allclose(result.params["kernel"], wanted, atol=0.05)
        assert np.array_equal(shares.argmax(0)[0], owner[0])
        assert shares.max(0)[0].min() > 0.98

    def test_begins_at_given_shares_and_an_excluded_model_stays_out(self):
        init = [0.0, 1.0, 3.0]
        result = np_merge_joint(
            KEY, loss_fn, MODELS[:3], DATA, settings=ONE, init=init, learning_rate=0.0,
            strengths=Strengths(distance=1.0, entropy=1.0, scope=1.0),
        )  # fmt: skip
        expected = np.tensordot([0, 0.25, 0.75], VALUES[:3], axes=1)
        np.testing.assert_allclose(result.params["kernel"], expected, rtol=1e-4)
        assert not result.info["diverged"]
        assert np.all(np.asarray(result.info["coefficients"]["kernel"])[0] == 0)
        assert result.info["state"].variables["kernel"].shape == (3, 2, 3)

    def test_vmap_over_keys_and_jit_equal_single_merges(self):
        def merge(key):
            settings = LearningSettings(steps=3, batch_size=2)
            return np_merge_joint(key, loss_fn, MODELS, DATA, settings=settings).params["kernel"]

        keys = jax.random.split(KEY, 2)
        together = jax.jit(jax.vmap(merge))(keys)
        np.testing.assert_allclose(together, [merge(key) for key in keys], rtol=1e-5, atol=1e-6)

    def test_granularities_share_the_code(self):
        def shares(granularity):
            settings = dataclasses.replace(ONE, granularity=granularity)
            result = np_merge_joint(KEY, loss_fn, MODELS, DATA, settings=settings)
            return result.info["coefficients"]

        for granularity, shape in (("channel", (5, 1, 3)), ("layer", (5,))):
            found = jax.eval_shape(functools.partial(shares, granularity))
            assert found["kernel"].shape == shape

    def test_errors(self):
        with pytest.raises(ValueError, match=r"init of shape \(2,\) for 5 models"):
            np_merge_joint(KEY, loss_fn, MODELS, DATA, settings=ONE, init=[0.5, 0.5])
        for init in ([-1.0, -3.0], [0.0, 0.0], [np.nan, 1.0]):
            with pytest.raises(ValueError, match="are not shares; give finite numbers >= 0"):
                np_merge_joint(KEY, loss_fn, MODELS[:2], DATA, settings=ONE, init=init)
        lost = {"kernel": MODELS[1]["kernel"] * jnp.inf}
        with pytest.raises(ValueError, match="leaf kernel of model 2 holds 6 NaN or infinite"):
            np_merge_joint(KEY, loss_fn, [MODELS[0], lost], DATA, settings=ONE, init=[1.0, 0.0])
