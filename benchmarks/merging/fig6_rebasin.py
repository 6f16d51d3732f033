"""WSA's Figure 6: loss barriers with and without WSA, vanilla and after Git Re-Basin.

    python -m benchmarks.fig6_rebasin [--preset smoke|cpu|paper] [--network resnet|mlp]

Two models of one setting are trained from different seeds on the same data; the barrier (Eq. 7, on
the test set) is that of the line between them, before and after weight matching. Three baselines
and three WSA settings compete on the validation part of seed 0 by the loss of the matched average,
which weighs the ends and the barrier; the winners meet on the other seeds, paired. Then epochs,
widths and depths, each with the default baseline and the chosen WSA setting.

paper: ResNet-22 of width 2, LayerNorm, all of CIFAR-10, 25 to 100 epochs, widths 2, 4, 6, depths
16, 22, 28. cpu cuts to ResNet-10 of width 0.5 on 10,000 examples, 2 to 8 epochs, widths 0.25
to 1, depths 10 and 16. smoke: MLPs on digits.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.merging.model_cell import ModelCell, check_cells
from benchmarks.merging.pairs import Bench, MergingArgs, Preset, barriers, path_row, seeds_of
from benchmarks.record.statistics import Row, check_same_data, markdown_table, signed, spread

BASES: dict[Preset, ModelCell] = {
    "smoke": ModelCell(
        dataset="digits", model="mlp", epochs=4, batch_size=50, augmentation="none", norm="none"
    ),
    "cpu": ModelCell(model="resnet", depth=10, width=0.5, norm="layer", epochs=8, examples=10_000),
    "paper": ModelCell(model="resnet", depth=22, width=2.0, norm="layer", epochs=100),
}
# Not the paper's: a network that matching works on at a small budget.
MLP = ModelCell(model="mlp", width=4.0, epochs=10, examples=10_000, learning_rate=0.05)
BASELINES: list[dict[str, Any]] = [
    {},
    {"learning_rate": 0.03},
    {"weight_decay": 2e-3},
]
WSA: list[dict[str, Any]] = [
    {"strength": 10.0, "target": "initial"},
    {"strength": 1.0, "target": "initial"},
    {"strength": 10.0, "target": "fixed", "target_std": 0.05},
]
# In small ResNets stronger settings towards N(0, 0.05²) overshoot, and `fit` refuses them: at rate
# 0.1 the first shortcut, of 32 weights at width 0.25, uses 1.25 of the stable range at strength 1
# and 0.625 at 0.5; its 128 at width 0.5 use 3.1 at strength 10.
SMALL_RESNET_WSA = [*WSA[:2], {"strength": 0.5, "target": "fixed", "target_std": 0.05}]
PANELS: dict[Preset, dict[str, list[Any]]] = {
    "smoke": {"epochs": [4], "width": [], "depth": []},
    "cpu": {"epochs": [2, 4, 8], "width": [0.25, 0.5, 1.0], "depth": [10, 16]},
    "paper": {"epochs": [25, 50, 100], "width": [2.0, 4.0, 6.0], "depth": [16, 22, 28]},
}
MLP_PANELS: dict[str, list[Any]] = {"epochs": [2, 5, 10, 20, 40], "width": [1.0, 2.0, 4.0, 8.0]}
SEEDS: dict[str, Sequence[int]] = {"smoke": (0, 1), "cpu": (0, 1, 2), "paper": (0, 1, 2, 3)}
EXAMPLES = {"smoke": 0, "cpu": 5_000, "paper": 0}
CLAIM = (
    "the barrier grows with the epochs without WSA, matching or not, and stays lower with WSA at "
    "every number of epochs, width and depth (curves; no numbers are given)."
)


@dataclass(frozen=True, kw_only=True)
class Args(MergingArgs):
    """Arguments."""

    network: Literal["resnet", "mlp"] = "resnet"
    """mlp: two hidden layers of 256 on CIFAR-10, whatever the preset but smoke; six seeds."""


def setting(base: ModelCell, extra: dict[str, Any]) -> ModelCell:
    """The base with a competitor's settings."""
    return dataclasses.replace(base, **extra)


