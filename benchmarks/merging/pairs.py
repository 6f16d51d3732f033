"""Pairs of trained models: aligned, interpolated and measured."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from benchmarks.merging.bench import Bench
from benchmarks.merging.model_cell import (
    ModelCell,
    Trained,
    cell_info,
    cell_task,
    model_data,
)
from benchmarks.record.ledger import cell_id
from benchmarks.record.statistics import Row
from wsa_jax.files import flatten, unflatten
from wsa_jax.merging import (
    AxisSpec,
    Evidence,
    Model,
    accuracy_barrier,
    align_models,
    interpolate_path,
    loss_barrier,
    permute_units,
    rescale,
    scale_units,
    trace_spec,
    weight_matching,
)
from wsa_jax.scope.scope import scope_divergence, weight_scope
from wsa_jax.training import Task

Align = Literal[
    "none",
    "weight",
    "rescale+weight",
    "rescale",
    "equal stds",
    "activation transport",
    "weight transport",
]
SAMPLES = 1_000
"""Training examples that aligns by activations look at."""
Info = dict[str, Any]
"""What a method says of itself."""


@dataclass(frozen=True, kw_only=True)
class PathCell:
    """The line between a model and another one, aligned to it."""

    model: str
    """Label of the setting both models share."""
    first: str
    second: str
    """Their ids in the ledger of models."""
    align: Align = "none"
    points: int = 11
    examples: int = 0
    """Test examples evaluated; 0 is all."""
    seed: int = 0
    samples: int = 0
    """Training examples that an align by activations looked at."""


def pair_cells(cell: ModelCell, seed: int) -> list[ModelCell]:
    """The models of one seed: their own initial weights, data order and part of the data."""
    return [
        dataclasses.replace(cell, seed=cell.parts * seed + part, part=part)
        for part in range(cell.parts)
    ]


def apply_fn(cell: ModelCell) -> Callable[[PyTree, Array], Array]:
    """``(variables, images) -> logits`` in evaluation mode, on uint8 images."""
    logits = cell_task(cell).logits
    assert logits is not None

    def apply(tree: PyTree, images: Array) -> Array:
        return logits(*Model.of(tree), images)

    return apply


def model_spec(cell: ModelCell, tree: PyTree) -> AxisSpec:
    """Which axes of a cell's variables move together, traced."""
    shape = (2, *cell_info(cell).image_shape)
    return trace_spec(apply_fn(cell), tree, jax.ShapeDtypeStruct(shape, jnp.uint8))


def aligned(
    cell: ModelCell,
    first: PyTree,
    second: PyTree,
    align: Align,
    seed: int,
    inputs: np.ndarray | None = None,
) -> tuple[PyTree, Info]:
    """The second model moved towards the first, and what the align says of itself."""
    spec, key, info = model_spec(cell, first), jax.random.key(seed), Info()
    if "rescale" in align:
        rescaling = rescale(spec, first, second)
        second = scale_units(spec, second, rescaling.scales)
        info |= plain(rescaling.info)
    if align == "equal stds":
        second, info["temperature"] = with_equal_stds(cell, first, second)
    if "weight" in align:
        # One start, the published one, as on record.
        matching = weight_matching(key, spec, first, second, restarts=1)
        second = permute_units(spec, second, matching.permutations)
        info |= plain(matching.info)
    if "transport" in align:
        models = Model.of(first), Model.of(second)
        evidence = Evidence(cell_task(cell), inputs)
        second = align_models(key, spec, models, evidence, align)[1].variables
    return second, info


