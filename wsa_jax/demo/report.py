"""What the demo tells: two tables, a sentence on WSA, a figure, and every number."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsa_jax.plots import PALETTE, draw_curves
from wsa_jax.runs.files import make_folder, write_atomically
from wsa_jax.types import Json


def tell_demo(results: Json, console: Any) -> None:
    """Print the tables, each with the sentence that says what it shows."""
    units = " and ".join(str(group["units"]) for group in results["spec"])
    console.print(
        f"\n1. Two networks are trained from different seeds. The tracer found groups of {units} "
        "units that may be reordered; matching brings one network's into the other's order, which "
        "leaves both as good as they were."
    )
    console.print(_pairs_table(results))
    console.print(
        "2. Two specialists from one start have each seen half of the digits. NP Merge learns, "
        f"from {results['settings']['examples']} labelled examples, how much of each enters at "
        "every parameter."
    )
    console.print(_specialists_table(results))
    console.print(f"3. {wsa_sentence(results)}\n")


def wsa_sentence(results: Json) -> str:
    """What WSA did to these networks, in words that follow from the numbers."""
    plain, held = results["plain"], results["held"]
    apart = [_mean([row["scope_divergence"] for row in rows]) for rows in (plain, held)]
    barriers = [
        [_mean([row[how]["barrier"] for row in rows]) for rows in (plain, held)]
        for how in ("as trained", "matched")
    ]
    change = "lower" if barriers[0][1] < barriers[0][0] else "not lower"
    return (
        f"WSA (strength {results['settings']['strength']:g}) brings the weight scopes of two "
        f"networks from {apart[0]:.1e} to {apart[1]:.1e} nats of one another. The barrier between "
        f"them as trained is {change} for it ({barriers[0][0]:.2f} without, {barriers[0][1]:.2f} "
        f"with WSA; matched {barriers[1][0]:.2f} and {barriers[1][1]:.2f}): small networks of one "
        "recipe have nearly equal scopes anyway, and what keeps them apart is the order of their "
        "units. Where WSA helps and where it does not: docs/explanations/choose.md and "
        "benchmarks/RESULTS.md."
    )


def save_demo(results: Json) -> tuple[Path, Path]:
    """Write the figure and the numbers; return their paths."""
    from matplotlib.figure import Figure

    output = Path(results["settings"]["output"])
    make_folder(output)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    path, merges, scopes = figure.subplots(1, 3, width_ratios=[1.2, 1, 1])
    # One panel a question, in the order in which the demo tells its story.
    draw_curves(
        path,
        {
            how: [(row[how]["t"], row[how]["loss"]) for row in results["plain"]]
            for how in ("as trained", "matched")
        },
        xlabel="from one network (0) to the other (1)",
        ylabel="test loss",
    )
    path.set_title("Two networks, their units matched", fontsize=10)
    names = list(results["specialists"][0])
    values = [100 * _mean([row[name] for row in results["specialists"]]) for name in names]
    bars = merges.barh(names, values, color=["#b9c4ce"] * 2 + [PALETTE[1], PALETTE[3], PALETTE[0]])
    merges.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
    merges.invert_yaxis()
    merges.set_xlim(0, 112)
    merges.set_xlabel("test accuracy on all digits, %")
    merges.set_title("Two specialists, merged", fontsize=10)
    # Points, not means: what one scope does is in how pairs of networks scatter.
    for index, (name, label) in enumerate((("plain", "without WSA"), ("held", "with WSA"))):
        x = [row["scope_divergence"] for row in results[name]]
        for how, marker in (("as trained", "o"), ("matched", "s")):
            y = [row[how]["barrier"] for row in results[name]]
            scopes.plot(x, y, marker, color=PALETTE[index], label=f"{label}, {how}", markersize=5)
    scopes.set_xscale("log")
    scopes.set_xlabel("divergence of the two scopes, nats")
    scopes.set_ylabel("loss barrier")
    scopes.legend(frameon=False, fontsize=7)
    scopes.set_title("Held to one weight scope", fontsize=10)
    for axes in (merges, scopes):
        axes.spines[["top", "right"]].set_visible(False)
    image, numbers = output / "demo.png", output / "demo.json"
    figure.savefig(image, dpi=150)
    write_atomically(numbers, json.dumps(results, indent=1))
    return image, numbers


def _pairs_table(results: Json) -> Any:
    rows = results["plain"]
    table = _table("", "accuracy, %", "loss barrier")
    each = [accuracy for row in rows for accuracy in row["accuracy"]]
    table.add_row("each network", _percent(each), "")
    for how in ("as trained", "matched"):
        table.add_row(
            f"their average, {how}",
            _percent([row[how]["average"] for row in rows]),
            _spread([row[how]["barrier"] for row in rows], "{:.2f}"),
        )
    return table


def _specialists_table(results: Json) -> Any:
    table = _table("", "accuracy on all digits, %")
    for name in results["specialists"][0]:
        table.add_row(name, _percent([row[name] for row in results["specialists"]]))
    return table


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _percent(shares: Sequence[float]) -> str:
    return _spread([100 * share for share in shares], "{:.1f}")


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and range over seeds."""
    mean = form.format(_mean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"