def name_of(extra: dict[str, Any]) -> str:
    """How tables call a competitor."""
    if "strength" in extra:
        goal = "initial scope" if extra["target"] == "initial" else f"N(0, {extra['target_std']}²)"
        return f"WSA {extra['strength']:g}, {goal}"
    parts = {"weight_decay": "weight decay", "learning_rate": "learning rate"}
    return ", ".join(f"{parts[key]} {value:g}" for key, value in extra.items()) or "baseline"


def panels_of(preset: Preset, base: ModelCell) -> dict[str, list[Any]]:
    """What each panel of the figure varies, and its values."""
    return MLP_PANELS if base == MLP else PANELS[preset]


def wsa_cells(preset: Preset, base: ModelCell, extras: Sequence[dict[str, Any]]) -> list[ModelCell]:
    """Every cell with WSA that may be trained: any competitor may win and go to the panels."""
    cells = [setting(base, extra) for extra in extras]
    return cells + [
        dataclasses.replace(cell, **{field: value})
        for cell in cells
        for field, values in panels_of(preset, base).items()
        for value in values
    ]


def middle(row: Row) -> float:
    """Validation loss half-way, infinite where the models or their average diverged."""
    losses = row.get("validation", {}).get("loss", [None])
    found = losses[len(losses) // 2]
    return math.inf if found is None else found


def ends(rows: Sequence[Row]) -> list[float]:
    """Test accuracies of the models themselves, in percent."""
    return [100 * row["test"]["accuracy"][end] for row in rows if "test" in row for end in (0, -1)]


def compete(
    bench: Bench,
    preset: Preset,
    base: ModelCell,
    extras: Sequence[dict[str, Any]],
    seeds: Sequence[int],
) -> dict[str, dict[str, list[Row | None]]]:
    """Rows of competitors: by name, then by align, one a seed."""
    return {
        name_of(extra): {
            align: [
                path_row(
                    bench, setting(base, extra), seed, align, points=11, examples=EXAMPLES[preset]
                )
                for seed in seeds
            ]
            for align in ("none", "weight")
        }
        for extra in extras
    }


def choose(
    rows: dict[str, dict[str, list[Row | None]]], extras: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The competitor whose matched average has the least validation loss on the first seed.

    None while one of them was not run: the competition is open.
    """
    first = [(extra, rows[name_of(extra)]["weight"][0]) for extra in extras]
    ran = [(extra, middle(row)) for extra, row in first if row is not None]
    return min(ran, key=lambda trial: trial[1])[0] if len(ran) == len(extras) else None


def competition_table(rows: dict[str, dict[str, list[Row | None]]], winners: Sequence[str]) -> str:
    """Every competitor: ends and choice on seed 0, barriers on all its seeds but that."""
    head = ["setting", "test accuracy of ends, %", "matched average: validation loss, seed 0",
            "test barrier, vanilla", "test barrier, matched", "seeds"]  # fmt: skip
    lines = []
    for name, aligns in rows.items():
        there = [row for row in aligns["weight"] if row is not None]
        if not there:
            continue
        trial = aligns["weight"][0]
        loss = None if trial is None else middle(trial)
        lines.append(
            [
                f"**{name}**" if name in winners else name,
                spread(ends(there)),
                "" if loss is None else "diverged" if math.isinf(loss) else f"{loss:.3f}",
                spread(barriers(aligns["none"][1:])),
                spread(barriers(aligns["weight"][1:])),
                str(sum(row is not None for row in aligns["weight"][1:])),
            ]
        )
    return markdown_table(head, lines)


def paired_differences(ours: Sequence[Row | None], theirs: Sequence[Row | None]) -> list[float]:
    """Our barrier less theirs, of each seed that has both."""
    differences = []
    for mine, other in zip(ours, theirs, strict=True):
        if mine is not None and other is not None:
            check_same_data(mine, other)
            pair = barriers((mine, other))
            differences += [pair[0] - pair[1]] if len(pair) == 2 else []
    return differences


def panel_rows(
    bench: Bench, preset: Preset, base: ModelCell, wsa: dict[str, Any]
) -> dict[str, dict[str, list[tuple[float, Row]]]]:
    """For each panel and line (setting, align): the points there are."""
    found: dict[str, dict[str, list[tuple[float, Row]]]] = {}
    for field, values in panels_of(preset, base).items():
        for extra, name in (({}, "without WSA"), (wsa, "with WSA")):
            for align, kind in (("none", "vanilla"), ("weight", "matched")):
                line = found.setdefault(field, {}).setdefault(f"{name}, {kind}", [])
                for value in values:
                    cell = dataclasses.replace(setting(base, extra), **{field: value})
                    row = path_row(bench, cell, 0, align, points=11, examples=EXAMPLES[preset])
                    if row is not None and barriers([row]):
                        line.append((value, row))
    return found


def draw(panels: dict[str, dict[str, list[tuple[float, Row]]]]) -> Any:
    """The paper's layout: barriers against epochs, width and depth; dashed after matching."""
    from matplotlib.figure import Figure

    from benchmarks.record.figures import figure_legend
    from wsa_jax.plots import PALETTE

    there = {field: lines for field, lines in panels.items() if any(lines.values())}
    # A panel of one point shows nothing, unless there is no other.
    grown = {f: lines for f, lines in there.items() if any(len(x) > 1 for x in lines.values())}
    shown = grown or there
    figure = Figure(figsize=(4.2 * max(len(shown), 1), 3.8), layout="constrained")
    for axes, (field, lines) in zip(
        np.ravel(figure.subplots(1, len(shown), squeeze=False)), shown.items(), strict=True
    ):
        for name, points in lines.items():
            if points:
                axes.plot(
                    [x for x, _ in points],
                    [row["test"]["barrier"] for _, row in points],
                    "o--" if "matched" in name else "o-",
                    color=PALETTE[1 if "with WSA" in name else 0],
                    label=name,
                )
        axes.set_xlabel(field)
        axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("loss barrier, test (Eq. 7)")
    figure_legend(figure, columns=4 if len(shown) > 1 else 2)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Train, match, choose, compare, draw."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    bench, base, seeds = Bench.open(args), BASES[args.preset], seeds_of(args, SEEDS)
    name, candidates = "fig6_rebasin", SMALL_RESNET_WSA if args.preset == "cpu" else WSA
    if args.network == "mlp" and args.preset != "smoke":
        base, seeds, name, candidates = MLP, args.seed or range(6), "fig6_rebasin_mlp", WSA
    # As many trials for WSA as for the baseline.
    trials = 2 if args.preset == "smoke" else 3
    baselines, candidates = BASELINES[:trials], candidates[:trials]
    if not args.report_only:
        check_cells(wsa_cells(args.preset, base, candidates))
    rows = compete(bench, args.preset, base, [*baselines, *candidates], seeds[:1])
    ran = sum(aligns["weight"][0] is not None for aligns in rows.values())
    if not ran:
        sys.exit(f"{bench.rows.path} holds none of these rows: nothing to report")
    best, best_wsa = choose(rows, baselines), choose(rows, candidates)
    print("\n## Figure 6: barriers of Git Re-Basin with and without WSA (± std)\n")
    last: dict[str, Any] = {"benchmark": name, "preset": args.preset}
    if best is None or best_wsa is None:
        print(competition_table(rows, ()))
        print(f"\nthe competition is open: {ran} of its {len(rows)} trials were run")
        print(json.dumps(last | {"baseline": None, "wsa": None, "figure": None}))
        return
    rows |= compete(bench, args.preset, base, [best, best_wsa], seeds)
    print(competition_table(rows, (name_of(best), name_of(best_wsa))))
    ours, theirs = (rows[name_of(extra)] for extra in (best_wsa, best))
    last |= {"baseline": name_of(best), "wsa": name_of(best_wsa)}
    for align, kind in (("none", "vanilla"), ("weight", "matched")):
        differences = paired_differences(ours[align][1:], theirs[align][1:])
        print(
            f"\n{kind}: barrier with WSA less without, paired on test, ± standard error: "
            f"{signed(differences)}"
        )
        last[f"difference_{kind}"] = differences
    panels = panel_rows(bench, args.preset, base, best_wsa)
    figure = bench.output / f"{name}.png"
    draw(panels).savefig(figure, dpi=150)
    print(f"\nThe paper: {CLAIM}\n\nfigure: {figure}")
    last["panels"] = {
        field: {
            name: [[x, row["test"]["barrier"]] for x, row in line] for name, line in lines.items()
        }
        for field, lines in panels.items()
    }
    print(json.dumps(last | {"figure": str(figure)}))


if __name__ == "__main__":
    main(sys.argv[1:])
