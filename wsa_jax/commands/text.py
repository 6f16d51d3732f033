"""What the commands print: aligned columns that no width of a terminal cuts, sizes, outputs."""

from collections.abc import Sequence
from pathlib import Path

from wsa_jax.files.formats import form_of, model_path
from wsa_jax.files.model_file import ModelFileError
from wsa_jax.files.orbax_file import check_replaceable


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text: the first to the left, numbers to the right.

    >>> print(table(["layer", "std"], [["a", "0.5"], ["dense", "12.0"]]))
    layer   std
    a       0.5
    dense  12.0
    """
    lines = [heads, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]

    def aligned(line: Sequence[str]) -> str:
        first, *others = (
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join(map(aligned, lines))


def sized(count: int) -> str:
    """A number of bytes in the unit that leaves it below 1000.

    >>> sized(512), sized(1_092_616), sized(2_000_000_000)
    ('512 B', '1.1 MB', '2.0 GB')
    """
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.95 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{count} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def counted(count: int, one: str, several: str) -> str:
    """A number and what it counts.

    >>> counted(1, "leaf", "leaves"), counted(2000, "leaf", "leaves")
    ('1 leaf', '2,000 leaves')
    """
    return f"{count:,} {one if count == 1 else several}"


def output_path(given: Path, *, force: bool) -> Path:
    """Where an output goes: under an ending that is known, and where nothing is, unless forced.

    Forced, too, it replaces a model alone: see `check_replaceable`.

    >>> output_path(Path("merged.pt"), force=False)
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: merged.pt is a pickle, which can run any code ...
    """
    path = model_path(given)
    form_of(path)
    above = next((one for one in path.absolute().parents if one.exists()), path)
    if not above.is_dir():
        raise ModelFileError(f"{above} is a file, not a folder; give another output than {path}")
    if form_of(path) == "orbax":
        check_replaceable(path)
    elif path.is_dir():
        raise ModelFileError(f"{path} is a folder, unlike what its ending says; move it away")
    if path.exists() and not force:
        raise ModelFileError(f"{path} exists; give another output, or --force to replace it")
    return path
