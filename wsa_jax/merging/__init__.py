"""Model merging: specs of a model's symmetries, then align, combine, repair, evaluate."""

from wsa_jax.merging.align import (
    Matching,
    Rescaling,
    ScaledMatching,
    activation_matching,
    align,
    normalize_scales,
    rescale,
    rescale_and_match,
    straight_through,
    weight_matching,
    weight_matching_many,
)
from wsa_jax.merging.combine import (
    LearningSettings,
    LearningState,
    Strengths,
    average,
    diagonal_fisher,
    fine_tune,
    fisher_merge,
    labelled_examples,
    np_merge,
    np_merge_joint,
    np_merge_many,
    slerp,
    task_log_likelihood,
)
from wsa_jax.merging.evaluate import (
    LossPath,
    LossPlane,
    Path,
    accuracy_barrier,
    ensemble,
    interpolate_path,
    loss_barrier,
    loss_plane,
)
from wsa_jax.merging.methods import METHODS, Budget, Evidence, Model, Pipeline, align_models
from wsa_jax.merging.repair import reset_batch_norm
from wsa_jax.merging.result import MergeResult
from wsa_jax.merging.symmetry.equivalence import check_equivalence
from wsa_jax.merging.symmetry.explain import explain_spec
from wsa_jax.merging.symmetry.scaling import scale_layer
from wsa_jax.merging.symmetry.spec import AxisSpec, Group, Pinned, Tie, check_spec, hand_written
from wsa_jax.merging.symmetry.taps import taps
from wsa_jax.merging.symmetry.tracing import trace_spec
from wsa_jax.merging.symmetry.units import permute_units, scale_units
from wsa_jax.merging.table import merge_table

__all__ = [
    "METHODS",
    "AxisSpec",
    "Budget",
    "Evidence",
    "Group",
    "LearningSettings",
    "LearningState",
    "LossPath",
    "LossPlane",
    "Matching",
    "MergeResult",
    "Model",
    "Path",
    "Pinned",
    "Pipeline",
    "Rescaling",
    "ScaledMatching",
    "Strengths",
    "Tie",
    "accuracy_barrier",
    "activation_matching",
    "align",
    "align_models",
    "average",
    "check_equivalence",
    "check_spec",
    "diagonal_fisher",
    "ensemble",
    "explain_spec",
    "fine_tune",
    "fisher_merge",
    "hand_written",
    "interpolate_path",
    "labelled_examples",
    "loss_barrier",
    "loss_plane",
    "merge_table",
    "normalize_scales",
    "np_merge",
    "np_merge_joint",
    "np_merge_many",
    "permute_units",
    "rescale",
    "rescale_and_match",
    "reset_batch_norm",
    "scale_layer",
    "scale_units",
    "slerp",
    "straight_through",
    "taps",
    "task_log_likelihood",
    "trace_spec",
    "weight_matching",
    "weight_matching_many",
]
