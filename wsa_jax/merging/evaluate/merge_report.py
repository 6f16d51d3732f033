"""How hard models are to merge, and why: scopes, units and barriers in one report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Key, Shaped

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.merging.aligns import activations_of, align_models
from wsa_jax.merging.evaluate.report_findings import findings_of
from wsa_jax.merging.evaluate.report_numbers import (
    Settings,
    average_of,
    barrier_row,
    group_row,
    layer_rows,
    units_of,
)
from wsa_jax.merging.evidence import Evidence, Model, apply_of, check_are_models, check_pair
from wsa_jax.merging.symmetry.spec import AxisSpec
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.plots import PALETTE
from wsa_jax.scope.layers import Rule, kernels
from wsa_jax.training.checks import check_data, check_evaluable, logits_shape
from wsa_jax.training.task import Task
from wsa_jax.types import Inputs, Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 10_000
_SEED = 0  # of the resamples, the same for all barriers


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What stands between models and their merge.

    Models are counted from 1. Means over pairs are of all pairs of models.

    Attributes:
      layers: one row a layer: ``layer``, ``divergences`` (of each model's scope from their fused
        one, nats), ``divergence`` (their mean), ``std`` of each model.
      groups: one row a group of units: ``group``, ``units``, ``cka`` (mean over pairs), ``dead``
        (share of units that are constant on the data, over all models); and by align
        ``correlation``, the mean correlation of units of equal number over pairs, and ``spread``,
        the deviation of the average's units as a share of the models'.
      barriers: one row an align: ``align``, ``barrier`` (loss, Eq. 7; the greatest of all pairs),
        ``low`` and ``high`` (a 95 % bootstrap interval over the examples), ``models`` (which pair
        has it), ``pairs`` (``models``, ``barrier``, ``low`` and ``high`` of each) and ``average``:
        by how much the loss of the mean of all models is above the mean of theirs (``rise``,
        ``low``, ``high``).
      findings: what the numbers say, most important first, in plain words.
    """

    layers: list[Json]
    groups: list[Json]
    barriers: list[Json]
    findings: list[str]

    def json(self) -> Json:
        """The report as plain values for ``json.dump``; what is undefined is None."""
        return {
            "layers": _plain(self.layers),
            "groups": _plain(self.groups),
            "barriers": _plain(self.barriers),
            "findings": list(self.findings),
        }

    def table(self) -> str:
        """The report as Markdown: barriers, units, layers, then what they say."""
        aligns = [row["align"] for row in self.barriers]
        several = len(self.barriers[0]["pairs"]) > 1
        # From the whole to the part: a reader whose barriers are low may stop at the first table.
        parts = [
            _markdown(
                ["align", "greatest loss barrier" if several else "loss barrier", "95 %"]
                + ["between models"] * several
                + ["loss of the average above the models'", "95 %"],
                [
                    [row["align"], f"{row['barrier']:.3f}", _interval(row)]
                    + [" and ".join(map(str, row["models"]))] * several
                    + [f"{row['average']['rise']:.3f}", _interval(row["average"])]
                    for row in self.barriers
                ],
            ),
            _markdown(
                ["units of", "number", "CKA", "dead"]
                + [f"correlation, {align}" for align in aligns]
                + [f"spread of the average, {align}" for align in aligns],
                [
                    [row["group"], str(row["units"]), f"{row['cka']:.2f}", f"{row['dead']:.0%}"]
                    + [f"{row['correlation'][align]:.2f}" for align in aligns]
                    + [f"{row['spread'][align]:.0%}" for align in aligns]
                    for row in self.groups
                ],
            ),
            _markdown(
                ["layer", "scope divergence (nats)", "stds"],
                [
                    [row["layer"], f"{row['divergence']:.2g}", " and ".join(_short(row["std"]))]
                    for row in self.layers
                ],
            ),
            "\n".join(f"- {finding}" for finding in self.findings),
        ]
        return "\n\n".join(parts)

    def figure(self) -> "Figure":
        """Three panels: barriers with intervals, correlations and CKA of units, scopes."""
        from matplotlib.figure import Figure

        rows = max(len(self.layers), len(self.groups), 3)
        figure = Figure(figsize=(12, 1.5 + 0.25 * rows), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        barriers = np.array([[row["barrier"], row["low"], row["high"]] for row in self.barriers])
        names = [row["align"] for row in self.barriers]
        spread = np.abs(barriers[:, 1:] - barriers[:, :1]).T
        left.barh(names, barriers[:, 0], xerr=spread, color=PALETTE[0], ecolor=PALETTE[5])
        several = len(self.barriers[0]["pairs"]) > 1
        for row in self.barriers if several else ():
            own = [pair["barrier"] for pair in row["pairs"]]
            left.plot(own, [row["align"]] * len(own), "o", color="white", markeredgecolor="black")
        dots = "; dots: pairs of models" if several else ""
        left.set_xlabel(f"loss barrier, with 95 % interval{dots}")
        groups = [row["group"] for row in self.groups]
        for index, name in enumerate(names):
            values = [row["correlation"][name] for row in self.groups]
            middle.plot(values, groups, "o", color=PALETTE[index % len(PALETTE)], label=name)
        middle.plot([row["cka"] for row in self.groups], groups, "x", color="#555555", label="CKA")
        middle.set_xlabel("correlation of matched units")
        middle.legend(frameon=False, fontsize=8)
        layers = [row["layer"] for row in self.layers]
        right.barh(layers, [row["divergence"] for row in self.layers], color=PALETTE[1])
        right.set_xlabel("divergence from the fused scope (nats)")
        for axes in (left, middle, right):
            axes.invert_yaxis()
            axes.spines[["top", "right"]].set_visible(False)
        return figure


@door
def merge_report(
    task: Task,
    models: Sequence[Model],
    data: tuple[Inputs, Shaped[Array | np.ndarray, "examples ..."]],
    *,
    key: Key[Array, ""] | None = None,
    spec: AxisSpec | None = None,
    aligns: Sequence[str] = ("none", "weight", "activation"),
    select: Rule = kernels,
    calibration: Inputs | None = None,
    num_points: int = 9,
    resamples: int = 1000,
    batch_size: int = 500,
) -> MergeReport:
    """Measure how hard models are to merge, layer by layer, and say why and what to try.

    Args:
      task: what the models were trained for; it must have logits.
      models: two or more of one architecture. All pairs are compared, so time grows with the
        square of their number.
      data: inputs and labels, held out from training: some hundreds to thousands.
      key: draws restarts of aligns; key 0 by default.
      spec: of ``models[0].variables``; traced by default.
      aligns: names of aligns, as in `align_models`, which bring all models to the first one;
        before them, ``"none"`` is compared.
      select: which leaves have a scope.
      calibration: training inputs, to estimate BatchNorm statistics at every point of a path.
      num_points: points of each path.
      resamples: resamples of the examples for the intervals.
      batch_size: examples at once.

    Guarantees: models are not changed; all aligns are measured on the same examples and resamples,
    and equal arguments give equal reports.

    Edge cases: groups whose activations lie inside loops only have no row (a warning names them).
    Correlations count units that live in both models.

    Raises:
      ValueError: fewer than two models, models that differ in a leaf or hold NaN, no examples,
        labels that are not the task's, a task without logits, or an unknown align.

    >>> from wsa_jax.merging import Model, merge_report
    >>> from wsa_jax.training import classification_task
    >>> def apply(params, model_state, x, train, key):
    ...     return jax.nn.relu(x @ params["w"]) @ params["v"], model_state
    >>> task = classification_task(lambda key: ({}, {}), apply)
    >>> x = np.eye(4, dtype=np.float32)
    >>> one = {"w": 5 * x, "v": x}
    >>> two = {"w": 5 * x[:, ::-1], "v": x[::-1]}  # its units are in another order
    >>> report = merge_report(
    ...     task, [Model(one, {}), Model(two, {})], (x, np.arange(4)), aligns=["weight"],
    ...     select=lambda name, leaf: True, num_points=3, resamples=10,
    ... )
    >>> [(row["align"], round(row["barrier"], 2)) for row in report.barriers]
    [('none', 0.75), ('weight', 0.0)]
    >>> report.findings[0]
    'units do not correspond: "weight" lowers the barrier from 0.752 to 0.000; align first'

    Source: barriers, WSA Eq. 7; scopes, Eq. 3 and 4; CKA, Kornblith et al., ICML 2019.
    """
    if len(models) < 2:
        raise ValueError(f"merge_report compares models, got {len(models)}; give at least two")
    check_are_models(models, "merge_report")
    check_pair(data, "the report's data")
    for name, value in (("resamples", resamples), ("batch_size", batch_size)):
        checks.count(name, value)
    if not 3 <= num_points <= _MOST_POINTS:
        raise ValueError(
            f"num_points {num_points} is not in 3 .. {_MOST_POINTS}; give both ends and what lies "
            "between"
        )
    checks.models([model.variables for model in models])
    check_evaluable(data[1], calibration, "the report")
    check_data(task, models[0].params, models[0].model_state, {"the report's data": data})
    if calibration is not None:
        logits_shape(task, *models[0], calibration, "calibration")
    inputs = data[0]
    if spec is None:
        few = jax.tree.map(lambda leaf: leaf[:2], inputs)
        spec = trace_spec(apply_of(task), models[0].variables, few)
    read = activations_of(spec, task)
    evidence = Evidence(task, inputs, data[1])
    names = list(dict.fromkeys(["none", *aligns]))
    key = jax.random.key(0) if key is None else key

    settings = Settings(task, data, calibration, num_points, resamples, batch_size, _SEED)

    # Each align in turn, since its models are as large as those that are given.
    barriers, units = [], {}
    for name in names:
        aligned = align_models(key, spec, models, evidence, name)
        average = average_of(aligned, settings)
        barriers.append(barrier_row(name, aligned, average, settings))
        units[name] = units_of(read, aligned, average, settings)
    layers = layer_rows(models, select)
    groups = [
        group_row(group, {name: units[name][group] for name in names}) for group in units["none"]
    ]
    return MergeReport(
        layers=layers,
        groups=groups,
        barriers=barriers,
        findings=findings_of(layers, groups, barriers),
    )


def _interval(row: Json) -> str:
    return f"{row['low']:.3f} to {row['high']:.3f}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(values: Sequence[float]) -> list[str]:
    return [f"{value:.3g}" for value in values]


def _plain(value: object) -> object:
    """Values that JSON has: NaN, which it has not, is None."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
