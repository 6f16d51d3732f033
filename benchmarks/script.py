"""What `python -m benchmarks NAME` runs: arguments, work, and one line of JSON at the end."""

import abc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tyro

Preset = Literal["smoke", "short", "cpu", "paper"]
"""How large: smoke in seconds, short in an hour, cpu on two cores, paper in full."""
Summary = dict[str, Any]
"""The main figures of a run, as its last line prints them."""


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

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Parse, run, print the last line; exit with 1 where a part of the work failed."""
        prog = f"python -m benchmarks {self.name}"
        args = tyro.cli(self.arguments, prog=prog, args=argv, description=self.description)
        figures = {"benchmark": self.name} | self.run(args)
        print(json.dumps(figures))
        if failed := figures.get("failed"):
            print(f"{len(failed)} failed; start again to try them once more", file=sys.stderr)
            sys.exit(1)


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
