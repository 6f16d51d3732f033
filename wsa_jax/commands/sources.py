"""An input of a merge: its leaves, and the digest of its bytes, in one reading."""

import hashlib
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from wsa_jax.files import ModelFile, ModelFileError
from wsa_jax.files.model_file import read_bytes, size_in_bytes, told

# So many pieces of a leaf are read ahead of the merge, each into a buffer of its own.
_WAITING = 4

# Bytes that are read and then digested at a time: few calls, and the fastest caches hold them.
_BLOCK = 1 << 19


class Source:
    """An open file, which a thread of its own reads ahead of the merge, and digests.

    Formats that store leaves plain are read once: the thread digests bytes right after it has read
    them, while the processor's cache holds them. The digest needs them in the order of the file:
    what the merge leaves out, or asks for in another order, the thread reads for the digest alone.
    Files of other formats are digested beside the merge.
    """

    def __init__(self, file: ModelFile, thread: ThreadPoolExecutor):
        self.file = file
        self._thread = thread
        self._hashes = {part: hashlib.sha256() for part in file.parts}
        self._given = dict.fromkeys(file.parts, 0)  # bytes from the start of each
        self._buffers: list[np.ndarray] = [np.empty(0, np.uint8)] * _WAITING
        if file.places is None:
            thread.submit(self._digest_rest)  # what stops it stops `digest` too

    def leaf(self, name: str) -> Future[np.ndarray]:
        """A leaf as a whole, in an array of its own, as soon as it is read."""
        shape = self.file.shapes[name]
        if self.file.places is None:
            whole: Future[np.ndarray] = Future()
            whole.set_result(self.file[name])
            return whole
        data = np.empty(size_in_bytes(shape), np.uint8)
        return self._thread.submit(
            lambda: self._read(name, 0, data).view(shape.dtype).reshape(shape.shape)
        )

    def pieces(self, name: str, count: int) -> Iterator[np.ndarray]:
        """The numbers of a leaf in its order, so many at a time; each is valid until the next."""
        shape = self.file.shapes[name]
        size = int(np.prod(shape.shape, dtype=np.int64))
        if self.file.places is None:
            whole = self.file[name].reshape(-1)
            yield from (whole[start : start + count] for start in range(0, size, count))
            return
        wide = np.dtype(shape.dtype).itemsize
        starts = range(0, size, count)
        ahead: deque[Future[np.ndarray]] = deque()
        for turn in range(-_WAITING, len(starts)):
            if turn >= 0:
                yield ahead.popleft().result().view(shape.dtype)
            # What was yielded is used up: its buffer is free for a piece further on.
            if (following := turn + _WAITING) < len(starts):
                start = starts[following]
                data = self._buffer(following % _WAITING, min(count, size - start) * wide)
                ahead.append(self._thread.submit(self._read, name, start * wide, data))

    def digest(self) -> str:
        """SHA-256 of the file as sha256sum gives it; of several, of the lines it prints in theirs.

        Theirs is the folder that all of them are in, which their names are relative to.
        """
        self._thread.submit(self._digest_rest).result()
        folder = os.path.commonpath([part.parent for part in self._hashes])
        digests = {
            part.relative_to(folder).as_posix(): found.hexdigest()
            for part, found in self._hashes.items()
        }
        if len(digests) == 1:
            return next(iter(digests.values()))
        lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def _buffer(self, turn: int, size: int) -> np.ndarray:
        if self._buffers[turn].size < size:
            self._buffers[turn] = np.empty(size, np.uint8)
        return self._buffers[turn][:size]

    # What follows runs in the thread, one after the other.

    def _read(self, name: str, offset: int, data: np.ndarray) -> np.ndarray:
        """Read bytes of a leaf, and digest those that the digest has not had yet."""
        path, begin = (self.file.places or {})[name]
        for start in range(0, data.size, _BLOCK):
            block = data[start : start + _BLOCK]
            place = begin + offset + start
            read_bytes(path, place, block)
            if place + block.size > self._given[path]:
                self._digest_up_to(path, place)
                self._hashes[path].update(block[self._given[path] - place :].data)
                self._given[path] = place + block.size
        return data

    def _digest_up_to(self, path: Path, end: int) -> None:
        """Read what is left before a place: a header, leaves that nobody asks for."""
        while (start := self._given[path]) < end:
            block = np.empty(min(_BLOCK, end - start), np.uint8)
            read_bytes(path, start, block)
            self._hashes[path].update(block.data)
            self._given[path] = start + block.size

    def _digest_rest(self) -> None:
        for part in self.file.parts:
            with told(part, "read"):
                size = part.stat().st_size
            self._digest_up_to(part, size)


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
