"""Files of runs: written whole or not at all, and every refusal in one line with its path."""

import contextlib
import errno
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

from wsa_jax.types import Json

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class CheckpointError(ValueError):
    """A run's files cannot be read or written: torn, of another run, in use, or refused."""


def directory_path(directory: str | os.PathLike[str]) -> Path:
    """Return the path of a run's directory, which need not exist; ``~`` is the home folder.

    >>> directory_path("~/runs/1").is_absolute()
    True
    >>> directory_path("")
    Traceback (most recent call last):
    ValueError: directory is an empty path; name the folder that the run is kept in
    """
    text = os.fspath(directory)
    if not text.strip():
        raise ValueError("directory is an empty path; name the folder that the run is kept in")
    if "\0" in text:
        raise ValueError(f"directory {text!r} has a character that no path may have; leave it out")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(
            f"directory {text!r} names a home folder that is not known; give the whole path"
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder and its parents, if it is not there; a file in its place is one line."""
    with one_line(path, "make the folder"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise CheckpointError(
                f"{path} is a file, not a folder; move it away or give another directory"
            ) from error


@contextlib.contextmanager
def one_line(path: Path, doing: str) -> Generator[None]:
    """Turn what the system refuses into one line that names the path, the reason and the way out.

    >>> with one_line(Path("/runs/1/run.json"), "read"):
    ...     raise OSError(errno.EISDIR, "Is a directory")
    Traceback (most recent call last):
    wsa_jax.runs.files.CheckpointError: cannot read /runs/1/run.json (Is a directory); move it ...
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise CheckpointError(f"cannot {doing} {path} ({reason}); {_way_out(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first line of an exception, or its class where it says nothing.

    >>> first_line(KeyError())
    'KeyError'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


@contextlib.contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """Open a file so that readers find the new bytes or the old ones, even after a crash.

    The bytes, and then their name in the folder, are on disk when this ends; nothing is left where
    it fails.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note"
    >>> with atomic_file(path) as file:
    ...     _ = file.write(b"whole"), path.exists()
    >>> path.read_bytes()
    b'whole'
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that readers find the new text or the old one, even after a crash.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "note.txt"
    >>> write_atomically(path, "whole")
    >>> path.read_text()
    'whole'
    """
    with atomic_file(path) as file:
        file.write(text.encode())


def read_text(path: Path) -> str:
    """Return a text file; what is no text is one line."""
    with one_line(path, "read"):
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{path} is torn: it holds bytes that are no text; delete {path.parent} to start "
                "again, or give another directory"
            ) from error


def read_object(text: str, place: str, way_out: str) -> Json:
    """Return the JSON object that a file, or a line of one, holds.

    >>> read_object('{"step": 3}', "run.json", "delete it")
    {'step': 3}
    >>> read_object('{"step":', "run.json", "delete it")
    Traceback (most recent call last):
    wsa_jax.runs.files.CheckpointError: run.json is torn or foreign (no JSON object); delete it
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{place} is torn or foreign (no JSON object); {way_out}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{place} is torn or foreign (no JSON object); {way_out}")
    return found


def read_lines(path: Path) -> list[str]:
    """Return a file's lines without their ends; the last may be torn."""
    lines = read_text(path).split("\n")
    return lines[:-1] if not lines[-1] else lines


def _way_out(error: OSError) -> str:
    if error.errno in FULL:
        return "free some space and start again: the run is safe up to its last checkpoint"
    if error.errno in READ_ONLY:
        return "give a directory that can be read and written"
    if error.errno == errno.ENAMETOOLONG:
        return "give a shorter name"
    return "move it away, or give another directory"
