"""Tasks of NNX, Equinox and Linen modules: what they compute, their state, their errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from tests.tiny import INFO
from tests.trees import assert_bitwise
from wsa_jax.models import GCN, GraphSAGE, graph
from wsa_jax.runs.described import task_settings
from wsa_jax.training import (
    Batch,
    FitSettings,
    equinox_task,
    evaluate,
    fit,
    linen_task,
    nnx_task,
    node_task,
    regression_task,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 12).astype(np.int32)
KEY = jax.random.key(3)


class Net(nnx.Module):
    """A dense layer, BatchNorm, dropout."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))


class Normed(eqx.Module):
    """A dense layer, BatchNorm, dropout, of one example."""

    dense: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout

    def __init__(self, key):
        self.dense = eqx.nn.Linear(4, 3, key=key)
        self.norm = eqx.nn.BatchNorm(3, axis_name="batch", momentum=0.9, mode="batch")
        self.dropout = eqx.nn.Dropout(0.5)

    def __call__(self, x, state, *, key):
        x, state = self.norm(self.dense(x), state)
        return self.dropout(x, key=key), state


class TokenTable(eqx.Module):
    """Logits of each token of one text."""

    table: eqx.nn.Embedding

    def __init__(self, key):
        self.table = eqx.nn.Embedding(5, 3, key=key)

    def __call__(self, tokens):
        return jax.vmap(self.table)(tokens)


TASKS = {"nnx": nnx_task(Net), "equinox": equinox_task(eqx.nn.make_with_state(Normed))}


