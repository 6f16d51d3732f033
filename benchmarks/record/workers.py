"""Work dealt out to processes of one core each: locks, pinning, and one cache of compiled code.

Nothing but the standard library at the top, since peers count their cores by it.
"""

import contextlib
import fcntl
import json
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def run_in_workers(count: int, work: Callable[[], object], cache: Path) -> None:
    """Call `work` in so many processes, each on a core of its own while there are enough.

    They share the folder of compiled code. One that fails does not stop the others; when all have
    ended, this exits and says how many failed. If this process is killed, they end with it.
    """
    # A fresh interpreter, since JAX's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    cores = usable_cores()
    processes = [
        context.Process(target=_pinned, args=(work, cores[index % len(cores)], cache.resolve()))
        for index in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        sys.exit(
            f"{len(failed)} of {count} workers failed (exit {failed[0]}, see above); start again "
            "to resume what they left"
        )


def usable_cores() -> list[int]:
    """Cores that this process may run on; all of the machine where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _pinned(work: Callable[[], object], core: int, cache: Path) -> None:
    # Before JAX counts the cores to make its threads.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    else:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false"
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work()
    except KeyboardInterrupt:
        # Ctrl-C reaches every process; the first one says so.
        sys.exit(130)


def _end_with_parent() -> None:
    """End this process with the one that started it, which may be killed without a last word."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def held_alone(name: str, folder: Path) -> Iterator[str | None]:
    """Hold the lock of a name in a folder; gives None, or who holds it if another process does.

    The lock is the system's (`flock`), on a file that says host and pid: that of a dead process is
    free, whatever its file says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield file.read() or "another process"
            return
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        yield None
