"""The standard problem: WSA's Tables 2 and 3 at full length, on a problem that two cores finish.

    python -m benchmarks standard_problem [--preset smoke|cpu] [--workers 2]

cpu: CIFAR-10 and CIFAR-100 as images of 16x16, all 50,000 + 10,000 of them, the CNN at half its
width, 1,500 rounds, three seeds. WSA's strength is chosen once, on a validation split, for FedAvg
at alpha 0.5 of CIFAR-10. Then come settings that could make the paper's gain: initial weights,
targets, layers and local steps, with and without WSA (`what_makes_the_gain`), and clients whose
scopes really differ (`heterogeneous_clients`). Cells run in ranked order: what is most
decisive is finished first, and `table2_cross_silo` and `table3_cross_device` report the tables.
smoke: two strengths, FedAvg on digits.
"""

import dataclasses
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from benchmarks.federated import heterogeneous_clients, table2_cross_silo, table3_cross_device
from benchmarks.federated.best_against_best import trial_table
from benchmarks.federated.cell import PRESETS, Cell
from benchmarks.federated.chosen_strength import chosen_strength, control, trials
from benchmarks.federated.comparison import Comparison, comparison_table, summary
from benchmarks.federated.experiment import (
    Args,
    CommonArgs,
    cells_state,
    failures,
    ledger_of,
    ordered_cells,
    print_states,
    recorded,
    resolve,
    with_seed,
)
from benchmarks.federated.figures import context, gain_dots
from benchmarks.federated.run_cells import run_cells
from benchmarks.federated.what_makes_the_gain import OWN_STRENGTH, PLAIN, WITH_WSA
from benchmarks.record.figures import caption
from benchmarks.record.ledger import RESULTS, Ledger, is_finished
from benchmarks.script import (
    Findings,
    NothingRecordedError,
    Preset,
    State,
    Study,
    Summary,
    figure_name,
)

SEEDS = (0, 1, 2)

# One pair at the full-size record's strength, and the initial weights that could do as much.
FIRST: tuple[dict[str, Any], ...] = (
    {},
    {"strength": 10.0},
    {"init": "he"},
    {"init": "torchvision"},
)


def first_cells(args: CommonArgs) -> list[Cell]:
    """What answers most in the first hour: FedAvg, one pair, and two controls without WSA."""
    chosen = FIRST[:2] if args.preset == "smoke" else FIRST
    return [args.cell(**extra) for extra in chosen]


def with_strength(args: CommonArgs, strength: float) -> Args:
    """The arguments of scripts that compare one strength."""
    names = {field.name for field in dataclasses.fields(Args)}
    values = {name: getattr(args, name) for name in names - {"strength"}}
    return Args(**values, strength=strength)


def ranked_cells(args: CommonArgs, strength: float) -> list[Cell]:
    """The cells of both tables: CIFAR-10 before CIFAR-100, alpha 0.5 before 1, line by line."""
    tables: Sequence[Callable[[Args], list[Comparison]]] = (
        table2_cross_silo.comparisons,
        table3_cross_device.comparisons,
    )
    lines = [line for table in tables for line in table(with_strength(args, strength))]
    settings = list(dict.fromkeys((line.baseline.alpha, line.baseline.dataset) for line in lines))
    settings.sort(key=lambda setting: setting[0])
    seeds = seeds_of(args)
    ranked = (
        ordered_cells([line], seeds)
        for alpha, dataset in settings
        for line in lines
        if (line.baseline.alpha, line.baseline.dataset) == (alpha, dataset)
    )
    return list(dict.fromkeys(chain.from_iterable(ranked)))


def seeds_of(args: CommonArgs) -> Sequence[int]:
    """The seeds asked for, or the preset's."""
    return args.seed or (SEEDS[:1] if args.preset == "smoke" else SEEDS)