def named(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def weights_of(params, key):
    """Kernel ``[4, 3]`` and bias of the dense layer, which both kinds name otherwise."""
    (kernel,) = [v for v in named(params).values() if v.ndim == 2]
    (bias,) = [v for n, v in named(params).items() if "dense" in n and v.ndim == 1]
    return (kernel if key == "nnx" else kernel.T), bias


def cross_entropy(logits, labels):
    logits = np.float64(logits)
    return (
        np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    )


@pytest.mark.parametrize("kind", TASKS)
class TestNormAndDropout:
    def test_evaluation_uses_running_moments_and_drops_nothing(self, kind):
        task = TASKS[kind]
        params, state = task.init(KEY)
        kernel, bias = weights_of(params, kind)
        # The running moments of a new module are 0 and 1.
        expected = (X @ kernel + bias) / np.sqrt(1 + 1e-5)
        np.testing.assert_allclose(
            jax.jit(task.logits)(params, state, X), expected, rtol=1e-5, atol=1e-6
        )
        sums = evaluate(task, params, state, X, LABELS, batch_size=5)
        np.testing.assert_allclose(sums.loss, cross_entropy(expected, LABELS).sum(), rtol=1e-5)

    def test_training_drops_by_the_steps_key_and_moves_the_moments(self, kind):
        task = TASKS[kind]
        params, state = task.init(KEY)
        batch = Batch(jnp.asarray(X), jnp.asarray(LABELS), jnp.ones(12))
        loss = jax.jit(task.loss)
        one, moved = loss(jax.random.key(0), params, state, batch)
        again, _ = loss(jax.random.key(0), params, state, batch)
        other, _ = loss(jax.random.key(1), params, state, batch)
        assert one == again != other
        assert jax.tree.structure(moved) == jax.tree.structure(state)
        before, after = named(state), named(moved)
        kernel, bias = weights_of(params, kind)
        batch_mean = (X @ kernel + bias).mean(0)
        found = [v for n, v in after.items() if v.shape == (3,) and not before[n].any()]
        assert any(np.allclose(v, 0.1 * batch_mean, rtol=1e-4, atol=1e-6) for v in found)

    def test_keys_give_weights_and_equal_keys_equal_ones(self, kind):
        task = TASKS[kind]
        one, again, other = (
            weights_of(task.init(jax.random.key(k))[0], kind)[0] for k in (0, 0, 1)
        )
        np.testing.assert_array_equal(one, again)
        assert (one != other).any()


def test_a_given_module_keeps_its_weights_and_its_mode():
    net = Net(nnx.Rngs(5))
    net.eval()
    params, _ = nnx_task(net).init(KEY)
    np.testing.assert_array_equal(named(params)["['dense']['kernel'].value"], net.dense.kernel[...])
    assert net.norm.use_running_average and net.dropout.deterministic
    layer = eqx.nn.Linear(4, 3, key=KEY)
    np.testing.assert_array_equal(
        equinox_task(layer).init(jax.random.key(9))[0].weight, layer.weight
    )


class Activated(nnx.Module):
    """A dense layer, a function, dropout, and settings that are arrays and lists of their own."""

    def __init__(self, activation=nnx.relu, rate=0.5, scales=(1.0,)):
        self.dense = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.after = nnx.List([nnx.Dropout(rate, rngs=nnx.Rngs(0))])
        self.activation, self.scales = activation, scales

    def __call__(self, x):
        return self.after[0](self.activation(self.dense(x))) * self.scales[0]


def mlp(activation=jax.nn.relu):
    return eqx.nn.MLP(4, 3, 8, 1, activation=activation, key=KEY)


def dropping(rate=0.5, inference=False):
    return eqx.nn.Sequential([mlp(), eqx.nn.Dropout(rate, inference=inference)])


@pytest.mark.parametrize(
    ("task", "one", "other"),
    [
        (equinox_task, mlp, lambda: mlp(jnp.tanh)),
        (equinox_task, dropping, lambda: dropping(0.2)),
        (
            equinox_task,
            lambda: eqx.filter_checkpoint(mlp()),
            lambda: eqx.filter_checkpoint(mlp(jnp.tanh)),
        ),
        (equinox_task, lambda: eqx.filter_jit(mlp()), lambda: eqx.filter_jit(mlp(jnp.tanh))),
        (nnx_task, Activated, lambda: Activated(nnx.tanh)),
        (nnx_task, Activated, lambda: Activated(rate=0.2)),
        (nnx_task, Activated, lambda: Activated(scales=(2.0,))),
        (nnx_task, Activated, lambda: Activated(lambda x: nnx.leaky_relu(x, 0.1))),
    ],
)
def test_given_modules_are_told_apart_by_what_they_hold(task, one, other):
    first, again, second = (task_settings(task(make())) for make in (one, one, other))
    assert first == again != second
    assert " at 0x" not in str(first)
    assert len(str(first)) < 1500


@pytest.mark.parametrize(
    ("task", "make", "other"),
    [(equinox_task, mlp, jnp.tanh), (nnx_task, Activated, nnx.tanh)],
    ids=["equinox", "nnx"],
)
def test_a_run_is_resumed_by_an_equal_module_alone(task, make, other, tmp_path):
    def start(module):
        settings = FitSettings(steps=2, batch_size=5)
        return fit(KEY, task(module), X, LABELS, settings=settings, directory=tmp_path)

    first = start(make())
    assert_bitwise(start(make()).loss, first.loss)
    with pytest.raises(ValueError, match="holds a run with task = ") as error:
        start(make(other))
    assert "\n" not in str(error.value)


def test_makers_are_told_apart_by_their_names():
    # As runs of earlier versions say it, which are resumed.
    tasks = nnx_task(Net), equinox_task(TokenTable)
    assert [dict(task.settings)["module"] for task in tasks] == ["Net", "TokenTable"]


@pytest.mark.parametrize(
    "task",
    [
        nnx_task(lambda rngs: nnx.Embed(5, 3, rngs=rngs), padding_label=-1),
        equinox_task(
            lambda key: eqx.filter_vmap(eqx.nn.Embedding(5, 3, key=key)), padding_label=-1
        ),
        linen_task(nn.Embed(5, 3), jnp.zeros((1, 6), int), padding_label=-1),
    ],
    ids=["nnx", "equinox", "linen"],
)
def test_a_loss_for_each_token_leaves_padding_out(task):
    tokens = RNG.integers(0, 5, (4, 6)).astype(np.int32)
    labels = np.where(RNG.random((4, 6)) < 0.3, -1, tokens % 3).astype(np.int32)
    params, state = task.init(KEY)
    sums = evaluate(task, params, state, tokens, labels)
    (table,) = [leaf for leaf in jax.tree.leaves(params) if leaf.shape == (5, 3)]
    losses = cross_entropy(np.asarray(table)[tokens], np.maximum(labels, 0))
    assert sums.count == (labels >= 0).sum()
    np.testing.assert_allclose(sums.loss, losses[labels >= 0].sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "task",
    [
        nnx_task(lambda rngs: nnx.Linear(4, 1, rngs=rngs), loss="squared_error"),
        equinox_task(lambda key: eqx.nn.Linear(4, 1, key=key), loss="squared_error"),
        linen_task(nn.Dense(1), jax.ShapeDtypeStruct((1, 4), jnp.float32), loss="squared_error"),
    ],
    ids=["nnx", "equinox", "linen"],
)
def test_squared_errors_are_those_of_the_modules(task):
    targets = X @ np.float32([1, -2, 0.5, 3])
    params, state = task.init(KEY)
    kernel, bias = sorted(map(np.ravel, jax.tree.leaves(params)), key=len, reverse=True)
    errors = X @ kernel + bias - targets
    sums = evaluate(task, params, state, X, targets)
    np.testing.assert_allclose(sums.loss, np.square(errors).sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.own["absolute_error"], np.abs(errors).sum(), rtol=1e-5)
    assert list(sums.means()) == ["loss", "absolute_error"]


def test_fit_finds_the_least_squares():
    task = nnx_task(lambda rngs: nnx.Linear(4, 1, rngs=rngs), loss="squared_error")
    targets = X @ np.float32([1, -2, 0.5, 3]) + np.float32(0.25)
    settings = FitSettings(steps=300, batch_size=12)
    fitted = fit(KEY, task, X, targets, settings=settings, learning_rate=0.1)
    found = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(fitted.params)])
    np.testing.assert_allclose(np.sort(found), [-2, 0.25, 0.5, 1, 3], atol=1e-3)


