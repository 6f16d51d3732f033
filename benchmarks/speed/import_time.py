"""How long `import wsa_jax` takes against the libraries it stands on, in turns of processes.

    python -m benchmarks speed import_time

Both are statements of a fresh Python each; the ratio is the median over pairs.
"""

import statistics
import subprocess
import sys
from dataclasses import dataclass

from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import paired, spread, take_turns, timed

OURS = "import wsa_jax"
THEIRS = "import jax, flax, optax"


@dataclass(frozen=True, kw_only=True)
class Args:
    """How often to measure."""

    runs: int = 11
    """Counted pairs; one more warms the file cache up, unless one is all there is."""


def seconds(statement: str) -> float:
    return timed(lambda: subprocess.run([sys.executable, "-c", statement], check=True))[1]


def run(args: Args) -> Summary:
    times = take_turns(
        {statement: lambda statement=statement: seconds(statement) for statement in (OURS, THEIRS)},
        args.runs,
        warm_ups=min(1, args.runs - 1),
    )
    for name, values in times.items():
        low, high = spread(values, 2)
        print(f"{name:<26} {statistics.median(values):.2f} s ({low:.2f} to {high:.2f})")
    return {
        "ratios": {"jax_flax_optax": paired(times, OURS, THEIRS)},
        "spread": spread([a / b for a, b in zip(times[OURS], times[THEIRS], strict=True)], 3),
        "runs": args.runs,
    }


SCRIPT = Command(name="import_time", description=__doc__, arguments=Args, function=run)