def questions(args: CommonArgs, strength: float) -> list[Cell]:
    """What could make the gain: all settings on the first seed, then on the next."""
    if args.preset == "smoke":
        return []
    settings = [*PLAIN, *(extra | {"strength": strength} for extra in WITH_WSA), *OWN_STRENGTH]
    cells = [args.cell(**extra) for extra in settings]
    return [with_seed(cell, seed) for seed in seeds_of(args) for cell in cells]


def differing(args: CommonArgs, strength: float) -> list[Cell]:
    """Clients whose scopes really differ, with and without WSA."""
    if args.preset == "smoke":
        return []
    lines = heterogeneous_clients.comparisons(with_strength(args, strength))
    return ordered_cells(lines, seeds_of(args))


def following_cells(args: CommonArgs, strength: float | None) -> list[Cell]:
    """What runs once the strength is chosen: both data sets at alpha 0.5 come first."""
    if strength is None:
        return []
    tables, asked = ranked_cells(args, strength), questions(args, strength)
    # Then the questions, the clients that differ, and the rest of the tables.
    half = [cell for cell in tables if cell.alpha == 0.5]
    return list(dict.fromkeys([*half, *asked, *differing(args, strength), *tables]))


def count(preset: Preset) -> State | None:
    """The first cells and trials and, where the strength is chosen, what follows."""
    if preset not in PRESETS:
        return None
    args = dataclasses.replace(CommonArgs(), preset=preset)
    first = [*first_cells(args), *trials(args), control(args)]
    strength = chosen_strength(args, Ledger(RESULTS / "federated.jsonl"))
    cells = list(dict.fromkeys([*first, *following_cells(args, strength)]))
    return cells_state(cells, more=strength is None)


def run(args: CommonArgs) -> Summary:
    options, ledger, _ = resolve(args)
    first = [*first_cells(args), *trials(args), control(args)]
    made = [] if args.dry_run else run_cells(first, options, ledger)
    strength = chosen_strength(args, ledger)
    rest = following_cells(args, strength)
    last: Summary = {"preset": args.preset, "strength": strength}
    if args.dry_run:
        cells = list(dict.fromkeys([*first, *rest]))
        return last | print_states(cells, ledger, args.data_dir)
    rows = run_cells(rest, options, ledger)
    finished = sum(map(is_finished, rows))
    return last | {"cells": len(rest), "finished": finished} | failures([*made, *rows])


def found(args: CommonArgs) -> Findings:
    """Both tables' lines that have a row, at the chosen strength."""
    ledger = ledger_of(args)
    strength = chosen_strength(args, ledger)
    told = "Validation has not chosen the strength of WSA yet: 10, the first record's, stands here."
    if strength is not None:
        told = f"WSA has strength {strength:g}, chosen on validation for FedAvg, alpha 0.5:"
    plain = control(args)
    shared = plain.label.removeprefix("FedAvg")
    tried = trial_table([plain, *trials(args)], recorded(ledger, (0,)), shared)
    asked = with_strength(args, FIRST[1]["strength"] if strength is None else strength)
    rows_of = recorded(ledger, seeds_of(args))
    lines = [
        dataclasses.replace(line, section=f"{table}: {line.section}")
        for table, module in (("Table 2", table2_cross_silo), ("Table 3", table3_cross_device))
        for line in module.comparisons(asked)
        if rows_of(line.baseline) or rows_of(line.treated)
    ]
    if not lines:
        raise NothingRecordedError(f"{ledger.path} holds none of these cells: nothing to report")
    return Findings(
        title="The standard problem",
        text=f"{comparison_table(lines, rows_of)}\n\n{told}\n\n{tried}",
        figures={
            figure_name("standard_problem", args.preset): lambda: caption(
                gain_dots(lines, rows_of), context(lines, rows_of)
            )
        },
        summary={"lines": summary(lines, rows_of)},
    )


SCRIPT = Study(
    name="standard_problem",
    description=__doc__,
    arguments=CommonArgs,
    work=run,
    found=found,
    count=count,
)
