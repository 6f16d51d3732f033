"""How long `import wsa_jax` takes against the libraries it stands on, in turns of processes.

python -m benchmarks.speed.import_time
"""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

import tyro

OURS = "import wsa_jax"
THEIRS = "import jax, flax, optax"


@dataclass(frozen=True, kw_only=True)
class Args:
    """How often to measure."""

    runs: int = 11
    """Counted pairs; one more warms the file cache up."""


def seconds(statement: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begin


def main(argv: list[str] | None = None) -> None:
    args = tyro.cli(Args, args=argv, description=__doc__)
    pairs = [(seconds(OURS), seconds(THEIRS)) for _ in range(args.runs + 1)][1:]
    ours, theirs = ([pair[i] for pair in pairs] for i in range(2))
    ratios = sorted(a / b for a, b in pairs)
    for name, values in ((OURS, ours), (THEIRS, theirs)):
        print(
            f"{name:<26} {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"
        )
    figures = {
        "benchmark": "import_time",
        "ratios": {"jax_flax_optax": round(statistics.median(ratios), 3)},
        "spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        "runs": args.runs,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
