"""What `python -m benchmarks NAME` runs: arguments, work, and one line of JSON at the end."""

import abc
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from benchmarks.record.claims import Claim
from benchmarks.refused import RefusedError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Preset = Literal["smoke", "short", "cpu", "paper"]
"""How large: smoke in seconds, short in an hour, cpu on two cores, paper in full."""
Arguments = TypeVar("Arguments")
Summary = dict[str, Any]
"""The main figures of a run, as its last line prints them."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a script finds on record: what is printed, drawn, and told in the last line."""

    title: str
    text: str
    """Markdown: tables, and remarks on what is missing in them."""
    figures: Mapping[str, Callable[[], "Figure"]] = field(default_factory=dict)
    """By the name of their file, without its ending; drawn when they are asked for."""
    summary: Summary = field(default_factory=dict)

    def show(self, output: Path) -> Summary:
        """Print the text, draw the figures into a folder; return what the last line holds."""
        print(f"\n## {self.title}\n\n{self.text}")
        paths = [save(draw(), output / f"{name}.png") for name, draw in self.figures.items()]
        for path in paths:
            print(f"\nfigure: {path}")
        drawn = {"figures": paths} if len(paths) > 1 else {"figure": paths[0] if paths else None}
        return self.summary | drawn


def save(figure: "Figure", path: Path) -> str:
    """Write a figure at the pages' resolution, making its folder if need be; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return str(path)


def figure_name(name: str, preset: str) -> str:
    """Presets that keep rows have figures of their own.

    >>> figure_name("table2", "cpu"), figure_name("table2", "short")
    ('table2', 'table2_short')
    """
    return name if preset in ("smoke", "cpu") else f"{name}_{preset}"


def parsed(
    arguments: type[Arguments], argv: Sequence[str], *, name: str, description: str
) -> Arguments:
    """The settings of a command line; what cannot be read is refused."""
    from wsa_jax.commands.arguments import CommandLineError, parse

    prog = f"python -m benchmarks {name}".rstrip()
    try:
        return parse(arguments, argv, prog=prog, description=description)
    except CommandLineError as error:
        raise RefusedError(str(error)) from error


class NothingRecordedError(SystemExit):
    """There is no row to report."""


class State(NamedTuple):
    """How much of an experiment is on record."""

    recorded: int
    asked: int
    more: bool = False
    """What else it asks for depends on rows that are missing."""

    def __str__(self) -> str:
        return f"{self.recorded} of {self.asked}{' or more' if self.more else ''}"


@dataclass(frozen=True, kw_only=True)
class Script(abc.ABC):
    """An experiment, a timing or a tool."""

    name: str
    """On the command line and in the last line."""
    description: str
    """The module's docstring: its first line in the list, all of it under --help."""
    arguments: type
    """A dataclass of the settings on the command line."""

    @abc.abstractmethod
    def run(self, args: Any) -> Summary:
        """Do the work, print what it found, return the figures of the last line."""

    def state(self, preset: Preset) -> State | None:
        """How much of a preset is on record; None where nothing of that kind is recorded."""
        return None

    def parsed(self, argv: Sequence[str]) -> Any:
        """The settings of a command line."""
        return parsed(self.arguments, argv, name=self.name, description=self.description)

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Parse, run, print the last line; exit with 1 where a part of the work failed."""
        args = self.parsed(sys.argv[1:] if argv is None else argv)
        figures = {"benchmark": self.name} | self.run(args)
        print(json.dumps(figures))
        if failed := figures.get("failed"):
            print(f"{len(failed)} failed; start again to try them once more", file=sys.stderr)
            sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class Reported(Script):
    """A script whose rows stay: pages show its tables, and its claims are judged by them."""

    claims: Callable[[], Sequence[Claim]] | None = None
    """What the papers claim and the record says of it, for the table of RESULTS.md."""

    @abc.abstractmethod
    def findings(self, args: Any) -> Findings:
        """What is on record; nothing runs. Exits where there is nothing."""


@dataclass(frozen=True, kw_only=True)
class Report(Reported):
    """A report of rows that other scripts make."""

    found: Callable[[Any], Findings]
    """What is on record, by the arguments."""
    output: Callable[[Any], Path] = lambda args: args.output
    """The folder of the figures."""
    count: Callable[[Preset], State | None] | None = None
    """How much of a preset is on record."""

    def run(self, args: Any) -> Summary:
        return self.found(args).show(self.output(args))

    def findings(self, args: Any) -> Findings:
        return self.found(args)

    def state(self, preset: Preset) -> State | None:
        return None if self.count is None else self.count(preset)


@dataclass(frozen=True, kw_only=True)
class Study(Reported):
    """Work that adds rows, and what they say so far."""

    work: Callable[[Any], Summary]
    found: Callable[[Any], Findings]
    """What is on record, by the arguments."""
    count: Callable[[Preset], State | None]
    """How much of a preset is on record."""

    def run(self, args: Any) -> Summary:
        return self.work(args)

    def findings(self, args: Any) -> Findings:
        return self.found(args)

    def state(self, preset: Preset) -> State | None:
        return self.count(preset)


@dataclass(frozen=True, kw_only=True)
class Command(Script):
    """A script of one function."""

    function: Callable[[Any], Summary]
    count: Callable[[Preset], State | None] | None = None
    """How much of a preset is on record."""

    def run(self, args: Any) -> Summary:
        return self.function(args)

    def state(self, preset: Preset) -> State | None:
        return None if self.count is None else self.count(preset)
