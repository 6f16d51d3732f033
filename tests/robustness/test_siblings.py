"""What trial found, listed and beside it: each is refused in one line, before any work."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from wsa_jax.data import DatasetInfo
from wsa_jax.federated import (
    LocalSettings,
    WeightScopeAlignment,
    as_partition,
    clients_mesh,
    dirichlet_equal,
    fed_adam,
    fed_avg,
    fed_nova,
    iid,
    scaffold,
    simulate,
)
from wsa_jax.merging import (
    LearningSettings,
    fine_tune,
    fisher_merge,
    labelled_examples,
    np_merge,
    slerp,
)
from wsa_jax.training import FitSettings, classification_task, fit
from wsa_jax.tree import lerp

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
TASK = classification_task(
    lambda key: ({"w": jnp.ones((4, 3))}, {}),
    lambda params, state, x, train, key: (x @ params["w"], state),
    settings=(("model", "linear"),),
)
MODEL = {"w": jnp.ones(2)}


def simulated(**settings):
    defaults = {"rounds": 1, "local": LocalSettings(steps=1, batch_size=4), "learning_rate": 0.1}
    train = settings.pop("train", (X, Y))
    partition = iid(Y, clients=2, seed=0)
    return simulate(jax.random.key(0), TASK, train, partition, **(defaults | settings))


def trained_by_no_key():
    keys = jax.random.split(jax.random.key(0), 0)
    return fit(keys, TASK, X, Y, settings=FitSettings(steps=1, batch_size=4))


def dealt_by_keys():
    keys = jax.random.split(jax.random.key(0), 4)
    return dirichlet_equal(keys, clients=2, alpha=1.0, seed=0)


def data_set(**change):
    defaults = {
        "name": "mine", "num_classes": 2, "image_shape": (4, 4, 1), "mean": (0.5,), "std": (0.5,)
    }  # fmt: skip
    return DatasetInfo(**(defaults | change))


NAN = {"w": jnp.full((4, 3), jnp.nan)}
LEARNING = LearningSettings(steps=1, batch_size=4)
CALLS = {
    "leaf w of fisher 1 ": lambda: fisher_merge([MODEL, MODEL], [{"w": -jnp.ones(2)}, MODEL]),
    "array .* of examples holds 48 NaN": lambda: np_merge(
        jax.random.key(0),
        TASK.loss,
        [{"w": jnp.ones((4, 3))}, {"w": jnp.zeros((4, 3))}],
        labelled_examples(X * np.nan, Y),
        settings=LEARNING,
        model_state={},
    ),
    "leaf w of .* holds 12 NaN": lambda: fine_tune(
        jax.random.key(0),
        TASK.loss,
        NAN,
        labelled_examples(X, Y),
        settings=LEARNING,
        model_state={},
    ),
    "steps must be a positive integer, got True": lambda: LocalSettings(steps=True),
    "labels are an array of keys of shape": dealt_by_keys,
    "client 0 of the partition has keys": lambda: as_partition(jax.random.split(jax.random.key(0))),
    "key is an array of keys of shape": trained_by_no_key,
    "t nan is no position; give a finite number": lambda: slerp(MODEL, MODEL, float("nan")),
    "t inf is no position; give a finite number": lambda: slerp(MODEL, MODEL, jnp.inf),
    r"image_shape=\(4, 1\) must be \(height, width, ch": lambda: data_set(image_shape=(4, 1)),
    "are no devices; give some of jax.devices": lambda: clients_mesh(["cpu"]),
    "scaffold: too many positional arguments": lambda: scaffold(1.0),
    "fed_avg: too many positional arguments": lambda: fed_avg(0.1),
    "fed_nova: too many positional arguments": lambda: fed_nova(0.1),
    "learning_rate of fed_adam is 'x'; give a number": lambda: fed_adam(learning_rate="x"),
    "rounds 1099511627776 is too large": lambda: simulated(rounds=2**40),
    "learning_rate of round 0 is 'a'; give one number": lambda: simulated(
        learning_rate=lambda index: "a"
    ),
    "the schedule of learning_rate does not take a round's index": lambda: simulated(
        learning_rate=lambda one, two: 0.1
    ),
    r"target an array of float64 of shape \(2, 3\) is not": lambda: WeightScopeAlignment(
        target=np.zeros((2, 3))
    ),
    "t 1000000.*000 is not in": lambda: lerp(MODEL, MODEL, 10**40),
    "3 arrays are given; give inputs and labels, a pair": lambda: simulated(test=(X, Y, Y)),
    r"on_round takes \(\); give a function of \(row\)": lambda: simulated(on_round=lambda: None),
}


@pytest.mark.parametrize("message", CALLS)
def test_is_named_in_one_line(message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    with pytest.raises(ValueError, match=message) as error:
        CALLS[message]()
    assert "\n" not in str(error.value)
