"""One process at a time in a run's directory, by a lock that ends with its process."""

import errno
import json
import os
import socket
import warnings
from pathlib import Path

from wsa_jax.runs.files import FULL, READ_ONLY, CheckpointError, one_line

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class DirectoryLock:
    """The lock of a directory (``flock`` of ``.lock``): held until `release`, or the process ends.

    The file says which process on which host holds it; what a dead process left there is taken
    over, since the system frees its lock. POSIX systems only.

    Attributes:
      read_only: the directory cannot be written to, so it is not locked.

    Raises:
      CheckpointError: another process, or another run of this one, holds the lock.

    >>> import tempfile
    >>> lock = DirectoryLock(Path(tempfile.mkdtemp()))
    >>> DirectoryLock(lock.directory)
    Traceback (most recent call last):
    wsa_jax.runs.files.CheckpointError: ... is in use by process ... on ...; wait until it ends, ...
    >>> lock.release()
    >>> DirectoryLock(lock.directory).read_only
    False
    """

    def __init__(self, directory: Path):
        import fcntl

        self.directory = directory
        self.read_only = False
        self._path = directory / ".lock"
        self._file: int | None = None
        with one_line(self._path, "open"):
            try:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                self.read_only = True
                return
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = _holder(self._file)
                self.release()
                if isinstance(error, BlockingIOError):
                    raise CheckpointError(
                        f"{directory} is in use by {holder}; wait until it ends, or give another "
                        "directory"
                    ) from error
                if error.errno not in _NO_LOCKS:
                    raise
                warnings.warn(
                    f"the file system of {directory} has no locks ({error.strerror}); let only "
                    "one process at a time use it",
                    stacklevel=2,
                )
                return
            text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
            try:
                os.ftruncate(self._file, 0)
                os.pwrite(self._file, text.encode(), 0)
            except OSError as error:
                # The lock holds without its text, and a finished run on a full disk is returned.
                if error.errno not in FULL:
                    raise

    def check(self) -> None:
        """Raise a CheckpointError if the directory was deleted or replaced since it was locked."""
        if self._file is None:
            return
        held = os.fstat(self._file)
        try:
            found = self._path.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
            raise CheckpointError(
                f"{self.directory} was deleted or replaced while this run was in it; start again"
            )

    def release(self) -> None:
        """Give the directory free; once is enough."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _holder(file: int) -> str:
    """Who holds the lock, as far as its file says; it may not have been written yet."""
    try:
        found = json.loads(os.pread(file, 1000, 0))
        return f"process {found['pid']} on {found['host']}"
    except (ValueError, LookupError, TypeError):
        return "another process"
