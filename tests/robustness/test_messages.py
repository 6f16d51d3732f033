"""What a stranger gives by mistake is told in one line: what it is, and what to give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.door import shown
from wsa_jax.federated import LocalSettings, simulate
from wsa_jax.federated.options import sets_of
from wsa_jax.merging import Matching, Model, align, average, permute_units, trace_spec
from wsa_jax.models import MLP
from wsa_jax.training import classification_task, nnx_task

X, Y = np.ones((6, 4), np.float32), np.array([0, 1, 0, 1, 0, 1])
LINEN = MLP(features=(4, 2))
PARAMS = {"in": jnp.ones((4, 3)), "out": jnp.ones((3, 2))}


def network(params, inputs):
    return jax.nn.relu(inputs @ params["in"]) @ params["out"]


TASK = classification_task(
    lambda key: (PARAMS, {}),
    lambda params, state, inputs, train, key: (network(params, inputs), state),
)


def run(inputs, labels):
    parts, local = [np.arange(3), np.arange(3, 6)], LocalSettings(steps=1, batch_size=2)
    return simulate(jax.random.key(0), TASK, (inputs, labels), parts, rounds=1, local=local)


def spec_of(tree):
    if tree is PARAMS:
        return trace_spec(network, PARAMS, X)
    return trace_spec(lambda variables, x: network(Model.of(variables).params, x), tree, X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: run(X.tolist(), Y),
            "train has its inputs as lists of numbers; give an array [examples, ...], for example "
            "np.asarray(inputs)",
        ),
        (
            lambda: run(X, ["a"] * 6),
            "labels of train are text of shape (6,); give integers of shape (6,), each a class "
            "0 .. 1",
        ),
        (
            lambda: run(X, Y[:2]),
            "the partition points at example 5 and holds 6 in all, but there are 2 labels; make "
            "it from these",
        ),
        (
            lambda: trace_spec(TASK, PARAMS, X),
            "apply_fn of trace_spec is a Task; give a function",
        ),
        (
            lambda: average(model for model in (PARAMS, PARAMS)),
            "models of average is a generator; give a pytree of arrays",
        ),
        (
            lambda: nnx_task(lambda rngs: LINEN),
            f"model makes {shown(LINEN)}; give rngs -> NNX module (of a Linen module, the task is "
            "linen_task or classification)",
        ),
        (
            lambda: permute_units(spec_of(PARAMS), Model(PARAMS, {}).variables, {}),
            "leaf in of group in is not in the model; it has params/in, params/out; give the tree "
            "that trace_spec got: here the leaf is params/in (Model.variables has params/ before "
            "the names of params)",
        ),
        (
            lambda: align(spec_of(Model(PARAMS, {}).variables), PARAMS, Matching({}, {})),
            "leaf params/in of group in is not in the model; it has in, out; give the tree that "
            "trace_spec got: here the leaf is in (Model.variables has params/ before the names of "
            "params)",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(call, message):
    with pytest.raises(ValueError) as refused:
        call()
    assert str(refused.value) == message


def test_labels_may_be_a_list():
    labels = sets_of((X, Y.tolist()), None)["train"][1]
    np.testing.assert_array_equal(labels, Y, strict=True)


def test_no_address_in_memory_is_shown():
    assert shown(iter(())) == "a tuple_iterator"