def test_squared_error_of_several_numbers_is_their_mean_and_shapes_must_agree():
    task = regression_task(lambda key: ({}, {}), lambda params, state, x, train, key: (x, state))
    labels = RNG.normal(size=(12, 4)).astype(np.float32)
    sums = evaluate(task, {}, {}, X, labels)
    np.testing.assert_allclose(sums.loss, np.mean((X - labels) ** 2, 1).sum(), rtol=1e-5)
    batch = Batch(jnp.asarray(X), jnp.asarray(labels), jnp.asarray(np.eye(12, dtype="f4")[3]))
    loss, _ = jax.jit(task.loss)(KEY, {}, {}, batch)
    np.testing.assert_allclose(loss, np.mean((X - labels)[3] ** 2), rtol=1e-5)
    with pytest.raises(ValueError, match=r"predictions have shape \(4,\) and labels \(3,\) for"):
        evaluate(task, {}, {}, X, labels[:, :3])


def test_images_are_normalised_and_refused_in_other_units():
    make = lambda rngs: nnx.Conv(1, 3, (3, 3), padding="VALID", rngs=rngs)  # noqa: E731
    task = nnx_task(lambda rngs: nnx.Sequential(make(rngs), lambda x: x[:, 0, 0]), info=INFO)
    images = RNG.integers(0, 16, (5, 3, 3, 1)).astype(np.uint8)
    params, state = task.init(KEY)
    kernel = np.asarray(next(v for v in named(params).values() if v.ndim == 4))
    x = (images / 16 - 0.5) / 0.25
    np.testing.assert_allclose(
        jax.jit(task.logits)(params, state, images),
        np.einsum("nhwc,hwco->no", x, kernel),
        rtol=1e-4,
    )
    with pytest.raises(ValueError, match="images of the data are float64 from"):
        evaluate(task, params, state, images / 16, LABELS[:5])


