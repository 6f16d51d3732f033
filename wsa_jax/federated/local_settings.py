"""Settings of local training: what is static in a round, and the plain numbers of one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float

from wsa_jax import checks


@dataclass(frozen=True, kw_only=True)
class LocalSettings:
    """Scientific settings of local training; the defaults are those of the reference experiments.

    Attributes:
      steps: local steps per round, of every client; or a tuple, of each client its own (the loop is
        as for epochs). Not looked at if epochs are given.
      batch_size: examples per step.
      clip_norm: bound on the global norm of the gradient, None for no clipping.
      weight_decay: added after the clip, as PyTorch's SGD does.
      momentum: momentum of local SGD, reset every round.
      optimizer: None for SGD; or a function of the learning rate that returns an optax optimiser,
        such as ``optax.adam``, whose state is reset every round, as that of momentum is. A schedule
        within the round is part of it. It is given the clipped gradient with the weight decay in it
        (give 0 for ``optax.adamw``, which has its own), and, if it asks for them, ``value``,
        ``grad`` and ``value_fn`` of the loss, and ``grad_fn``, that gradient at other parameters
        (`sharpness_aware`; ``optax.contrib.sam`` in its opaque mode).
      epochs: None; or passes of a client over its own examples in a round, which are more steps for
        a client that has more. The loop is as long as that of the largest capacity; a client that
        has done its steps waits (clients by ``map``), or its further steps are discarded.

    FedProx and weight scope alignment compose with any optimiser; the bound on the strength of
    explicit forms is that of SGD, and is checked for it alone. SCAFFOLD is defined for SGD alone.

    >>> LocalSettings(optimizer=optax.adam, weight_decay=0).steps
    20
    >>> def warm(rate):
    ...     return optax.sgd(optax.linear_schedule(0.0, rate, 20), momentum=0.9, nesterov=True)
    >>> LocalSettings(optimizer=warm).momentum
    0.0
    """

    steps: int | tuple[int, ...] = 20
    batch_size: int = 50
    clip_norm: float | int | None = 10.0
    weight_decay: float | int = 1e-4
    momentum: float | int = 0.0
    optimizer: Callable[[Any], optax.GradientTransformation] | None = None
    epochs: int | None = None

    def __post_init__(self):
        checks.sgd_settings(self, ("batch_size",))
        if isinstance(self.steps, list):
            raise ValueError(f"steps {self.steps} are a list; give a tuple, a number a client")
        for steps in self.steps if isinstance(self.steps, tuple) and self.steps else (self.steps,):
            checks.count("steps", steps)
        if self.epochs is not None:
            checks.count("epochs", self.epochs)
        if self.optimizer is None:
            return
        if not callable(self.optimizer):
            raise ValueError(
                "optimizer is an optax optimiser with a rate of its own; give a function of the "
                "learning rate, such as optax.adam or lambda rate: optax.sgd(rate, nesterov=True)"
            )
        if self.momentum:
            raise ValueError(
                f"momentum {self.momentum} is that of SGD, but an optimizer is given; give the "
                "momentum to the optimizer"
            )

    @property
    def longest(self) -> int:
        """The largest number of steps that a client takes, unless epochs say it.

        >>> LocalSettings(steps=(3, 5)).longest
        5
        """
        return max(self.steps) if isinstance(self.steps, tuple) else self.steps

    @property
    def differ(self) -> bool:
        """Whether clients may take different numbers of steps."""
        return self.epochs is not None or isinstance(self.steps, tuple)

    def check_clients(self, clients: int) -> None:
        """Raise a ValueError unless there are steps for each of so many clients.

        >>> LocalSettings(steps=(3, 5)).check_clients(3)
        Traceback (most recent call last):
        ValueError: steps are of 2 clients, but there are 3; give a number each, or one for all
        """
        if isinstance(self.steps, tuple) and len(self.steps) != clients:
            raise ValueError(
                f"steps are of {len(self.steps)} clients, but there are {clients}; give a number "
                "each, or one for all"
            )


class RoundSettings(NamedTuple):
    """Plain numbers of one round: traced, so that other values need no recompilation.

    Attributes:
      learning_rate: that of the local steps.
      strength: how strongly weight scope alignment acts, see `WeightScopeAlignment`; not looked at
        without it.
    """

    learning_rate: Float[Array, ""]
    strength: Float[Array, ""]
