"""One walk over the equations of a jaxpr, whatever an equation's values are.

The tracer runs it on symbolic axes and `taps` on arrays. Both number equations by the same code, so
a position that one records means the same equation to the other.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from jax.extend import core

from wsa_jax.types import JaxprEqn

T = TypeVar("T")

_CALLS = frozenset(
    [
        "pjit",
        "jit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "composite",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_vmap_call",
    ]
)


class Equations(ABC, Generic[T]):
    """Run a jaxpr and all that it merely calls, equation by equation.

    Attributes:
      position: number of equations passed outside of loops.
      depth: number of loops around the current equation.
    """

    def __init__(self) -> None:
        self.position = 0
        self.depth = 0

    @abstractmethod
    def constant(self, array: Any) -> T:
        """The value of a literal or of an array that the function closes over."""

    @abstractmethod
    def apply(self, eqn: JaxprEqn, inputs: list[T]) -> Sequence[T]:
        """The outputs of an equation that is no call."""

    def run(self, jaxpr: Any, args: Sequence[T]) -> list[T]:
        """Run a jaxpr, open or closed, and return the values of its outputs."""
        consts: list[T] = []
        if isinstance(jaxpr, core.ClosedJaxpr):
            jaxpr, consts = jaxpr.jaxpr, [self.constant(const) for const in jaxpr.consts]
        env: dict[core.Var, T] = dict(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> T:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, inputs: list[T]) -> Sequence[T]:
        """Look inside a call, or number an equation and apply it."""
        inner = called(eqn)
        if inner is not None:
            return self.run(inner, inputs)
        # Loop bodies run more than once: an equation inside of one has no single value to point at.
        self.position += self.depth == 0
        return self.apply(eqn, inputs)


def called(eqn: JaxprEqn) -> Any:
    """The jaxpr that an equation merely calls, or None."""
    if eqn.primitive.name not in _CALLS:
        return None
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call"):
        if key in eqn.params:
            return eqn.params[key]
    return None
