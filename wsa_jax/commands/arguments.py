"""A command line read into its settings; what cannot be read is refused in one line."""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import sys
from collections.abc import Sequence
from typing import TypeVar, get_type_hints

import tyro

Settings = TypeVar("Settings")
_RULES = ("╭─", "───", "---")
"""How tyro's rules begin, with a terminal's lines or without."""
_OF_NO_TYPE = re.compile(r"(\S+): no type matching (\S+) could be instantiated from \[(.*?)\]")
"""What tyro says of a setting that may be left out: an error for each of its types follows."""
_UNREADABLE = re.compile(r"(\S+): Could not find valid parse for arguments: \[(.*)\]")
_KINDS = {"FLOAT": "a number", "INT": "an integer", "PATH": "a path", "STR": "text"}


class CommandLineError(ValueError):
    """Arguments that cannot be read: one line."""


def parse(
    settings: type[Settings],
    given: Sequence[str],
    *,
    prog: str,
    description: str,
    way_out: str = "",
) -> Settings:
    """Settings of a command line; ``--help`` prints them and exits with status 0.

    ``way_out``, an example, ends the line on what is missing or too much.
    Raises `CommandLineError`, which names the argument and the way out.

    >>> @dataclasses.dataclass
    ... class Training:
    ...     epochs: int = 1
    >>> parse(Training, ["--epochs", "3"], prog="train", description="Train.")
    Training(epochs=3)
    >>> parse(Training, ["--epoch", "3"], prog="train", description="Train.")
    Traceback (most recent call last):
    wsa_jax.commands.arguments.CommandLineError: --epoch 3 is unknown; give --epochs
    """
    way_out = way_out or f"{prog} --help tells the settings"
    said = io.StringIO()
    try:
        # tyro tells a fault in a box of several lines.
        with contextlib.redirect_stderr(said):
            parsed, unread = tyro.cli(
                settings, prog=prog, args=given, description=description, return_unknown_args=True
            )
    except SystemExit as ended:
        if ended.code != 2 or not said.getvalue():
            raise
        raise CommandLineError(_fault(settings, given, said.getvalue(), way_out)) from None
    sys.stderr.write(said.getvalue())
    if unread:
        flags = [place for place, word in enumerate(unread) if word.startswith("-")]
        if not flags:
            raise CommandLineError(f"{unread[0]} is one argument too many; {way_out}")
        raise CommandLineError(_unknown(unread[flags[0] :], _flags(settings)))
    return parsed


def _fault(settings: type, given: Sequence[str], told: str, way_out: str) -> str:
    """The first fault of a command line that tyro has refused."""
    # A flag that is written wrong is often why another is missing, so it goes first.
    for place, word in enumerate(given):
        if word.startswith("--") and _flag(word) not in _flags(settings):
            return _unknown(given[place:], _flags(settings))
    words = _unboxed(told)
    if words.startswith("Missing from "):
        absent = _absent(settings, given, words.count("(required)"))
        return f"{', '.join(absent)} {'are' if absent[1:] else 'is'} missing; {way_out}"
    words = words.removeprefix("Error parsing ").removesuffix(".")
    if found := _OF_NO_TYPE.match(words):
        name, types, values = found.groups()
        kinds = [_KINDS.get(kind, kind) for kind in types.split("|") if kind != "{None}"]
        return f"{name} {values} cannot be read; give {' or '.join(kinds)}"
    if found := _UNREADABLE.match(words):
        return f"{found[1]} {found[2]} cannot be read; --help tells what it takes"
    return words


def _unknown(words: Sequence[str], flags: Sequence[str]) -> str:
    """What is said of an unknown flag, the first word, and of the values behind it."""
    values = itertools.takewhile(lambda word: not word.startswith("-"), words[1:])
    # Their hyphens alone would make any two short flags near.
    plain = {flag.strip("-"): flag for flag in flags}
    nearest = difflib.get_close_matches(_flag(words[0]).strip("-"), plain, n=1)
    listed = [flag for flag in flags if flag.startswith("--") and not flag.startswith("--no-")]
    way_out = plain[nearest[0]] if nearest else f"one of {', '.join(listed)}"
    return f"{' '.join([words[0], *values])} is unknown; give {way_out}"


def _absent(settings: type, given: Sequence[str], count: int) -> list[str]:
    """Which settings are missing, so many: those by position are filled from the left."""
    needed = [field.name for field in dataclasses.fields(settings) if _is_needed(field)]
    by_position = [name for name in needed if tyro.conf.Positional in _marks(settings, name)]
    there = {_flag(word) for word in given}
    flags = [
        f"--{name.replace('_', '-')}"
        for name in needed
        if name not in by_position and not there & set(_spellings(settings, name))
    ]
    return [*by_position[len(by_position) + len(flags) - count :], *flags]


def _flags(settings: type) -> list[str]:
    """Every flag as it is written."""
    names = [field.name for field in dataclasses.fields(settings)]
    return ["--help", *itertools.chain(*(_spellings(settings, name) for name in names))]


def _spellings(settings: type, name: str) -> list[str]:
    """How the flag of a setting may be written; none of a setting by position."""
    marks = _marks(settings, name)
    if tyro.conf.Positional in marks:
        return []
    plain = name.replace("_", "-")
    negated = [f"--no-{plain}"] if get_type_hints(settings)[name] is bool else []
    short = [alias for mark in marks for alias in getattr(mark, "aliases", None) or ()]
    return [f"--{plain}", *negated, *short]


def _marks(settings: type, name: str) -> tuple[object, ...]:
    """What tyro is told of a setting besides its type."""
    return getattr(get_type_hints(settings, include_extras=True)[name], "__metadata__", ())


def _is_needed(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _flag(word: str) -> str:
    """The flag alone, of --flag=value too, with hyphens."""
    return word.split("=")[0].replace("_", "-")


def _unboxed(told: str) -> str:
    """The first message under the title of a box, in one line."""
    lines = [line.strip("│ ") for line in told.splitlines()]
    # Where lines cannot be drawn, the title stands above a rule; else it interrupts one.
    parts = [
        " ".join(part)
        for is_rule, part in itertools.groupby(lines, lambda line: line.startswith(_RULES))
        if not is_rule
    ]
    return parts[0 if "╭" in told else 1]
