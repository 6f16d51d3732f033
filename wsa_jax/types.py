"""Names for the types that signatures share."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array, ArrayLike, PyTree, Real

Params = PyTree
"""A model's trained arrays: a Flax dict, an `nnx.State`, an Equinox module or any other pytree."""

ModelState = PyTree
"""State of a model that is not trained by gradients (BatchNorm statistics); ``{}`` for none."""

Inputs = PyTree
"""What a task takes as inputs: an array ``[examples, ...]``, or a pytree of such arrays."""

Scalar = Real[ArrayLike, ""]
"""One real number: of Python, NumPy or JAX, traced or not."""

Schedule = Callable[[Any], Any]
"""A number for each step or round, called with its index from 0."""

Strength = Scalar | Schedule
"""A strength of regularization: a number or a schedule."""

LearningRate = Scalar | Schedule
"""A learning rate: a number or a schedule."""

Key = Array
"""A JAX key, where no shape is to be checked."""

Leaf = Any
"""A leaf of a pytree: an array, a number, or what a module keeps beside them (functions)."""

KeyPath = tuple[Any, ...]
"""Where a leaf is in a pytree: a key for each level, of JAX or of the module that registered it."""

Numbers = ArrayLike | Sequence[float | int]
"""A number, or one for each model: an array or a sequence."""

Labels = Any
"""Labels of examples, ``[examples, ...]``: an array of NumPy or JAX, or anything given for one."""

Examples = tuple[Inputs, Labels]
"""A data set: inputs and labels of equal length."""

Json = dict[str, Any]
"""An object as JSON holds it: a row of metrics, a run's identity, settings of a command."""

JaxprEqn = Any
"""An equation of a jaxpr: JAX's own type says nothing of the arrays that go in and out."""
