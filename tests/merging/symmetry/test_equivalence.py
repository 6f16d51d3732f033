"""A map that keeps the function passes; any other is caught and named."""

import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.merging.symmetry.equivalence import check_equivalence


def _apply(params, x):
    return {"logits": jnp.tanh(x @ params["a"]) @ params["b"], "rest": x}


def _model():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"a": draw(3, 4), "b": draw(4, 2)}, draw(5, 3)


def test_both_sides_of_a_layer_keep_the_function():
    params, x = _model()
    order = np.array([2, 0, 3, 1])
    moved = {"a": params["a"][:, order], "b": params["b"][order]}
    assert 0 <= check_equivalence(_apply, params, moved, x) < 1e-6


def test_one_side_alone_is_caught_with_its_deviation():
    params, x = _model()
    moved = params | {"a": params["a"][:, ::-1]}
    expected, given = (np.asarray(_apply(p, x)["logits"], np.float64) for p in (params, moved))
    deviation = np.abs(given - expected).max() / np.abs(expected).max()
    with pytest.raises(ValueError, match=f"logits deviates by {deviation:.2g} of its largest"):
        check_equivalence(_apply, params, moved, x)
    assert check_equivalence(_apply, params, moved, x, rtol=10.0) == pytest.approx(deviation)


def test_nan_is_a_deviation_and_zero_has_no_scale():
    params, x = _model()
    with pytest.raises(ValueError, match="deviates by nan"):
        check_equivalence(_apply, params, params | {"b": params["b"] * np.nan}, x)
    zero = params | {"b": jnp.zeros((4, 2))}
    with pytest.raises(ValueError, match="the models differ: logits"):
        check_equivalence(_apply, zero, params, x)
    assert check_equivalence(_apply, zero, zero, x) == 0.0


def test_outputs_of_other_shapes_are_refused():
    # Shapes that would broadcast: [5, 1] against [5, 3] and [3] against [5, 3].
    widths = {"narrow": jnp.ones((3, 1)), "wide": jnp.ones((3, 3))}
    x = _model()[1]
    with pytest.raises(ValueError, match=r"the output has shape \(5, 1\) and \(5, 3\); compare"):
        check_equivalence(lambda w, x: x @ w, widths["narrow"], widths["wide"], x)
    with pytest.raises(ValueError, match=r"logits has shape \(5, 3\) and \(3,\)"):
        check_equivalence(
            lambda w, x: {"logits": x @ w if w.shape[1] == 3 else x[0]},
            *list(widths.values())[::-1],
            x,
        )
    with pytest.raises(ValueError, match="outputs have structures"):
        check_equivalence(
            lambda w, x: x @ w if w.shape[1] == 3 else (x, x), *list(widths.values()), x
        )


def test_complex_numbers_are_compared_as_such():
    w = jnp.array([[1.0 + 2.0j], [3.0 - 1.0j]])
    x = jnp.ones((4, 2))
    assert check_equivalence(lambda w, x: x @ w, w, w[::-1], x) == 0.0
    # The real parts agree, so only the imaginary parts tell: |4 + 1j - (4 - 1j)| / |4 + 1j|.
    with pytest.raises(ValueError, match=r"the output deviates by 0\.49"):
        check_equivalence(lambda w, x: x @ w, w, w.conj(), x)
