"""RegMean: the layers whose outputs come closest to those of all models, by least squares."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from wsa_jax import checks
from wsa_jax.door import door, shown
from wsa_jax.leaves import is_inexact, key_path
from wsa_jax.merging.result import MergeResult, NotAdmittedError, check_real
from wsa_jax.merging.symmetry.affine import Linear, find_linear
from wsa_jax.merging.symmetry.taps import Evaluation
from wsa_jax.merging.symmetry.tracing.trace_spec import flatten, trace
from wsa_jax.tree import as_list, stack, weighted_mean
from wsa_jax.types import Inputs, JaxprEqn, Leaf


class Gram(NamedTuple):
    """Second moments of what a kernel is multiplied with.

    Attributes:
      matrix: the mean of x xᵀ over its inputs x, ``[inputs, inputs]``, float64.
      axes: the kernel's axes that the inputs are, in their order.
    """

    matrix: np.ndarray
    axes: tuple[int, ...]


_Use = tuple[str, tuple[int, ...]]  # a kernel, and which of its axes are summed over

# Of the mean of the diagonal: directions that no example shows get the average of the models.
_RIDGE, _TINY = 1e-6, 1e-30


@door
def gram_matrices(
    apply_fn: Callable[..., PyTree], variables: PyTree, inputs: Inputs, *, batch_size: int = 500
) -> dict[str, Gram]:
    r"""Read the second moments of what a model's linear layers get, :math:`G = \mathrm{E}[x x^T]`.

    Args:
      apply_fn: any JAX function ``apply_fn(variables, inputs)`` in evaluation mode; make it once.
      variables: a model.
      inputs: the examples that it was trained on or others like them, ``[examples, ...]`` or a
        pytree of such arrays; no labels are needed.
      batch_size: examples at once.

    Returns:
      For each dense layer and each convolution its Gram matrix and the kernel's axes that it is
      over, by key path of the kernel. Kernels used more than once have the mean over all uses; one
      whose uses sum over different axes (as w and as its transpose) is left out, and so are layers
      of complex numbers.

    Raises:
      NotAdmittedError: a model without such layers.
      ValueError: no examples, or a model that holds NaN.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
    >>> gram = gram_matrices(lambda params, x: x @ params["w"], {"w": jnp.ones((2, 1))}, x)["w"]
    >>> gram.matrix.tolist(), gram.axes
    ([[5.0, 1.0], [1.0, 2.0]], (0,))

    Source: Jin et al., "Dataless Knowledge Fusion by Merging Weights of Language Models", ICLR
    2023; convolutions, as linear maps of patches, are ours.
    """
    checks.count("batch_size", batch_size)
    checks.weights(variables, "the model")
    leaves = jax.tree.leaves(inputs)
    count = len(leaves[0]) if leaves and np.ndim(leaves[0]) else 0
    if not count:
        raise ValueError("no calibration samples to read inputs of layers from; give some hundreds")
    sums: dict[_Use, Any] = {}
    rows: dict[_Use, float] = {}
    for chosen in np.array_split(np.arange(count), -(-count // batch_size)):
        batch = jax.tree.map(lambda leaf, chosen=chosen: jnp.asarray(leaf[chosen]), inputs)
        for use, (products, number) in _batch_grams(apply_fn)(variables, batch).items():
            sums[use] = sums.get(use, 0.0) + np.asarray(products, np.float64)
            rows[use] = rows.get(use, 0.0) + float(number)
    leaves_used = [name for name, _ in sums]
    once = [use for use in sums if leaves_used.count(use[0]) == 1]
    if not once:
        raise NotAdmittedError(
            "the model has no dense layer and no convolution of real numbers, outside of loops and "
            "groups, whose kernel is used in one way, so RegMean has nothing to solve for; "
            "use average"
        )
    return {use[0]: Gram(sums[use] / rows[use], use[1]) for use in once}


@door
def reg_mean(
    models: PyTree,
    grams: Sequence[Mapping[str, Gram]],
    *,
    shrink: float | int = 0.9,
    model_state: PyTree = None,
) -> MergeResult:
    r"""Merge linear layers by the least squares of their outputs, and average everything else.

    .. math:: W = \Bigl(\sum_m \tilde G_m\Bigr)^{-1} \sum_m \tilde G_m W_m, \qquad
              \tilde G = \alpha G + (1 - \alpha) \operatorname{diag} G

    which minimises :math:`\sum_m \mathrm{E} \|x_m^T (W - W_m)\|^2` for :math:`\alpha = 1`.

    Args:
      models: models in correspondence, a list or a stack ``[models, ...]``.
      grams: each one's `gram_matrices`, of the parameters' key paths.
      shrink: :math:`\alpha` in [0, 1], what is left off the diagonal; the paper's value.
      model_state: non-parameter collections of the result, passed on.

    Returns:
      The merged model, in the models' dtypes; ``info["averaged"]`` names the leaves that no Gram
      matrix belongs to (biases, norms, embeddings), which are plain averages.

    Guarantees: solved in float64; the average where all Gram matrices are equal, and where all
    models agree. Inputs that are always 0 get the average.

    Raises:
      ValueError: no models, models that differ in a leaf or hold NaN, a number of Gram matrices
        that is not theirs, matrices of other kernels or another width, or a ``shrink`` outside
        [0, 1].

    >>> models = {"w": jnp.array([[1.0], [0.0]])}, {"w": jnp.array([[3.0], [4.0]])}
    >>> grams = [{"w": Gram(np.diag(squares), (0,))} for squares in ([3.0, 0.0], [1.0, 2.0])]
    >>> [round(x, 3) for x in reg_mean(models, grams).params["w"][:, 0].tolist()]
    [1.5, 4.0]

    Source: Jin et al., ICLR 2023, its closed form and its scaling of elements off the diagonal.
    """
    models = as_list(models)
    if not models or len(models) != len(grams):
        raise ValueError(f"{len(models)} models and {len(grams)} Gram matrices; give one per model")
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink {shrink} is not in [0, 1]; 0.9 is the default")
    checks.models(models)
    _check_grams(models[0], grams)
    averaged: list[str] = []
    mean = weighted_mean(stack(models), np.ones(len(models)))

    def merge(path: tuple, plain: Leaf, *leaves: Leaf) -> Leaf:
        name = key_path(path)
        if name not in grams[0]:
            averaged.extend([name] if is_inexact(plain) else [])
            return plain
        check_real({name: plain}, "RegMean")
        return _solve([gram[name] for gram in grams], leaves, float(shrink))

    params = jax.tree_util.tree_map_with_path(merge, mean, *models)
    state = {} if model_state is None else model_state
    return MergeResult(params, state, {"averaged": averaged})


def _solve(grams: Sequence[Gram], leaves: Sequence[Any], shrink: float) -> Array:
    """Least squares for one kernel."""
    inputs = grams[0].axes
    order = (*inputs, *(axis for axis in range(np.ndim(leaves[0])) if axis not in inputs))
    matrices = [np.asarray(gram.matrix, np.float64) for gram in grams]
    # One ridge for all models, so that what no example shows is averaged with equal weights.
    ridge = _RIDGE * max(float(np.mean([np.diag(matrix) for matrix in matrices])), _TINY)
    left, right = np.float64(0.0), np.float64(0.0)
    for matrix, leaf in zip(matrices, leaves, strict=True):
        matrix = shrink * matrix + np.diag((1 - shrink) * np.diag(matrix) + ridge)
        rows = np.asarray(leaf, np.float64).transpose(order).reshape(len(matrix), -1)
        left, right = left + matrix, right + matrix @ rows
    shape = [np.shape(leaves[0])[axis] for axis in order]
    solved = np.linalg.solve(left, right).reshape(shape).transpose(np.argsort(order))
    return jnp.asarray(solved, jnp.result_type(leaves[0]))


def _check_grams(params: PyTree, grams: Sequence[Mapping[str, Gram]]) -> None:
    shapes = {key_path(p): np.shape(v) for p, v in jax.tree_util.tree_leaves_with_path(params)}
    for index, own in enumerate(grams):
        if not isinstance(own, Mapping):
            raise ValueError(f"grams[{index}] is {shown(own)}; give gram_matrices of each model")
        for name in [*own, *grams[0]]:
            if name not in shapes or name not in own or name not in grams[0]:
                raise ValueError(
                    f"Gram matrix {name} of model {index + 1} belongs to no kernel of all models; "
                    "give gram_matrices of each, by the key paths of these parameters"
                )
        for name, gram in own.items():
            axes = [axis for axis in gram.axes if axis < len(shapes[name])]
            width = math.prod(shapes[name][axis] for axis in axes)
            if np.shape(gram.matrix) != (width, width):
                raise ValueError(
                    f"Gram matrix {name} of model {index + 1} has shape {np.shape(gram.matrix)} "
                    f"for {width} inputs of a kernel of shape {shapes[name]}; give that of a model "
                    "of this architecture"
                )


class _Layers(Evaluation):
    """Evaluate a function and keep the second moments of what its linear layers get."""

    def __init__(self, layers: Sequence[Linear]) -> None:
        super().__init__(set())
        self.layers = {layer.position: layer for layer in layers}
        self.products: dict[_Use, tuple[Array, float]] = {}

    def apply(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        """The arrays that an equation returns; what goes into a layer is looked at before."""
        layer = None if self.depth else self.layers.get(self.position)
        if layer is not None and not any(jnp.iscomplexobj(value) for value in inputs):
            rows = _rows_of(eqn, inputs[layer.operand], layer)
            products = jnp.matmul(rows.T, rows, precision=jax.lax.Precision.HIGHEST)
            use = (layer.leaf, layer.inputs)
            before = self.products.get(use, (0.0, 0.0))
            self.products[use] = (before[0] + products, before[1] + float(len(rows)))
        return super().apply(eqn, inputs)


def _rows_of(eqn: JaxprEqn, data: Array, layer: Linear) -> Array:
    """What a layer's kernel is multiplied with, ``[samples, inputs]``: vectors, or patches."""
    data = data.astype(jnp.float32)
    if not layer.convolution:
        last = range(-len(layer.summed), 0)
        data = jnp.moveaxis(data, layer.summed, last)
        return data.reshape(-1, math.prod(data.shape[data.ndim - len(layer.summed) :]))
    given = eqn.params
    numbers = given["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    # Channels last in the result, the slowest of each patch first: as `Linear.inputs` says.
    patches = jax.lax.conv_general_dilated_patches(
        jnp.transpose(data, numbers.lhs_spec),
        [kernel[axis] for axis in numbers.rhs_spec[2:]],
        given["window_strides"],
        given["padding"],
        lhs_dilation=given["lhs_dilation"],
        rhs_dilation=given["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )
    return jnp.moveaxis(patches, 1, -1).reshape(-1, patches.shape[1])


@functools.lru_cache(maxsize=16)
def _batch_grams(apply_fn: Callable[..., PyTree]) -> Callable[..., dict[_Use, tuple[Array, Any]]]:
    @jax.jit
    def run(variables: PyTree, batch: Inputs) -> dict[_Use, tuple[Array, Any]]:
        traced = trace(apply_fn, variables, batch)
        layers = _Layers(find_linear(traced))
        layers.run(traced.jaxpr, flatten(apply_fn, variables, (batch,))[1])
        return layers.products

    return run
