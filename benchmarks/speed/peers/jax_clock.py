"""How long XLA has compiled: what the two JAX sides share."""

from collections.abc import Callable
from typing import Any

import jax


def compile_clock() -> Callable[[], float]:
    """A function that returns the seconds XLA has spent on compilation since this call."""
    spent: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: Any) -> None:
        if event.endswith("backend_compile_duration"):
            spent.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: sum(spent)
