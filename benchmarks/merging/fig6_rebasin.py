"""WSA's Figure 6: loss barriers with and without WSA, vanilla and after Git Re-Basin.

    python -m benchmarks fig6 [--preset smoke|cpu|paper] [--network resnet|mlp]

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
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.model_cell import ModelCell, check_cells
from benchmarks.merging.pairs import barriers, path_row
from benchmarks.record.claims import Claim, verdict_of, with_interval
from benchmarks.record.figures import METHODS, caption, figure_legend, plain_axes
from benchmarks.record.statistics import Row, Settings, check_same_data, markdown_table, spread
from benchmarks.script import Findings, Summary, figure_name

Rows = dict[str, dict[str, list[Row | None]]]
"""By competitor, then by align, one a seed."""
Values = dict[str, list[int] | list[float]]
"""What each panel of the figure varies, and its values."""
Panels = dict[str, dict[str, list[tuple[float, Row]]]]
"""By what grows, then by line (setting, align): the points there are."""
BASES: dict[Preset, ModelCell] = {
    "smoke": ModelCell(
        dataset="digits", model="mlp", epochs=4, batch_size=50, augmentation="none", norm="none"
    ),
    "cpu": ModelCell(model="resnet", depth=10, width=0.5, norm="layer", epochs=8, examples=10_000),
    "paper": ModelCell(model="resnet", depth=22, width=2.0, norm="layer", epochs=100),
}
# Not the paper's: a network that matching works on at a small budget.
MLP = ModelCell(model="mlp", width=4.0, epochs=10, examples=10_000, learning_rate=0.05)
BASELINES: list[Settings] = [
    {},
    {"learning_rate": 0.03},
    {"weight_decay": 2e-3},
]
WSA: list[Settings] = [
    {"strength": 10.0, "target": "initial"},
    {"strength": 1.0, "target": "initial"},
    {"strength": 10.0, "target": "fixed", "target_std": 0.05},
]
# In small ResNets stronger settings towards N(0, 0.05²) overshoot, and `fit` refuses them: at rate
# 0.1 the first shortcut, of 32 weights at width 0.25, uses 1.25 of the stable range at strength 1
# and 0.625 at 0.5; its 128 at width 0.5 use 3.1 at strength 10.
SMALL_RESNET_WSA = [*WSA[:2], {"strength": 0.5, "target": "fixed", "target_std": 0.05}]
PANELS: dict[Preset, Values] = {
    "smoke": {"epochs": [4], "width": [], "depth": []},
    "cpu": {"epochs": [2, 4, 8], "width": [0.25, 0.5, 1.0], "depth": [10, 16]},
    "paper": {"epochs": [25, 50, 100], "width": [2.0, 4.0, 6.0], "depth": [16, 22, 28]},
}
MLP_PANELS: Values = {
    "epochs": [2, 5, 10, 20, 40],
    "width": [1.0, 2.0, 4.0, 8.0],
}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0, 1), "cpu": (0, 1, 2, 3), "paper": (0, 1, 2, 3)}
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


def setting(base: ModelCell, extra: Settings) -> ModelCell:
    """The base with a competitor's settings."""
    return dataclasses.replace(base, **extra)


def name_of(extra: Settings) -> str:
    """How tables call a competitor."""
    if "strength" in extra:
        goal = "initial scope" if extra["target"] == "initial" else f"N(0, {extra['target_std']}²)"
        return f"WSA {extra['strength']:g}, {goal}"
    parts = {"weight_decay": "weight decay", "learning_rate": "learning rate"}
    return ", ".join(f"{parts[key]} {value:g}" for key, value in extra.items()) or "baseline"


def panels_of(preset: Preset, base: ModelCell) -> Values:
    """What each panel of the figure varies, and its values."""
    return MLP_PANELS if base == MLP else PANELS[preset]


def wsa_cells(preset: Preset, base: ModelCell, extras: Sequence[Settings]) -> list[ModelCell]:
    """Every cell with WSA that may be trained: any competitor may win and go to the panels."""
    cells = [setting(base, extra) for extra in extras]
    return cells + [
        setting(cell, {field: value})
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
    extras: Sequence[Settings],
    seeds: Sequence[int],
) -> Rows:
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
    rows: Mapping[str, Mapping[str, list[Row | None]]],
    extras: list[Settings],
    align: str = "weight",
) -> Settings | None:
    """The competitor whose aligned average has the least validation loss on the first seed.

    None while one of them was not run: the competition is open.
    """
    first = [(extra, rows[name_of(extra)][align][0]) for extra in extras]
    ran = [(extra, middle(row)) for extra, row in first if row is not None]
    return min(ran, key=lambda trial: trial[1])[0] if len(ran) == len(extras) else None


def competition_table(rows: Rows, winners: Sequence[str]) -> str:
    """Every competitor: ends and choice on seed 0, barriers on all its seeds but that."""
    head = [
        "setting",
        "test accuracy of ends, %",
        "matched average: validation loss, seed 0",
        "test barrier, vanilla",
        "test barrier, matched",
        "seeds",
    ]
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


def panel_rows(bench: Bench, preset: Preset, base: ModelCell, wsa: Settings) -> Panels:
    """For each panel and line (setting, align): the points there are."""
    found: Panels = {}
    for field, values in panels_of(preset, base).items():
        for extra, name in (({}, "without WSA"), (wsa, "with WSA")):
            for align, kind in (("none", "vanilla"), ("weight", "matched")):
                line = found.setdefault(field, {}).setdefault(f"{name}, {kind}", [])
                for value in values:
                    cell = setting(base, extra | {field: value})
                    row = path_row(bench, cell, 0, align, points=11, examples=EXAMPLES[preset])
                    if row is not None and barriers([row]):
                        line.append((value, row))
    return found


