"""The printed explanation agrees with the traced spec."""

import jax
import jax.numpy as jnp
import pytest

from wsa_jax.merging import explain_spec, trace_spec


@pytest.fixture
def tables(capsys):
    explain_spec(_network, _PARAMS, _X)
    return [table.splitlines() for table in capsys.readouterr().out.rstrip("\n").split("\n\n")]


def _network(p, x):
    h = jnp.concatenate([jax.nn.relu(x @ p["a"]), x], -1) @ p["b"]
    heads = jax.nn.softmax(h.reshape(*x.shape[:-1], 2, 3), -1)
    turn = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
    h = jax.lax.scan(turn, heads.reshape(h.shape), p["layers"])[0]
    return jnp.cumsum(h @ p["c"], -1) @ p["d"]


_SHAPES = {"a": (4, 5), "b": (9, 6), "layers": (2, 6, 6), "c": (6, 7), "d": (7, 2)}
_PARAMS = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in _SHAPES.items()}
_X = jax.ShapeDtypeStruct((8, 4), jnp.float32)


def test_each_group_and_each_pinned_axis_is_in_its_table(tables):
    spec = trace_spec(_network, _PARAMS, _X)
    equations, groups, fixed = tables
    named = [line.split()[0] for line in groups[1:] if not line.startswith(" ")]
    assert named == list(spec.names)
    assert len(groups) - 1 == sum(len(group.ties) for group in spec.groups)
    told = [line.split(maxsplit=2) for line in fixed[1:]]
    for pin in spec.pinned:
        assert [pin.leaf, str(pin.axis), pin.reason] in told
    assert any(line.split()[1] == "cumsum" for line in equations[1:])


def test_axes_are_written_in_groups_and_loops_are_indented(tables):
    equations, groups, _ = tables
    (first, *_rest) = [line for line in equations if " dot_general " in line]
    assert "input 1, a" in first and "(8, a[5])" in first
    (joined,) = [line for line in equations if " concatenate " in line]
    assert "(8, a[5] + 4)" in joined
    assert any(line.split()[1:2] == ["tanh"] and "    tanh" in line for line in equations)
    assert any("carried, layers[i]" in line for line in equations)
    assert all("test_explain.py:" in line for line in equations[1:])
    assert next(line for line in groups if line.startswith("a ")).split()[:3] == [
        "a",
        "5",
        "scaling",
    ]


def test_without_parameters_there_is_nothing_to_explain():
    with pytest.raises(ValueError, match="params holds no arrays"):
        explain_spec(lambda p, x: x, {}, jnp.ones(2))
