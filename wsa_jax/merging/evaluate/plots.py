"""Figures of paths and planes. Matplotlib is loaded on the first call, not on import."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from wsa_jax import checks
from wsa_jax.merging.evaluate.path import LossPath
from wsa_jax.merging.evaluate.plane import LossPlane
from wsa_jax.plots import draw_curves

if TYPE_CHECKING:
    import matplotlib.axes

_LABELS = {"loss": "mean loss", "accuracy": "accuracy, %"}


def draw_path(
    axes: "matplotlib.axes.Axes",
    paths: Mapping[str, LossPath | Sequence[LossPath]],
    *,
    value: Literal["loss", "accuracy"] = "loss",
) -> None:
    """Draw one line per label: a path, or the mean of several in a band from least to greatest.

    Args:
      axes: where to draw.
      paths: for each label, one path or several (seeds) with the same points t.
      value: loss, or accuracy in per cent.

    Raises:
      ValueError: there is nothing to draw, the paths of a label differ in t, or value is unknown.

    >>> import jax.numpy as jnp
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> t = jnp.array([0.0, 0.5, 1.0])
    >>> draw_path(axes, {"plain": LossPath(t=t, loss=t * (1 - t), accuracy=t)})
    >>> axes.lines[0].get_ydata().tolist()
    [0.0, 0.25, 0.0]
    """
    unit = _unit(value)
    given = {
        label: [paths_] if isinstance(paths_, LossPath) else paths_
        for label, paths_ in paths.items()
    }
    for label, several in given.items():
        if any(getattr(path, value) is None for path in several):
            raise ValueError(f"{label!r} has a path without {value}, since its task counts none")
    series = {
        label: [
            (np.asarray(path.t).tolist(), (unit * np.asarray(getattr(path, value))).tolist())
            for path in several
        ]
        for label, several in given.items()
    }
    empty = [label for label, runs in series.items() if not runs]
    if empty:
        raise ValueError(f"{empty[0]!r} has no path to draw; give it one or leave it out")
    draw_curves(axes, series, xlabel="t, from one model to the other", ylabel=_LABELS[value])


def draw_plane(
    axes: "matplotlib.axes.Axes",
    plane: LossPlane,
    *,
    value: Literal["loss", "accuracy"] = "loss",
    names: Sequence[str] = ("first", "second", "third"),
    levels: int = 12,
    limits: tuple[float | int, float | int] | None = None,
) -> None:
    """Draw a plane as filled contours, with its three models marked and a colour bar.

    x and y have the same scale. Levels of the loss are spaced geometrically, so that basins stay
    visible next to high walls; for both values, bright is good. Points that are not finite stay
    white.

    Args:
      axes: where to draw; its figure gets the colour bar.
      plane: the plane to draw.
      value: loss, or accuracy in per cent.
      names: names of the three models.
      levels: number of contour levels.
      limits: least and greatest level, for comparing planes; by default the plane's own.

    Raises:
      ValueError: a number of names other than three, an unknown value, fewer than 2 levels, or no
        finite value.

    >>> import jax.numpy as jnp
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> x, models = jnp.linspace(0.0, 1.0, 5), jnp.array([[0.0, 0], [1, 0], [0, 1]])
    >>> bowl = (x[:, None] - 0.5) ** 2 + x[None, :] ** 2
    >>> draw_plane(axes, LossPlane(x=x, y=x, loss=bowl, accuracy=bowl, models=models))
    >>> [text.get_text() for text in axes.texts]
    ['first', 'second', 'third']
    """
    if len(names) != 3:
        raise ValueError(f"names {list(names)} has length {len(names)}; a plane has three models")
    if levels < 2:
        raise ValueError(f"levels {levels} is below 2; give at least 2")
    values = _unit(value) * np.asarray(getattr(plane, value), float)
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError(f"the plane has no finite {value} to draw")
    low, high = (finite.min(), finite.max()) if limits is None else limits
    high = max(high, low + 1e-6 * max(1.0, abs(low)))
    geometric = value == "loss" and low > 0
    steps = (np.geomspace if geometric else np.linspace)(low, high, levels)
    # Rounding must not leave the extremes outside the outermost levels.
    steps[0], steps[-1] = low, high
    filled = axes.contourf(
        np.asarray(plane.x),
        np.asarray(plane.y),
        np.ma.masked_invalid(values),
        levels=steps,
        cmap="viridis_r" if value == "loss" else "viridis",
        extend="neither" if limits is None else "both",
        norm="log" if geometric else "linear",
    )
    # Inside the axes' own frame: as high as the plane, whatever its aspect.
    bar = axes.figure.colorbar(
        filled,
        cax=axes.inset_axes((1.03, 0, 0.05, 1)),
        label=_LABELS[value],
        format="{x:.3g}",
        ticks=steps[np.linspace(0, levels - 1, min(levels, 5)).round().astype(int)],
    )
    bar.minorticks_off()
    points = np.asarray(plane.models)
    triangle = np.concatenate([points, points[:1]])
    axes.plot(*triangle.T, color="white", linewidth=1.0, linestyle=(0, (3, 2)))
    axes.plot(*points.T, "o", color="#d1495b", markeredgecolor="white", markersize=7)
    # Names go outwards from the triangle's centre, so that no side runs through them.
    for name, point, way in zip(names, points, points - points.mean(axis=0), strict=True):
        axes.annotate(
            name,
            point,
            xytext=10 * way / np.linalg.norm(way),
            textcoords="offset points",
            ha="right" if way[0] < 0 else "left",
            va="top" if way[1] < 0 else "bottom",
            fontsize=8,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
        )
    axes.set_aspect("equal")
    axes.set_xlabel("distance along first to second model")
    axes.set_ylabel("distance across")


def _unit(value: str) -> float:
    checks.one_of("value", value, _LABELS)
    return 100.0 if value == "accuracy" else 1.0
