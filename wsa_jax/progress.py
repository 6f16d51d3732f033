"""One progress bar for everything that takes long; shown only where it is asked for."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import TypeVar

from wsa_jax.extras import require

Advance = Callable[..., None]
"""``advance(steps=1, said=None)``: steps that are done, and what the bar says from now on."""

Item = TypeVar("Item")

__all__ = ["Advance", "one_by_one", "pieces", "progress_bar"]


@contextlib.contextmanager
def progress_bar(
    enabled: bool, total: int, *, done: int = 0, what: str = ""
) -> Generator[Advance, None, None]:
    """Show a bar; yields what advances it.

    Args:
      enabled: nothing is shown, and nothing is needed, where this is false.
      total: steps in all.
      done: steps that were done before.
      what: what is counted.

    Raises:
      MissingExtraError: it is enabled and rich is not installed.

    >>> with progress_bar(False, 2) as advance:
    ...     advance()
    """
    if not enabled:
        yield lambda steps=1, said=None: None
        return
    require("rich", "a progress bar")
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        work = bar.add_task(what, total=total, completed=done)

        def advance(steps: int = 1, said: str | None = None) -> None:
            bar.update(work, advance=steps, description=what if said is None else said)

        yield advance


def one_by_one(named: Mapping[str, Item], *, enabled: bool) -> Iterator[tuple[str, Item]]:
    """Go through named things, each of which takes its time, under a bar that names them.

    >>> list(one_by_one({"a": 1}, enabled=False))
    [('a', 1)]
    """
    with progress_bar(enabled, len(named)) as advance:
        for name, item in named.items():
            advance(0, name)
            yield name, item
            advance(1, name)


def pieces(total: int, most: int = 20) -> list[int]:
    """Cut steps into pieces of one size, and a smaller last one where it does not fit.

    >>> pieces(50), pieces(7), pieces(43, 5)
    ([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2], [1, 1, 1, 1, 1, 1, 1], [9, 9, 9, 9, 7])
    """
    size = -(-total // most)
    whole, rest = divmod(total, size)
    return [size] * whole + [rest] * (rest > 0)
