"""WSA's Table 1: do training conditions that move the weight scopes apart raise the barrier?

    python -m benchmarks table1 [--preset smoke|cpu|paper]

Three models for each condition: two in the base setting, and a third that differs from the second
in that condition only, with its initial weights and order of the data. The divergence is the mean
over layers of KL(N(second) || N(first)); the barrier that of the line on the test set (Eq. 7).

The control that the paper lacks: both pairs again after `rescale` has brought the second model's
scopes as near the first's as scales of its units can, which leaves its function as it is. What the
barrier keeps then is not due to a mismatch of scopes. Scales keep the product of all layers' stds,
so a third time every std is made the first's: that multiplies the logits by one number, which
changes the loss but no prediction, and the barrier in accuracy is what to look at.

cpu: the MLP of Figure 5 on images of 16x16, three seeds. paper: VGG11, four. smoke: MLPs on digits.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy.stats import rankdata

from benchmarks.merging.bench import (
    Bench,
    MergingArgs,
    MergingExperiment,
    Preset,
    on_record,
    seeds_of,
)
from benchmarks.merging.fig5_otfusion import BASES, SMOKE
from benchmarks.merging.fig6_rebasin import setting
from benchmarks.merging.model_cell import ModelCell
from benchmarks.merging.pairs import Align, path_row
from benchmarks.record.claims import UNDECIDED, Claim, verdict_of, with_interval
from benchmarks.record.figures import INK, caption, figure_legend, panels, plain_axes
from benchmarks.record.statistics import Row, Settings, markdown_table, spread
from benchmarks.script import Findings, Summary, figure_name
from wsa_jax.plots import PALETTE

NETWORKS: dict[Preset, ModelCell] = {"smoke": SMOKE, "cpu": BASES["mlp"], "paper": BASES["vgg"]}
SEEDS: dict[Preset, Sequence[int]] = {"smoke": (0,), "cpu": (0, 1, 2), "paper": (0, 1, 2, 3)}
CONDITIONS: dict[str, Settings] = {
    "optimiser": {"optimizer": "adam", "learning_rate": 1e-3},
    "batch size": {"batch_size": 500},
    "learning rate": {"learning_rate": 0.01},
    "weight decay": {"weight_decay": 5e-3},
    "label imbalance": {"imbalance": 0.01},
    "label noise": {"label_noise": 0.4},
    "feature noise": {"feature_noise": 0.2},
    "data size": {"examples": 9_000},
}
# Those that compile least.
SMOKE_CONDITIONS = {
    name: CONDITIONS[name] for name in ("optimiser", "label noise", "feature noise")
}
ALIGNS: dict[Align, str] = {
    "none": "as they are",
    "rescale": "rescaled",
    "equal stds": "equal stds",
}
SAME = "same"
POINTS = 11
RESAMPLES = 10_000
PAGE = "barriers.md#table-1-training-conditions"
CLAIM = (
    "a larger divergence of the scopes comes with a larger barrier, and scope mismatch is "
    '"strongly correlated" with it (eight conditions, one pair each; no correlation is given).'
)
Pairs = dict[str, list[Row | None]]
"""By align, one a seed."""


Kind = Literal["barrier", "accuracy_barrier"]


class Correlation(NamedTuple):
    """Spearman's, and its 95 % bootstrap interval over conditions; None for fewer than five."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:+.2f}"
        low, high = self.interval
        return f"{self.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def conditions_of(preset: Preset) -> dict[str, Settings]:
    """What a preset changes, one condition at a time."""
    return SMOKE_CONDITIONS if preset == "smoke" else CONDITIONS


def collect(bench: Bench, args: MergingArgs) -> dict[str, Pairs]:
    """The pair of one setting, and by condition the pair of two."""
    base, seeds = NETWORKS[args.preset], seeds_of(args, SEEDS)

    def pairs(other: ModelCell) -> Pairs:
        return {
            align: [
                path_row(bench, base, seed, align, points=POINTS, examples=0, other=other)
                for seed in seeds
            ]
            for align in ALIGNS
        }

    found = {SAME: pairs(base)} | {
        name: pairs(setting(base, extra)) for name, extra in conditions_of(args.preset).items()
    }
    there = any(barrier_of(row) is not None for rows in found.values() for row in rows["none"])
    return found if there else {}


def barrier_of(row: Row | None, kind: Kind = "barrier") -> float | None:
    """The test barrier; None where a model diverged or the line is not finite."""
    return None if row is None else row.get("test", {}).get(kind)


