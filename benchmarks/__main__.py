"""Every experiment and timing by its name.

    python -m benchmarks                             list them, with how much of each is on record
    python -m benchmarks --preset paper              the same for another preset
    python -m benchmarks table2 --preset cpu         run or resume an experiment, print its table
    python -m benchmarks speed client_step           run a timing
    python -m benchmarks report                      the first record's table and figures
    python -m benchmarks import-rows FILE            merge rows recorded elsewhere

A name may be cut short where it stays the only one. NAME --help tells the settings of a script. The
last line that a script prints is one JSON object.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.record.ledger import LedgerError
from benchmarks.refused import RefusedError
from benchmarks.registry import EXPERIMENTS, TIMINGS, TOOLS, full_name, script
from benchmarks.script import Preset, parsed


@dataclass(frozen=True, kw_only=True)
class ListArgs:
    """What to list."""

    preset: Preset = "cpu"
    """Whose cells to count."""


def list_all(args: ListArgs) -> None:
    """Print every script, and of each experiment the cells on record of those asked for."""
    rows: dict[str, Any] = {}
    print(f"Experiments (cells on record, preset {args.preset})\n")
    for name in EXPERIMENTS:
        state = script(name).state(args.preset)
        first = script(name).description.splitlines()[0]
        told = "" if state is None else str(state)
        print(f"  {name:<25} {told:>15}  {first}")
        if state is not None:
            rows[name] = {"recorded": state.recorded, "asked": state.asked, "more": state.more}
    for title, names in (("Timings: speed NAME", TIMINGS), ("Tools", TOOLS)):
        print(f"\n{title}\n")
        for name in names:
            print(f"  {name:<25} {'':>15}  {script(name, names).description.splitlines()[0]}")
    print(f"\n{json.dumps({'benchmark': 'list', 'preset': args.preset, 'cells': rows})}")


def main(argv: Sequence[str] | None = None) -> None:
    try:
        try:
            run(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Who reads what is printed has gone, as head does; nothing is left to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def run(given: list[str]) -> None:
    """List, or run what is named; refusals, damaged files and Ctrl-C are told in one line."""
    try:
        if not given or given[0].startswith("-"):
            list_all(parsed(ListArgs, given, name="", description=__doc__ or ""))
            return
        modules = {**EXPERIMENTS, **TOOLS}
        if given[0] == "speed":
            given, modules = given[1:] or [""], TIMINGS
        script(full_name(given[0], modules), modules)(given[1:])
    except RefusedError as refused:
        print(refused, file=sys.stderr)
        raise
    except ValueError as error:
        from wsa_jax.runs.files import CheckpointError

        # A damaged file is its own one line; any other error is one of the program's.
        if not isinstance(error, LedgerError | CheckpointError):
            raise
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        # A run in a directory adds how far it got.
        notes = getattr(error, "__notes__", [])
        said = notes[0] if notes else "interrupted; what is recorded stays: start again to resume"
        print(said, file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
