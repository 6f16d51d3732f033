"""Write docs/zoo.md, what `trace_spec` does with foreign models: python -m tests.zoo.record."""

import importlib.metadata
import sys
from pathlib import Path

from tests.zoo.measure import BUILDERS, PACKAGES, Row, measure

_TARGET = Path(__file__).parents[2] / "docs" / "zoo.md"
_HEAD = """# What the tracer can do with foreign models

`trace_spec` reads these models as they are, from their packages, in tiny configurations with
strong random weights. Every group of units is moved by a derangement, and the function stays the
same in every row: *deviation* is the largest change, in units of the largest output. Then the
planted order is undone by `weight_matching` (three starts) and by `activation_matching` on 256
random inputs: the share of moved weights that are back in their place. (Units that are dead on
all these inputs look alike to the latter.) *Covered* is the share of weights that lie in a leaf
of at least one group; *seconds* are those of tracing, beside other work on the machine.

Transformers 4.56 still has Flax models, which version 5 removes. They import and run with the
versions below, with one exception: T5 calls `jnp.clip` by an argument that JAX no longer has,
which the zoo passes on under its new name.

Written by `python -m tests.zoo.record` (extra `zoo`, Python 3.12) with
{versions}.

| architecture | package | groups | covered | seconds | deviation | by weights | by activations |
|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    """Measure the named models, or all, and write their lines into the table."""
    for name in sys.argv[1:] or BUILDERS:
        print(write(measure(name)), flush=True)


def write(row: Row) -> str:
    """Put one model's line into docs/zoo.md, in place of an older one."""
    known = _TARGET.read_text().splitlines() if _TARGET.exists() else []
    lines = {line.split(" | ")[0][2:]: line for line in known if line.startswith("| ")}
    lines[row.name] = (
        f"| {row.name} | {PACKAGES[row.name]} | {row.groups} | {row.covered:.1%} "
        f"| {row.seconds:.1f} | {row.deviation:.0e} | {row.weights:.1%} | {row.activations:.1%} |"
    )
    names = ("jax", "flax", "transformers", "equimo", "dm-haiku")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    table = [lines[name] for name in BUILDERS if name in lines]
    _TARGET.write_text(_HEAD.format(versions=versions) + "\n".join(table) + "\n")
    return lines[row.name]


if __name__ == "__main__":
    main()