def divergence_of(row: Row | None) -> float | None:
    """The mean over layers."""
    return None if row is None or "divergence" not in row else float(np.mean(row["divergence"]))


def known(values: Sequence[float | None]) -> list[float]:
    """Those there are."""
    return [value for value in values if value is not None]


def excesses(
    found: dict[str, Pairs], name: str, align: Align, kind: Kind = "barrier"
) -> list[float | None]:
    """Barriers of different conditions less those of equal ones, one a seed."""
    both = zip(found[name][align], found[SAME][align], strict=True)
    ends = [(barrier_of(different, kind), barrier_of(same, kind)) for different, same in both]
    return [None if a is None or b is None else a - b for a, b in ends]


def mean_excesses(found: dict[str, Pairs], align: Align, kind: Kind = "barrier") -> list[float]:
    """The mean over conditions, one a seed; seeds that lack a condition are left out."""
    names = [name for name in found if name != SAME]
    by_seed = zip(*(excesses(found, name, align, kind) for name in names), strict=True)
    return [float(np.mean(known(row))) for row in by_seed if None not in row]


def mean_drops(found: dict[str, Pairs], align: Align, kind: Kind = "barrier") -> list[float]:
    """By how much an align lowers the barriers of different conditions: their mean, one a seed."""
    drops = []
    for seed in range(len(found[SAME]["none"])):
        before, after = (
            [barrier_of(rows[each][seed], kind) for name, rows in found.items() if name != SAME]
            for each in ("none", align)
        )
        if len(known([*before, *after])) == 2 * len(before):
            drops.append(float(np.mean(known(before)) - np.mean(known(after))))
    return drops


def points_of(found: dict[str, Pairs], align: Align) -> dict[str, tuple[float, float]]:
    """Divergence as trained and barrier after the align, by condition; means over seeds."""
    points = {}
    for name, rows in found.items():
        divergences = known([divergence_of(row) for row in rows["none"]])
        heights = known([barrier_of(row) for row in rows[align]])
        if name != SAME and divergences and heights:
            points[name] = (float(np.mean(divergences)), float(np.mean(heights)))
    return points


def correlation(points: Sequence[tuple[float, float]]) -> Correlation | None:
    """Spearman's rank correlation, with a bootstrap interval over the points.

    >>> found = correlation([(1.0, 2.0), (2.0, 3.0), (3.0, 5.0), (4.0, 9.0)])
    >>> round(found.value, 6), correlation([(1.0, 2.0)]) is None
    (1.0, True)
    """
    if len(points) < 3:
        return None
    values = np.asarray(points)
    value = float(_spearman(values[None])[0])
    # So few points make resamples of two, whose correlation is always 1 or -1.
    if len(points) < 5:
        return Correlation(value, None)
    drawn = np.random.default_rng(0).integers(len(points), size=(RESAMPLES, len(points)))
    resampled = _spearman(values[drawn])
    resampled = resampled[np.isfinite(resampled)]
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Correlation(value, (float(low), float(high)))


def _spearman(samples: np.ndarray) -> np.ndarray:
    """Of each sample [samples, points, 2]; NaN where one of both is constant."""
    ranks = rankdata(samples, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(1).prod(1))
    products = ranks.prod(2).sum(1)
    return np.divide(products, norms, out=np.full_like(norms, np.nan), where=norms > 1e-9)


def correlation_verdict(found: Correlation | None) -> str:
    """Above 0 is for the paper."""
    if found is None or found.interval is None:
        return "not run yet"
    low, high = found.interval
    return "confirmed" if low > 0 else "the reverse" if high < 0 else UNDECIDED


def line(found: dict[str, Pairs], name: str, changed: str) -> list[str]:
    """One condition: divergence and barrier as they are and rescaled."""
    rows = found[name]
    cells = [name, changed]
    for align in ALIGNS:
        accuracies = known([barrier_of(row, "accuracy_barrier") for row in rows[align]])
        cells += [
            _mean([divergence_of(row) for row in rows[align]]),
            spread(known([barrier_of(row) for row in rows[align]])),
            spread([100 * value for value in accuracies]),
        ]
    return [*cells, str(len(known([barrier_of(row) for row in rows["none"]])))]


def _mean(values: Sequence[float | None]) -> str:
    there = known(values)
    return f"{np.mean(there):.3g}" if there else ""


