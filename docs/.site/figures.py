"""The figures of the explanations: ``python docs/.site/figures.py`` draws them anew."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wsa_jax.plots import PALETTE

FOLDER = Path(__file__).resolve().parent.parent / "figures"


def density(x, mean, std):
    """A Gaussian's density."""
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))


def scope() -> Figure:
    """Two scopes and their fusion; what a divergence charges for a std and for a mean."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    x = np.linspace(-0.5, 0.5, 400)
    scopes = {"model 1": (0.02, 0.08), "model 2": (-0.04, 0.16)}
    means, stds = np.transpose(list(scopes.values()))
    scopes["fused"] = (means.mean(), np.sqrt(np.mean(stds**2)))
    for (label, (mean, std)), color, dash in zip(
        scopes.items(), PALETTE, ("-", "--", "-"), strict=False
    ):
        width = 3.0 if label == "fused" else 1.8
        left.plot(x, density(x, mean, std), dash, color=color, label=label, linewidth=width)
    left.set_xlabel("weight")
    left.set_ylabel("density of a layer's weights")
    ratio = np.linspace(0.2, 3, 300)
    for shift, color in ((0.0, PALETTE[0]), (1.0, PALETTE[1])):
        divergence = -np.log(ratio) + 0.5 * (ratio**2 + shift**2) - 0.5
        label = "means equal" if shift == 0 else "means one target std apart"
        right.plot(ratio, divergence, color=color, label=label, linewidth=1.8)
    right.set_xlabel("std of the layer over that of its target")
    right.set_ylabel("divergence, nats")
    right.set_ylim(0, 4)
    _finish(left, right)
    return figure


def stability() -> Figure:
    """The std after each explicit step, below and above the bound, and under the proximal step."""
    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    target = 1.0
    for share, color, dash in ((0.2, PALETTE[0], "-"), (1.2, PALETTE[1], "--")):
        stds = [1.5]
        for _ in range(12):
            std = stds[-1]
            # The gradient of the divergence in a layer of one weight a unit: 1/target² - 1/std².
            stds.append(abs(std - share * (std / target**2 - 1 / std)))
        axes.plot(
            stds, dash, color=color, marker="o", markersize=4, label=f"explicit, {share} used"
        )
    proximal = [1.5]
    for _ in range(12):
        # The minimiser of divergence + (new - old)² / (2 share): a quadratic equation.
        share, std = 1.2, proximal[-1]
        proximal.append((std + np.sqrt(std**2 + 4 * share * (1 + share))) / (2 * (1 + share)))
    axes.plot(proximal, ":", color=PALETTE[2], marker="s", markersize=4, label="proximal, 1.2 used")
    axes.set_yscale("log")
    axes.set_yticks([0.3, 1, 3], ["0.3", "1", "3"])
    axes.set_xlabel("step")
    axes.set_ylabel("std over the target's")
    _finish(axes)
    return figure


def _finish(*axes):
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.legend(frameon=False, fontsize=8)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for draw in (scope, stability):
        draw().savefig(FOLDER / f"{draw.__name__}.png", dpi=130)
