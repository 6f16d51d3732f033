"""The ``wsa-jax`` command."""

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from wsa_jax import __version__
from wsa_jax.demo import DemoSettings
from wsa_jax.extras import MissingExtraError, require
from wsa_jax.runs.files import directory_path, make_folder, one_line
from wsa_jax.runs.interrupts import interruption

COMMANDS: Mapping[str, str] = {
    "scope": "wsa-jax scope a.safetensors b.safetensors",
    "merge": "wsa-jax merge a.safetensors b.safetensors -o merged.safetensors",
    "match": "wsa-jax match a.safetensors b.safetensors -o b_like_a.safetensors",
    "inspect": "wsa-jax inspect a.safetensors",
    "demo": "wsa-jax demo --output demo",
    "partition": "wsa-jax partition --dataset digits --clients 10 --alpha 0.5",
}
"""An example of each command."""


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """Settings of a partition."""

    dataset: str = "digits"
    """Name of a dataset; its training split is divided."""
    kind: Literal["equal", "unequal", "iid"] = "equal"
    """equal: Dirichlet per client, equal sizes; unequal: Dirichlet per class; iid."""
    clients: int = 10
    alpha: float = 0.5
    seed: int = 0
    data_dir: str | None = None
    """Folder of prepared datasets, TFDS_DATA_DIR by default."""
    output: Path = Path("partition.png")
    """Heat map of the partition; a name without an ending gets .png."""


def demo(settings: DemoSettings) -> None:
    """Match and merge networks of embedded real data, with and without WSA (under a minute).

    wsa-jax demo --output demo
    """
    _require_all("rich", "matplotlib", "sklearn")
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from wsa_jax.demo import check_settings, demo_steps, run_demo, save_demo, tell_demo

    # Before a minute of work, not after it.
    check_settings(settings)
    settings = replace(settings, output=_writable_folder(settings.output))
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        work = bar.add_task("compiling", total=demo_steps(settings))
        results = run_demo(settings, lambda what: bar.update(work, advance=1, description=what))
    tell_demo(results, Console())
    image, numbers = save_demo(results)
    print(f"figure   {image.resolve()}\nnumbers  {numbers.resolve()}")


def partition(settings: PartitionSettings) -> None:
    """Divide a dataset among clients: print the table and draw the heat map.

    wsa-jax partition --dataset digits --clients 10 --alpha 0.5
    """
    _require_all("matplotlib")
    from wsa_jax.data import load_dataset
    from wsa_jax.federated import dirichlet_equal, dirichlet_unequal, iid, partition_table
    from wsa_jax.federated.plots import partition_heatmap

    output = _figure_path(settings.output)
    data = load_dataset(settings.dataset, data_dir=settings.data_dir)
    if settings.kind == "iid":
        divided = iid(data.labels, clients=settings.clients, seed=settings.seed)
    else:
        make = dirichlet_equal if settings.kind == "equal" else dirichlet_unequal
        divided = make(
            data.labels, clients=settings.clients, alpha=settings.alpha, seed=settings.seed
        )
    print(partition_table(divided, data.labels))
    with one_line(output, "write"):
        partition_heatmap(divided, data.labels).savefig(output, dpi=150)
    print(f"figure   {output.resolve()}")


def _require_all(*modules: str) -> None:
    """Refuse before any work what would be missing after it."""
    for module in modules:
        require(module, "this command")


def _writable_folder(path: Path) -> Path:
    """Make a folder, and find out whether a file can be written in it."""
    folder = directory_path(path)
    make_folder(folder)
    with one_line(folder, "write in"), tempfile.TemporaryFile(dir=folder):
        return folder


def _figure_path(path: Path) -> Path:
    """Where a figure goes: in a folder that can be written, under an ending that can be drawn."""
    from matplotlib.figure import Figure

    path = path.with_name(f"{path.name}.png") if path.name and not path.suffix else path
    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.lstrip(".").lower() not in known:
        endings = ", ".join(f".{ending}" for ending in known)
        raise ValueError(f"output {path} is no figure's name; end it in one of {endings}")
    path = _writable_folder(path.parent) / path.name
    if path.is_dir():
        raise ValueError(f"output {path} is a folder; give the name of a file")
    return path


class _Command(NamedTuple):
    """A command: its settings, what it does, and what --help says of it."""

    settings: type
    run: Callable[[Any], None]
    description: str


def _command(name: str) -> _Command:
    """Load the command of a name, and no other."""
    if name == "demo":
        return _Command(DemoSettings, demo, demo.__doc__ or "")
    if name == "partition":
        return _Command(PartitionSettings, partition, partition.__doc__ or "")
    module = importlib.import_module(f"wsa_jax.commands.{name}")
    settings = getattr(module, f"{name.capitalize()}Settings")
    return _Command(settings, getattr(module, name), module.DESCRIPTION)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors about settings and data print one line and exit with status 2.

    Ctrl-C prints one line, too, and exits with status 130.
    """
    try:
        require("tyro", "the command wsa-jax")
    except MissingExtraError as error:
        _refuse(error)
    from wsa_jax.commands.arguments import parse

    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--version"]:
        print(f"wsa-jax {__version__}")
        sys.exit(0)
    if not given or given[0] not in COMMANDS:
        _list_commands(given)
    name, *rest = given
    command = _command(name)
    prog, example = f"wsa-jax {name}", f"for example {COMMANDS[name]}"
    try:
        command.run(
            parse(
                command.settings, rest, prog=prog, description=command.description, way_out=example
            )
        )
    except (ValueError, FileNotFoundError, MissingExtraError) as error:
        _refuse(error)
    except BrokenPipeError:
        # Who reads what is printed has gone, as head does; nothing is left to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt as error:
        print(f"wsa-jax: {interruption(error)}", file=sys.stderr)
        sys.exit(130)


def _list_commands(given: Sequence[str]) -> NoReturn:
    """Print every command with its example; a name that is none of them ends with status 2."""
    asked = not given or given[0] in ("-h", "--help")
    lines = [
        f"  {_command(name).description.strip().splitlines()[0]}\n    {example}\n"
        for name, example in COMMANDS.items()
    ]
    if asked:
        print("Train models so that they merge, then merge them.\n")
        print("\n".join(lines))
        print("wsa-jax COMMAND --help tells the settings of a command.")
        sys.exit(0)
    _refuse(ValueError(f"command {given[0]} is unknown; give one of {', '.join(COMMANDS)}"))


def _refuse(error: Exception) -> NoReturn:
    print(f"wsa-jax: error: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