def changed_text(extra: Settings) -> str:
    """What a condition changes."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in extra.items())


def report(bench: Bench, args: MergingArgs, found: dict[str, Pairs]) -> Findings:
    """Divergences and barriers by condition, their correlation, and the control."""
    label = NETWORKS[args.preset].label
    head = ["condition", "of the third model"]
    for kind in ALIGNS.values():
        head += [f"KL, {kind}", f"barrier, {kind}", f"in accuracy, {kind}, %"]
    lines = [line(found, SAME, "as the others")]
    lines += [
        line(found, name, changed_text(extra)) for name, extra in conditions_of(args.preset).items()
    ]
    remarks, last = [], Summary()
    for align, kind in ALIGNS.items():
        rho = correlation(list(points_of(found, align).values()))
        last[f"correlation, {kind}"] = None if rho is None else rho.value
        last[f"more than same, {kind}"] = mean_excesses(found, align)
        if last[f"more than same, {kind}"]:
            worse = [100 * value for value in mean_excesses(found, align, "accuracy_barrier")]
            remarks.append(
                f"* Different less same conditions, {kind}: barrier "
                f"{with_interval(last[f'more than same, {kind}'])}, in accuracy "
                f"{with_interval(worse)} points, mean over conditions."
            )
        if rho is not None:
            remarks.append(
                f"* Rank correlation of KL as trained with the barrier, {kind}: {rho} over "
                f"{len(points_of(found, align))} conditions."
            )
    text = "\n\n".join(
        [markdown_table([*head, "seeds"], lines), "\n".join(remarks), f"The paper: {CLAIM}"]
    )
    return Findings(
        title=f"Table 1: training conditions, {label}",
        text=text,
        figures={figure_name("table1_conditions", args.preset): lambda: draw(found, label)},
        summary=last,
    )


def draw(found: dict[str, Pairs], label: str) -> Figure:
    """Barrier over divergence, a point a condition, before and after the control."""
    figure, axes = panels(len(ALIGNS), width=5.2, height=4.0)
    for panel, (align, kind) in zip(axes, ALIGNS.items(), strict=True):
        for name, (divergence, barrier) in points_of(found, align).items():
            color = PALETTE[list(CONDITIONS).index(name) % len(PALETTE)]
            panel.plot(divergence, barrier, "o", markersize=8, color=color, label=name)
        if same := known([barrier_of(row) for row in found[SAME][align]]):
            panel.axhline(float(np.mean(same)), color=INK, linestyle="--", label="same condition")
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(bottom=min(0.0, panel.get_ylim()[0]))
        panel.set_xlabel("KL of the scopes as trained")
        panel.set_ylabel("test loss barrier")
        panel.set_title(kind, fontsize=10)
        plain_axes(panel)
    figure_legend(figure, columns=5)
    return caption(figure, label)


def claims() -> list[Claim]:
    """The correlation, the cost of another condition, and whether rescaling takes it away."""
    lines = []
    for size, found in on_record(collect).items():
        label = NETWORKS["paper" if size == "full size" else "cpu"].label
        points = points_of(found, "none")
        rho = correlation(list(points.values()))
        cost = mean_excesses(found, "none")
        rescaled = mean_drops(found, "rescale")
        equal = [100 * value for value in mean_drops(found, "equal stds", "accuracy_barrier")]
        stated = [
            (
                "the more the scopes differ, the larger the barrier",
                f"rank correlation {rho}" if rho else "",
                correlation_verdict(rho),
            ),
            (
                "the barrier is larger under different conditions",
                f"larger by {with_interval(cost)}" if cost else "",
                verdict_of(cost),
            ),
            (
                "scopes cause it: rescaling lowers it under different conditions",
                f"lower by {with_interval(rescaled, digits=3)}" if rescaled else "",
                verdict_of(rescaled),
            ),
            (
                "scopes cause it: equal stds lower it under different conditions",
                f"lower by {with_interval(equal)} points of accuracy" if equal else "",
                verdict_of(equal),
            ),
        ]
        lines += [
            Claim("WSA, Table 1", claim, f"{label}, {len(points)} conditions", ours, "", said, PAGE)
            for claim, ours, said in stated
        ]
    return lines


SCRIPT = MergingExperiment(
    name="table1_conditions",
    description=__doc__,
    collect=collect,
    report=report,
    claims=claims,
    data={"cpu": "CIFAR-10 at 16x16", "paper": "CIFAR-10"},
)
