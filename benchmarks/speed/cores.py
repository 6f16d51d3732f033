"""Equal cores for all sides: how many there are, and how a process is kept to its share of them.

Nothing but the standard library, since peers import it in environments of their own.
"""

import os

from benchmarks.record.workers import usable_cores
from benchmarks.refused import RefusedError


def available_cores() -> int:
    """Cores this process may use: under taskset fewer than the machine has."""
    return len(usable_cores())


def use_cores(threads: int) -> None:
    """Keep this process, and all that it starts, to as many cores as it is to have threads.

    To be called before a framework starts its threads. JAX has no setting for their number: it
    counts the cores it may use, once, and threads that run already would keep all of them.
    """
    cores = usable_cores()
    if not 1 <= threads <= len(cores):
        raise RefusedError(
            f"--threads {threads}: give 1 to {len(cores)}, the cores this process may use"
        )
    if threads == len(cores):
        return
    if not hasattr(os, "sched_setaffinity"):
        raise RefusedError(
            f"--threads {threads}: this system cannot keep a process to fewer cores than the "
            f"{len(cores)} it has; leave the setting out"
        )
    os.sched_setaffinity(0, cores[:threads])
