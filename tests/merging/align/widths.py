"""A small network and copies of it of other widths, which compute the same."""

import jax
import numpy as np

from tests.merging.align.architectures import draw, mlp
from wsa_jax.merging.symmetry.spec import Tie, hand_written

INPUTS = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)


SHAPES = mlp()[0]
SPEC = hand_written(
    {
        name: [
            Tie(leaf=kernel, axis=1),
            Tie(leaf=f"{kernel}/bias", axis=0),
            Tie(leaf=after, axis=0, role="consumed"),
        ]
        for name, kernel, after in (("first", "a", "b"), ("second", "b", "c"))
    },
    draw(0, SHAPES),
)


def mlp_activations(params, x):
    first = jax.nn.relu(x @ params["a"] + params["a/bias"][None])
    second = jax.nn.relu(first @ params["b"] + params["b/bias"][None])
    return {"first": first, "second": second}


def mlp_function(params, x):
    return mlp_activations(params, x)["second"] @ params["c"]


def duplicated(first_times, second_times, seed=2):
    """A model, and a copy in which each unit is there several times, in another order."""
    model = draw(seed, SHAPES)
    rng = np.random.default_rng(seed)
    copy = {name: np.asarray(leaf) for name, leaf in model.items()}
    for times, (kernel, after) in zip(
        (first_times, second_times), (("a", "b"), ("b", "c")), strict=True
    ):
        units = rng.permutation(np.repeat(np.arange(len(times)), times))
        copy[kernel] = copy[kernel][:, units]
        copy[f"{kernel}/bias"] = copy[f"{kernel}/bias"][units]
        # The copies share the outgoing weights: by chance, but with one sign.
        shares = np.zeros(len(units))
        for unit, count in enumerate(times):
            shares[units == unit] = rng.dirichlet(np.full(count, 3.0))
        copy[after] = copy[after][units] * shares[:, None].astype(np.float32)
    return model, copy
