"""A network with BatchNorm as an equal one without: norms go into the layers before them."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from wsa_jax import checks
from wsa_jax.door import door
from wsa_jax.leaves import key_path
from wsa_jax.merging.symmetry.affine import Producers, Scaled
from wsa_jax.merging.symmetry.taps import Evaluation
from wsa_jax.merging.symmetry.tracing.steps import Elementwise, Move, Step, Value
from wsa_jax.merging.symmetry.tracing.trace_spec import Traced, flatten, is_statistic, trace
from wsa_jax.types import Leaf


class Folded(NamedTuple):
    """A network without BatchNorm.

    Attributes:
      apply_fn: ``(params, *inputs) -> outputs``, which leaves the norms out; keep it, since each
        function object is compiled once.
      params: the variables without statistics and scales of norms, which are None; a norm's bias is
        that of the layer before it, whose own takes the shift of a norm without one.
    """

    apply_fn: Callable[..., PyTree]
    params: PyTree


class _Fold(NamedTuple):
    """A norm, and the layer that takes it up.

    Attributes:
      steps: ``(name, equation, data operand)`` of its equations: what is left out.
      units: axes of the data along which its parameters differ.
      kernel: the parameter that its input is proportional to.
      bias: the bias that is added before the norm, if there is one.
      shift: the bias that takes up the norm's shift: the norm's own, or that before it.
      unused: leaves that nothing reads without the norm.
    """

    steps: tuple[tuple[str, int, int], ...]
    units: tuple[int, ...]
    kernel: Scaled
    bias: Scaled | None
    shift: Scaled | None
    unused: frozenset[str]


@door
def fold_batch_norm(apply_fn: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> Folded:
    r"""Write a network with BatchNorm as an equal one without.

    .. math:: \gamma \frac{W x + b - \mu}{\sqrt{\nu + \epsilon}} + \beta = (s W) x + (s b)
              + (\beta - s \mu), \qquad s = \frac{\gamma}{\sqrt{\nu + \epsilon}}

    Norms keep a layer's scale out of the function. Without them, scaling symmetries are there again
    (`rescale`, `scale_units`), and methods that know kernels and biases only apply.

    Args:
      apply_fn: any JAX function ``apply_fn(variables, *inputs)`` in evaluation mode.
      variables: parameters and running statistics, in one tree.
      inputs: the function's other arguments; shapes suffice.

    Returns:
      The function without norms and its parameters, for `trace_spec` and every other function that
      takes such a pair.

    Guarantees: the same function up to rounding (`check_equivalence`); nothing is evaluated but the
    norms' own parameters. The networks of two models folded alike have one structure.

    Raises:
      ValueError: no running statistics, a leaf that holds NaN, or a norm that does not follow a
        layer alone (a sum of branches, a non-linearity) or that has no bias after a layer without
        one; the norm is named.

    >>> from flax import linen as nn
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
    ...         return nn.Dense(2)(nn.relu(x))
    >>> net, x = Net(), jnp.ones((1, 3))
    >>> variables = net.init(jax.random.key(0), x)
    >>> folded = fold_batch_norm(net.apply, variables, x)
    >>> [key_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(folded.params)]
    ['params/BatchNorm_0/bias', 'params/Dense_0/bias', 'params/Dense_0/kernel', 'params/Dense_1/...
    >>> jnp.allclose(folded.apply_fn(folded.params, x), net.apply(variables, x), atol=1e-6).item()
    True

    Source: the algebra of Ioffe and Szegedy, ICML 2015, section 3.1, Algorithm 2.
    """
    traced = trace(apply_fn, variables, *inputs)
    checks.weights(variables, "the variables")
    folds = _folds(traced)
    arrays = dict(zip(traced.leaves, flatten(apply_fn, variables, inputs)[1], strict=False))
    _check_all_folded(arrays, folds)
    unused = frozenset(name for fold in folds for name in fold.unused)
    changed = _folded_leaves(traced, folds, arrays)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)

    def without(path: tuple, leaf: Leaf) -> Leaf:
        name = key_path(path)
        return None if name in unused else changed.get(name, leaf)

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        # What is left out is read by nothing that the result depends on.
        def filled(shape: Any, leaf: Leaf) -> Leaf:
            return jnp.zeros(shape.shape, shape.dtype) if leaf is None else leaf

        whole = jax.tree.map(filled, like, params)
        traced = trace(apply_fn, whole, *inputs)
        passed = {place: data for fold in _folds(traced) for _, place, data in fold.steps}
        outputs = Evaluation(set(), passed).run(traced.jaxpr, flatten(apply_fn, whole, inputs)[1])
        structure = jax.tree.structure(jax.eval_shape(apply_fn, whole, *inputs))
        return jax.tree.unflatten(structure, outputs)

    return Folded(apply, jax.tree_util.tree_map_with_path(without, variables))


def _folds(traced: Traced) -> list[_Fold]:
    """The norms of a function whose running statistics are parameters of it."""
    producers = Producers(traced)
    names = list(traced.leaves)
    uses = Counter(id(value) for step in traced.walk.steps for value in step.inputs)
    used_in = {id(value): step for step in traced.walk.steps for value in step.inputs}

    def once(part: Scaled) -> bool:
        return uses[id(traced.leaves[part.leaf])] == 1

    ends = [value for step in traced.walk.steps for value in step.outputs]
    parts = {id(value): _by_parameter(producers, value) for value in ends}
    inside = {id(part[3]) for part in parts.values() if part is not None}
    folds = []
    for end in ends:
        if parts[id(end)] is None or id(end) in inside:
            continue
        value, steps, unused, units, alone = end, [], set(), set(), True
        # Back through what multiplies or shifts by parameters alone, as far as statistics go.
        while (found := parts.get(id(value))) is not None:
            name, place, operand, value, parameter = found
            steps.append((name, place, operand))
            origin = list(enumerate(parameter.origin or ()))
            unused |= {names[leaf] for _, pairs in origin for leaf, _ in pairs}
            units |= {axis for axis, pairs in origin if pairs and parameter.shape[axis] > 1}
            alone &= uses[id(value)] == 1
        # What something else reads, too, has to stay.
        alone &= all(uses[id(traced.leaves[name])] == 1 for name in unused)
        if not alone or not any(is_statistic(name, None) for name in unused):
            continue
        axes = tuple(sorted(units))
        before = _added(producers.step(value))
        data, bias = before or (value, None)
        kernel = producers.scaled_by(data, axes)
        scaled = None if bias is None else producers.scaled_by(bias, axes)
        # A kernel that is used twice cannot take the scale of one of its uses.
        if kernel is None or not once(kernel) or (bias and not (scaled and once(scaled))):
            continue
        after = _added(used_in.get(id(end))) if uses[id(end)] == 1 else None
        shifts = [part[1] for part in (after, before) if part and _is_whole(producers, part[1])]
        candidates = [producers.scaled_by(part, axes) for part in shifts]
        shift = next((part for part in candidates if part and once(part)), None)
        folds.append(_Fold(tuple(steps), axes, kernel, scaled, shift, frozenset(unused)))
    return folds


def _added(step: Step | None) -> tuple[Value, Value] | None:
    """The data and the parameter that a step adds up, if it does."""
    if step is None or step.name != "add" or step.position is None or len(step.inputs) != 2:
        return None
    for data, parameter in (step.inputs, step.inputs[::-1]):
        if parameter.is_parameter and not data.is_parameter:
            return data, parameter
    return None


def _is_whole(producers: Producers, value: Value) -> bool:
    """Whether a parameter is added as it is, not a multiple of it, whatever its axes."""
    step = producers.step(value)
    if step is None or producers.leaf(value) is not None:
        return producers.leaf(value) is not None
    same = isinstance(step.kind, Move) or step.name == "convert_element_type"
    return same and _is_whole(producers, step.inputs[0])


def _by_parameter(producers: Producers, value: Value) -> Any:
    """The equation that scales or shifts data by a parameter to make a value, taken apart."""
    step = producers.step(value)
    if step is None or step.position is None or not isinstance(step.kind, Elementwise):
        return None
    if step.name not in ("mul", "div", "sub") or len(step.inputs) != 2:
        return None
    for operand in (0,) if step.name in ("div", "sub") else (0, 1):
        data, parameter = step.inputs[operand], step.inputs[1 - operand]
        if parameter.is_parameter and not data.is_parameter:
            return step.name, step.position, operand, data, parameter
    return None


def _check_all_folded(names: Iterable[str], folds: list[_Fold]) -> None:
    statistics = [name for name in names if is_statistic(name, None)]
    if not statistics:
        raise ValueError(
            "the variables hold no running statistics, so there is no BatchNorm to fold; give "
            "parameters and statistics in one tree, as Model.variables does"
        )
    for fold in folds:
        if fold.shift is None:
            name = min(name for name in fold.unused if is_statistic(name, None))
            raise ValueError(
                f"the norm of statistic {name} has no bias, and neither has the layer before it, "
                "so nothing can take its shift; give one of them a bias, such as zeros"
            )
    left = [name for name in statistics if not any(name in fold.unused for fold in folds)]
    if left:
        raise ValueError(
            f"the norm of statistic {left[0]} does not follow a layer alone, so no kernel can take "
            "its scale; fold networks whose norms come right after a convolution or a dense layer"
        )


def _folded_leaves(traced: Traced, folds: list[_Fold], arrays: dict[str, Any]) -> dict[str, Any]:
    """The leaves that change, computed in float64."""
    places = {(place, False, 1 - data) for fold in folds for _, place, data in fold.steps}
    values = [*arrays.values()]
    inputs: list[Any] = traced.jaxpr.in_avals[len(values) :]

    # Compiled, since no input reaches the norms' parameters: the network is not evaluated.
    @jax.jit
    def operands(values: list[Any]) -> dict[tuple[int, bool, int], Any]:
        evaluation = Evaluation(places)
        blank = [jnp.zeros(given.shape, given.dtype) for given in inputs]
        evaluation.run(traced.jaxpr, [*values, *blank])
        return evaluation.seen

    seen = operands(values)
    changed: dict[str, Any] = {}
    for fold in folds:
        scale, shift = np.float64(1.0), np.float64(0.0)
        for name, place, data in reversed(fold.steps):
            given = np.asarray(seen[place, False, 1 - data], np.float64)
            if name == "sub":
                shift = shift - given
            else:
                factor = given if name == "mul" else 1 / given
                scale, shift = scale * factor, shift * factor
        scale, shift = (_units(part, fold.units) for part in np.broadcast_arrays(scale, shift))
        for part in (fold.kernel,) if fold.bias is None else (fold.kernel, fold.bias):
            leaf = np.asarray(arrays[part.leaf], np.float64)
            changed[part.leaf] = part.along(scale, leaf.ndim) * leaf
        assert fold.shift is not None  # checked before
        name = fold.shift.leaf
        leaf = np.asarray(changed.get(name, arrays[name]), np.float64)
        changed[name] = fold.shift.along(shift, leaf.ndim) + leaf
    return {name: jnp.asarray(leaf, arrays[name].dtype) for name, leaf in changed.items()}


def _units(values: np.ndarray, units: tuple[int, ...]) -> np.ndarray:
    """The units of an array that is constant along all its other axes."""
    return values[tuple(slice(None) if axis in units else 0 for axis in range(values.ndim))]
