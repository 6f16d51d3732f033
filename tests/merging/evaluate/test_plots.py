"""Figures of paths and planes show the numbers they were given."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wsa_jax.merging import Path
from wsa_jax.merging.evaluate.plane import LossPlane
from wsa_jax.merging.evaluate.plots import draw_path, draw_plane

T = jnp.array([0.0, 0.5, 1.0])


def path(peak):
    return Path(t=T, loss=jnp.array([1.0, peak, 1.0]), accuracy=jnp.array([0.9, 0.5, 0.9]))


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.fixture
def plane():
    x, y = jnp.linspace(-1.0, 3.0, 5), jnp.linspace(-1.0, 2.0, 4)
    loss = 0.1 + x[None, :] ** 2 + y[:, None] ** 2
    models = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.5, 1.0]])
    return LossPlane(x=x, y=y, loss=loss, accuracy=1 / (1 + loss), models=models)


class TestPath:
    def test_one_line_a_label_and_the_mean_of_seeds(self, axes):
        draw_path(axes, {"one": path(3.0), "two": [path(2.0), path(4.0)]})
        for line in axes.lines:
            np.testing.assert_allclose(line.get_xydata().T, [[0, 0.5, 1], [1, 3, 1]])
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]

    def test_accuracy_in_per_cent(self, axes):
        draw_path(axes, {"one": path(3.0)}, value="accuracy")
        np.testing.assert_allclose(axes.lines[0].get_ydata(), [90, 50, 90])
        assert axes.get_ylabel() == "accuracy, %"

    def test_errors(self, axes):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw_path(axes, {})
        with pytest.raises(ValueError, match="'a' has no path to draw"):
            draw_path(axes, {"a": []})
        with pytest.raises(ValueError, match="value 'error' is unknown"):
            inspect.unwrap(draw_path)(axes, {"a": path(1.0)}, value="error")


class TestPlane:
    @pytest.mark.parametrize("value", ["loss", "accuracy"])
    def test_marks_the_models_and_spans_the_values(self, axes, plane, value):
        draw_plane(axes, plane, value=value, names=("A", "B", "C"))
        np.testing.assert_allclose(axes.lines[-1].get_xydata(), plane.models)
        assert [text.get_text() for text in axes.texts] == ["A", "B", "C"]
        values = np.asarray(getattr(plane, value)) * (100 if value == "accuracy" else 1)
        levels = axes.collections[0].levels
        np.testing.assert_allclose(levels[[0, -1]], [values.min(), values.max()], rtol=1e-6)
        FigureCanvasAgg(axes.figure).draw()

    def test_limits_are_shared(self, axes, plane):
        draw_plane(axes, plane, limits=(0.5, 5))
        np.testing.assert_allclose(axes.collections[0].levels[[0, -1]], [0.5, 5])

    def test_what_is_not_finite_stays_out(self, axes, plane):
        draw_plane(
            axes,
            LossPlane(
                x=plane.x, y=plane.y, loss=plane.loss.at[0, 0].set(jnp.inf),
                accuracy=plane.accuracy, models=plane.models,
            ),
        )  # fmt: skip
        rest = np.asarray(plane.loss).ravel()[1:]
        np.testing.assert_allclose(axes.collections[0].levels[-1], rest.max(), rtol=1e-6)

    def test_flat_plane(self, axes, plane):
        flat = jnp.zeros_like(plane.loss)
        draw_plane(
            axes, LossPlane(x=plane.x, y=plane.y, loss=flat, accuracy=flat, models=plane.models)
        )
        FigureCanvasAgg(axes.figure).draw()

    def test_errors(self, axes, plane):
        with pytest.raises(ValueError, match="a plane has three models"):
            draw_plane(axes, plane, names=("a", "b"))
        with pytest.raises(ValueError, match="levels 1 is below 2"):
            draw_plane(axes, plane, levels=1)
        hole = jnp.full_like(plane.loss, jnp.nan)
        with pytest.raises(ValueError, match="no finite loss to draw"):
            draw_plane(
                axes, LossPlane(x=plane.x, y=plane.y, loss=hole, accuracy=hole, models=plane.models)
            )