def with_equal_stds(cell: ModelCell, first: PyTree, second: PyTree) -> tuple[PyTree, float]:
    """The second model with the std of each layer made the first's, and what its logits rise by.

    For ReLU networks without norms in which every layer feeds the next one: W_l becomes c_l W_l
    and b_l becomes (c_1 ... c_l) b_l, so the logits are multiplied by c_1 ... c_L > 0 and all
    predictions stay. `rescale` keeps the logits, and so the product of the stds, as they are.
    """
    if cell.model == "resnet" or cell.norm != "none":
        raise ValueError(f"{cell.label}: stds are made equal in plain networks without norms only")
    scopes = [weight_scope(tree["params"]) for tree in (first, second)]
    leaves, product = dict(flatten(second["params"])), 1.0
    for name, std, own in zip(scopes[0].names, scopes[0].std, scopes[1].std, strict=True):
        scale = float(std) / float(own)
        product *= scale
        kernel = name.replace("/", ".")
        bias = kernel.removesuffix("kernel") + "bias"
        leaves |= {kernel: leaves[kernel] * scale, bias: leaves[bias] * product}
    return second | {"params": unflatten(leaves)}, product


def path_row(
    bench: Bench,
    cell: ModelCell,
    seed: int,
    align: Align,
    *,
    points: int,
    examples: int,
    other: ModelCell | None = None,
) -> Row | None:
    """Train or read the pair, align, and evaluate the line; one ledger row.

    Where ``other`` is given, the second model is trained in its setting.
    """
    pair = [pair_cells(cell, seed)[0], pair_cells(other or cell, seed)[1]]
    config = PathCell(
        model=cell.label,
        first=cell_id(pair[0]),
        second=cell_id(pair[1]),
        align=align,
        points=points,
        examples=examples,
        seed=seed,
        samples=SAMPLES if align == "activation transport" else 0,
    )

    def make(first: Trained, second: Trained) -> Row:
        data = model_data(pair[0], bench.data_dir)
        anchor = first.variables
        inputs = data.train[0][: config.samples]
        moved, info = aligned(cell, anchor, second.variables, align, seed, inputs)
        scopes = [jax.jit(weight_scope)(tree["params"]) for tree in (anchor, moved)]
        return {
            "divergence": np.asarray(scope_divergence(scopes[1], scopes[0])).tolist(),
            "layers": list(scopes[0].names),
            "info": info,
            "validation": measured_path(cell, anchor, moved, data.validation, points),
            "test": measured_path(cell, anchor, moved, data.test, points, examples),
        }

    return bench.row(config, make, pair)


def barriers(rows: Iterable[Row | None], part: str = "test") -> list[float]:
    """Eq. 7 of every row there is, but for lines that are not finite and models that diverged."""
    found = (row.get(part, {}).get("barrier") for row in rows if row is not None)
    return [barrier for barrier in found if barrier is not None]


def measured_path(
    cell: ModelCell,
    first: PyTree,
    second: PyTree,
    part: tuple[np.ndarray, np.ndarray],
    points: int,
    examples: int = 0,
) -> Row:
    """The line between two models of a cell, on the first examples of a part."""
    images, labels = (array[: examples or None] for array in part)
    return measured_line(
        cell_task(cell), (Model.of(first), Model.of(second)), images, labels, points
    )


def measured_line(
    task: Task,
    models: tuple[Model, Model],
    inputs: np.ndarray,
    labels: np.ndarray,
    points: int = 11,
) -> Row:
    """Loss and accuracy on the line between two models, and its barriers."""
    first, second = models
    path = interpolate_path(
        task,
        first.params,
        second.params,
        inputs,
        labels,
        model_state=first.model_state,
        second_state=second.model_state,
        num_points=points,
    )
    return {
        "t": plain(path.t),
        "loss": plain(path.loss),
        "accuracy": plain(path.accuracy),
        "barrier": float(loss_barrier(path)),
        "barrier_endpoints": float(loss_barrier(path, definition="endpoints")),
        "accuracy_barrier": float(accuracy_barrier(path)),
    }


def plain(value: Any) -> Any:
    """Arrays as lists of a few digits, for JSON."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "dtype"):
        return plain(np.asarray(value).tolist())
    return float(f"{value:.6g}") if isinstance(value, float) else value
