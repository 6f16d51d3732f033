"""Write docs/zoo.md, what `trace_spec` does with foreign models: python -m tests.zoo.record."""

import importlib.metadata
import sys
from pathlib import Path

from tests.zoo.measure import BUILDERS, PACKAGES, measure

_TARGET = Path(__file__).parents[2] / "docs" / "zoo.md"
_HEAD = """# What the tracer can do with foreign models

`trace_spec` reads these models as they are, from their packages, in tiny configurations with random
strong weights. Every group of units is moved by a derangement; the function stays the same in every
row (largest deviation below). Then the planted order is undone by `weight_matching` (three starts)
and by `activation_matching` on 256 random inputs: the share of moved weights that are back in their
place. *Covered* is the share of weights that lie in leaves of at least one group; seconds are those
of tracing. Written by `python -m tests.zoo.record` with {versions}.

| architecture | package | groups | covered | seconds | deviation | by weights | by activations |
|---|---|---|---|---|---|---|---|
"""


def main():
    """Measure every model and write the table."""
    names = ("jax", "flax", "transformers", "equimo", "dm-haiku")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    lines = []
    for name in sys.argv[1:] or BUILDERS:
        row = measure(name)
        lines.append(
            f"| {name} | {PACKAGES[name]} | {row.groups} | {row.covered:.0%} | {row.seconds:.1f} | "
            f"{row.deviation:.0e} | {row.weights:.0%} | {row.activations:.0%} |"
        )
        print(lines[-1], flush=True)
    if len(sys.argv) == 1:
        _TARGET.write_text(_HEAD.format(versions=versions) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
