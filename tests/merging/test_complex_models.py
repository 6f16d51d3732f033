"""Complex weights: merged where that is defined, refused by name where real numbers are needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging import (
    METHODS,
    Budget,
    Evidence,
    Gram,
    Model,
    NotAdmittedError,
    gram_matrices,
    merge_table,
    reg_mean,
    trace_spec,
)
from wsa_jax.training import classification_task

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
REFUSED = {
    "Fisher": "what is learnt",
    "fine-tuning": "what is learnt",
    "NP Merge": "what is learnt",
    "NP Merge, joint": "what is learnt",
    "AdaMerging": "what is learnt",
    "TIES": "a sign",
    "weight matching, REPAIR": "REPAIR",
    "weight matching, REPAIR in closed form": "REPAIR",
}


def init(key):
    """One hidden layer of five complex units."""
    keys = jax.random.split(key, 4)
    draw = [
        0.4 * jax.random.normal(k, shape, jnp.complex64)
        for k, shape in zip(keys, [(6, 5), (5,), (5, 2), (2,)], strict=True)
    ]
    return {"in": {"w": draw[0], "b": draw[1]}, "out": {"w": draw[2], "b": draw[3]}}, {}


def apply(params, state, x, train, key):
    """ReLU of both parts; logits are magnitudes."""
    z = x @ params["in"]["w"] + params["in"]["b"][None]
    h = jax.lax.complex(jax.nn.relu(z.real), jax.nn.relu(z.imag))
    return jnp.abs(h @ params["out"]["w"] + params["out"]["b"][None]), state


TASK = classification_task(init, apply, settings=(("model", "complex"),))
MODELS = [Model(*TASK.init(jax.random.key(seed))) for seed in (0, 1)]
EVIDENCE = Evidence(TASK, X, Y, Model(*TASK.init(jax.random.key(2))))


@pytest.fixture(scope="module")
def table():
    """All methods, none asked for by name."""
    spec = trace_spec(
        lambda variables, x: TASK.logits(*Model.of(variables), x), MODELS[0].variables, X[:2]
    )
    budget = Budget(steps=2, batch_size=10)
    rows = merge_table(jax.random.key(3), MODELS, spec, EVIDENCE, test=(X, Y), budget=budget)
    return {row["method"]: row for row in rows}


def test_the_table_names_what_needs_real_numbers_and_goes_on(table):
    assert {*METHODS} < {*table}
    for method, what in REFUSED.items():
        assert table[method]["accuracy"] is None
        left_out = table[method]["info"]["left out"]
        assert f"is of type complex64, and {what} is of real numbers" in left_out
    assert "no convolution of real numbers" in table["RegMean"]["info"]["left out"]
    for method in ("average", "weight matching", "Model Stock", "DARE", "ensemble"):
        assert np.isfinite(table[method]["loss"])


def mixed(seed):
    """A real layer, whose outputs a complex one takes."""
    rng = np.random.default_rng(seed)
    return {
        "real": rng.normal(size=(6, 3)).astype(np.float32),
        "wave": (rng.normal(size=(3, 2)) + 1j * rng.normal(size=(3, 2))).astype(np.complex64),
    }


def through(params, x):
    return jnp.abs(jax.nn.relu(x @ params["real"]) @ params["wave"])


def test_regmean_solves_the_real_layers_and_names_the_others():
    models = [mixed(1), mixed(2)]
    inputs = [X[:20], X[20:]]
    grams = [gram_matrices(through, *pair) for pair in zip(models, inputs, strict=True)]
    assert [*grams[0]] == ["real"]
    merged = reg_mean(models, grams, shrink=1.0)
    assert merged.info["averaged"] == ["wave"]
    np.testing.assert_allclose(
        merged.params["wave"], (models[0]["wave"] + models[1]["wave"]) / 2, rtol=1e-6
    )
    # The least squares of both models' outputs over both models' own inputs, by NumPy.
    rows = np.concatenate(inputs).astype(np.float64)
    goal = np.concatenate([x @ model["real"] for x, model in zip(inputs, models, strict=True)])
    solved = np.linalg.lstsq(rows, goal, rcond=None)[0]
    np.testing.assert_allclose(merged.params["real"], solved, rtol=1e-3, atol=1e-4)


def test_a_complex_kernel_with_a_gram_matrix_is_refused():
    grams = [{"wave": Gram(np.eye(3), (0,))}] * 2
    with pytest.raises(NotAdmittedError, match="leaf wave is of type complex64, and RegMean is of"):
        reg_mean([mixed(1), mixed(2)], grams)


@pytest.mark.parametrize("method", ["NP Merge", "NP Merge, joint", "fine-tuning"])
def test_one_complex_leaf_among_real_ones_is_not_passed_over(method):
    task = classification_task(
        lambda key: (mixed(0), {}), lambda params, state, x, train, key: (through(params, x), state)
    )
    models = [Model(mixed(seed), {}) for seed in (1, 2)]
    spec = trace_spec(lambda v, x: task.logits(*Model.of(v), x), models[0].variables, X[:2])
    with pytest.raises(NotAdmittedError, match="leaf wave is of type complex64, and what is"):
        METHODS[method](
            jax.random.key(0), spec, models, Evidence(task, X, Y), budget=Budget(steps=2)
        )
