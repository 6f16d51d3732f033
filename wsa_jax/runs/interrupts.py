"""Ctrl-C between a run's writes, not within them."""

import contextlib
import signal
import threading
from collections.abc import Generator
from types import FrameType


@contextlib.contextmanager
def interrupts_wait() -> Generator[None]:
    """Let Ctrl-C wait until the block ends; a second one does not wait.

    Libraries that write with tasks and threads of their own leave them behind, with their
    tracebacks, where they are interrupted. Other threads than the main one get no signals.

    >>> try:
    ...     with interrupts_wait():
    ...         signal.raise_signal(signal.SIGINT)
    ...         print("written")
    ... except KeyboardInterrupt:
    ...     print("interrupted")
    written
    interrupted
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    received = list[int]()

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            before(number, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            signal.raise_signal(signal.SIGINT)


def interruption(error: KeyboardInterrupt) -> str:
    """Return the line with which a command ends that was interrupted.

    >>> interruption(KeyboardInterrupt())
    'interrupted; start again to resume'
    """
    return next(iter(getattr(error, "__notes__", [])), "interrupted; start again to resume")
