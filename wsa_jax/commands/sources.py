"""An input of a merge: its leaves, and the digest of its bytes, in one reading."""

import hashlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from wsa_jax.files import ModelFile, ModelFileError
from wsa_jax.files.model_file import read_bytes, size_in_bytes, told

# So many pieces may wait for the digest; a buffer is read into again once it has been digested.
_WAITING = 8

# Bytes at a time of what only the digest reads.
_BLOCK = 1 << 20


class Source:
    """An open file, of which a thread of its own digests what is read, as it is read.

    Formats that store leaves plain are read once: a piece goes to the digest, which needs the bytes
    in the order of the file, and to the merge. What the merge leaves out, or asks for in another
    order, the digest reads itself. Files of other formats are digested beside the merge.
    """

    def __init__(self, file: ModelFile, thread: ThreadPoolExecutor):
        self.file = file
        self._thread = thread
        self._hashes = {part: hashlib.sha256() for part in file.parts}
        self._given = dict.fromkeys(file.parts, 0)  # bytes from the start of each
        self._buffers: list[np.ndarray] = [np.empty(0, np.uint8)] * _WAITING
        self._digested: list[Future[Any]] = [_done()] * _WAITING
        self._alone: list[Future[Any]] = []
        self._turn = 0
        if file.places is None:
            self._give_rest()

    def leaf(self, name: str) -> np.ndarray:
        """A leaf as a whole, in an array of its own."""
        if self.file.places is None:
            return self.file[name]
        shape = self.file.shapes[name]
        data = np.empty(size_in_bytes(shape), np.uint8)
        # One at a time: leaves that wait for their digest would fill the memory.
        for digested in self._digested:
            digested.result()
        self._digested[self._turn] = self._read(name, 0, data)
        return data.view(shape.dtype).reshape(shape.shape)

    def pieces(self, name: str, count: int) -> Iterator[np.ndarray]:
        """The numbers of a leaf in its order, so many at a time; each is valid until the next."""
        shape = self.file.shapes[name]
        size = int(np.prod(shape.shape, dtype=np.int64))
        whole = self.file[name].reshape(-1) if self.file.places is None else None
        for start in range(0, size, count):
            number = min(count, size - start)
            if whole is not None:
                yield whole[start : start + number]
            else:
                yield self._piece(name, start, number, shape.dtype)

    def digest(self) -> str:
        """SHA-256 of the file as sha256sum gives it; of several, of the lines it prints."""
        self._give_rest()
        for digested in (*self._digested, *self._alone):
            digested.result()
        digests = {part.name: found.hexdigest() for part, found in self._hashes.items()}
        if len(digests) == 1:
            return next(iter(digests.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def _piece(self, name: str, start: int, number: int, dtype: Any) -> np.ndarray:
        turn = self._turn = (self._turn + 1) % _WAITING
        self._digested[turn].result()
        wide = np.dtype(dtype).itemsize
        if self._buffers[turn].size < number * wide:
            self._buffers[turn] = np.empty(number * wide, np.uint8)
        data = self._buffers[turn][: number * wide]
        self._digested[turn] = self._read(name, start * wide, data)
        return data.view(dtype)

    def _read(self, name: str, offset: int, data: np.ndarray) -> Future[Any]:
        """Read bytes of a leaf, and give to the digest those that it has not had yet."""
        path, begin = (self.file.places or {})[name]
        begin, end = begin + offset, begin + offset + data.size
        read_bytes(path, begin, data)
        if end <= self._given[path]:
            return _done()
        self._give_up_to(path, begin)
        fresh = data[self._given[path] - begin :]
        self._given[path] = end
        return self._thread.submit(self._hashes[path].update, fresh.data)

    def _give_up_to(self, path: Path, end: int) -> None:
        """Let the digest read what is left before a place: a header, leaves that nobody reads."""
        begin = self._given[path]
        if begin < end:
            self._given[path] = end
            found = self._hashes[path]
            self._alone.append(self._thread.submit(_digest_alone, found, path, begin, end))

    def _give_rest(self) -> None:
        for part in self.file.parts:
            with told(part, "read"):
                self._give_up_to(part, part.stat().st_size)


@contextmanager
def sources(files: Sequence[ModelFile]) -> Generator[list[Source]]:
    """A source of each file, with a thread of its own until this ends."""
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(max_workers=1)) for _ in files]
        yield [Source(file, thread) for file, thread in zip(files, threads, strict=True)]


def check_finite(name: str, leaves: Sequence[np.ndarray]) -> None:
    """Raise a ModelFileError that names the file in which a leaf, or a piece of it, is not finite.

    >>> check_finite("w", [np.ones(2), np.array([1.0, np.nan])])
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: leaf w of file 2 holds NaN or infinite values; give ...
    """
    for index, leaf in enumerate(leaves):
        if not all_finite(leaf):
            refuse_infinite(name, index)


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; one pass without a copy, where the sum is finite.

    >>> all_finite(np.full(4, 3e38, np.float32)), all_finite(np.array([np.inf]))
    (True, False)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())


def refuse_infinite(name: str, index: int) -> NoReturn:
    """Raise the error of a leaf that is not finite."""
    raise ModelFileError(
        f"leaf {name} of file {index + 1} holds NaN or infinite values; give finite weights"
    )


def _digest_alone(found: Any, path: Path, begin: int, end: int) -> None:
    block = np.empty(_BLOCK, np.uint8)
    for start in range(begin, end, _BLOCK):
        part = block[: min(_BLOCK, end - start)]
        read_bytes(path, start, part)
        found.update(part.data)


def _done() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(None)
    return future