class TestNodes:
    # A square with one diagonal, and a node apart.
    EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
    GRAPH = graph(
        RNG.normal(size=(5, 4)).astype(np.float32),
        np.concatenate([EDGES[:, 0], EDGES[:, 1]]),
        np.concatenate([EDGES[:, 1], EDGES[:, 0]]),
    )

    def adjacency(self):
        dense = np.zeros((5, 5))
        dense[self.GRAPH.receivers, self.GRAPH.senders] = 1
        return dense

    def test_gcn_equals_its_matrices(self):
        model = GCN(features=(6, 3))
        task = node_task(model, self.GRAPH)
        params = jax.tree.map(np.float64, jax.jit(task.init)(KEY)[0])
        a = self.adjacency() + np.eye(5)
        a /= np.sqrt(np.outer(a.sum(1), a.sum(1)))
        x = np.float64(self.GRAPH.nodes)
        for name in ("Layer_0", "Layer_1"):
            layer = params[name]
            x = a @ (np.maximum(x, 0) if name == "Layer_1" else x) @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(
            jax.jit(task.logits)(params, {}, np.arange(5)), x, rtol=1e-4, atol=1e-5
        )

    def test_sage_equals_its_matrices(self):
        task = node_task(GraphSAGE(features=(6, 3)), self.GRAPH)
        params = jax.tree.map(np.float64, jax.jit(task.init)(KEY)[0])
        a = self.adjacency()
        a /= np.maximum(a.sum(1, keepdims=True), 1)
        x = np.float64(self.GRAPH.nodes)
        for name in ("Layer_0", "Layer_1"):
            x = np.maximum(x, 0) if name == "Layer_1" else x
            own, others = params[name]["own"], params[name]["neighbors"]
            x = x @ own["kernel"] + own["bias"] + a @ x @ others["kernel"]
        np.testing.assert_allclose(
            jax.jit(task.logits)(params, {}, np.arange(5)), x, rtol=1e-4, atol=1e-5
        )

    def test_nodes_that_are_not_there_are_named(self):
        task = node_task(GCN(features=(3,)), self.GRAPH)
        params, _ = jax.jit(task.init)(KEY)
        with pytest.raises(ValueError, match="node 5 of the data is not in the graph, which has 5"):
            evaluate(task, params, {}, np.array([1, 5]), np.array([0, 1]))
        with pytest.raises(ValueError, match="nodes of the data are float32; give their numbers"):
            evaluate(task, params, {}, np.array([1.0], np.float32), np.array([0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nnx_task(3), "model 3 is no NNX module and makes none"),
        (lambda: nnx_task(lambda rngs: 3), "model makes 3; give rngs -> NNX"),
        (lambda: equinox_task(3), "model 3 is no Equinox module and makes none"),
        (lambda: equinox_task(lambda key: 3), "model makes 3; give key -> Equinox module"),
        (lambda: nnx_task(Net, augmentation="batch"), "augmentation 'batch' is for images, and"),
        (
            lambda: nnx_task(Net, loss="squared_error", padding_label=0),
            "padding_label 0 is a class, and loss is 'squared_error'",
        ),
        (lambda: nnx_task(Net, loss="hinge"), "loss 'hinge' is unknown; give one of cross_entropy"),
        (lambda: graph(np.ones(3), [0], [1]), r"nodes has shape \(3,\); give features"),
        (lambda: graph(np.ones((2, 1)), [0, 1], [1]), r"senders \(2,\) and receivers \(1,\) are"),
        (lambda: graph(np.ones((2, 1)), [0.5], [1]), "senders are float64; give integers"),
        (lambda: graph(np.ones((2, 1)), [-1], [1]), "senders names node -1, but there are 2"),
        (lambda: graph(np.ones((2, 1)), [1], [1]), "node 1 is its own neighbour"),
        (lambda: GCN(features=()), "at least one layer's width"),
        (lambda: GCN(features=(3,), dropout=1.0), "dropout 1.0 is not in"),
    ],
)
def test_what_makes_no_task_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