def draw(panels: Panels, base: ModelCell) -> Figure:
    """The paper's layout: barriers against epochs, width and depth; dashed after matching."""
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
                    color=METHODS[name.split(",")[0]],
                    label=name,
                )
        axes.set_xlabel(field)
        axes.set_xticks(sorted({x for points in lines.values() for x, _ in points}))
        axes.set_ylim(bottom=0)
        plain_axes(axes)
    figure.axes[0].set_ylabel("loss barrier, test (Eq. 7)")
    figure_legend(figure, columns=4 if len(shown) > 1 else 2)
    return caption(figure, f"barrier between two models, {base.label}, seed 0")


@dataclass(frozen=True, kw_only=True)
class Competition:
    """Which settings compete, on which seeds."""

    name: str
    """Of the figure."""
    base: ModelCell
    seeds: Sequence[int]
    baselines: list[Settings]
    candidates: list[Settings]


def competition_of(args: Args) -> Competition:
    """What a command line asks for: as many trials for WSA as for the baseline."""
    name, base, seeds = "fig6_rebasin", BASES[args.preset], seeds_of(args, SEEDS)
    candidates = SMALL_RESNET_WSA if args.preset == "cpu" else WSA
    if args.network == "mlp" and args.preset != "smoke":
        name, base, seeds, candidates = "fig6_rebasin_mlp", MLP, args.seed or range(6), WSA
    trials = 2 if args.preset == "smoke" else 3
    return Competition(
        name=name,
        base=base,
        seeds=seeds,
        baselines=BASELINES[:trials],
        candidates=candidates[:trials],
    )


class Outcome(NamedTuple):
    """The rows of a competition; without winners while it is open."""

    rows: Rows
    ran: int
    """How many of its trials were run."""
    baseline: Settings | None
    wsa: Settings | None
    panels: Panels


def collect(bench: Bench, args: Args) -> Outcome | None:
    """Let the settings compete on the first seed, the winners on all, and grow the winners."""
    asked = competition_of(args)
    base, (first, *_) = asked.base, asked.seeds
    if not args.report_only:
        check_cells(wsa_cells(args.preset, base, asked.candidates))
    rows = compete(bench, args.preset, base, [*asked.baselines, *asked.candidates], [first])
    ran = sum(aligns["weight"][0] is not None for aligns in rows.values())
    best, best_wsa = choose(rows, asked.baselines), choose(rows, asked.candidates)
    if best is None or best_wsa is None:
        bench.tally.undecided.add("the competition")
        return Outcome(rows, ran, None, None, {}) if ran else None
    rows |= compete(bench, args.preset, base, [best, best_wsa], asked.seeds)
    return Outcome(rows, ran, best, best_wsa, panel_rows(bench, args.preset, base, best_wsa))


def report(bench: Bench, args: Args, found: Outcome) -> Findings:
    """The competition, the winners' paired differences, and the panels."""
    rows, ran, best, best_wsa, panels = found
    name = competition_of(args).name
    title = "Figure 6: barriers of Git Re-Basin with and without WSA (± std)"
    last: Summary = {"benchmark": name, "baseline": None, "wsa": None}
    if best is None or best_wsa is None:
        left = f"The competition is open: {ran} of its {len(rows)} trials were run."
        text = f"{competition_table(rows, ())}\n\n{left}"
        return Findings(title=title, text=text, summary=last)
    lines = list[str]()
    ours, theirs = (rows[name_of(extra)] for extra in (best_wsa, best))
    last |= {"baseline": name_of(best), "wsa": name_of(best_wsa)}
    for align, kind in (("none", "vanilla"), ("weight", "matched")):
        differences = paired_differences(ours[align][1:], theirs[align][1:])
        lines.append(
            f"* {kind}: barrier with WSA less without, paired on test, ± 95 % interval: "
            f"{with_interval(differences)}"
        )
        last[f"difference_{kind}"] = differences
    last["panels"] = {
        field: {
            name: [[x, row["test"]["barrier"]] for x, row in line] for name, line in lines.items()
        }
        for field, lines in panels.items()
    }
    table = competition_table(rows, (name_of(best), name_of(best_wsa)))
    return Findings(
        title=title,
        text="\n\n".join([table, "\n".join(lines), f"The paper: {CLAIM}"]),
        figures={figure_name(name, args.preset): lambda: draw(panels, competition_of(args).base)},
        summary=last,
    )


def claims() -> list[Claim]:
    """The winners' barriers, without WSA less with it, paired on the seeds of the test."""
    lines = []
    for network, name, page in (
        ("resnet", "ResNet-10 LN x0.5", "figure-6-git-re-basin-with-and-without-wsa-resnet"),
        ("mlp", "MLP, 2 x 256", "figure-6-on-a-network-that-matching-works-on-an-mlp"),
    ):
        for size, found in on_record(collect, Args, network=network).items():
            if size == "full size" or found.baseline is None or found.wsa is None:
                continue
            ours, theirs = (found.rows[name_of(extra)] for extra in (found.wsa, found.baseline))
            for align, kind in (("none", "not matched"), ("weight", "matched")):
                lower = paired_differences(theirs[align][1:], ours[align][1:])
                lines.append(
                    Claim(
                        "WSA, Figure 6",
                        f"WSA lowers the barrier, {kind}",
                        f"{name}, best of 3 trials a side, {size}",
                        f"lower by {with_interval(lower)}",
                        "",
                        verdict_of(lower),
                        f"barriers.md#{page}",
                    )
                )
    return lines


SCRIPT = MergingExperiment(
    name="fig6_rebasin",
    description=__doc__,
    arguments=Args,
    collect=collect,
    report=report,
    claims=claims,
)
