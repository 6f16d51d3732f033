"""Every script by name, and the module that holds it.

Modules are imported when they are asked for: a timing must not wait for what it does not measure.
"""

import importlib
from collections.abc import Iterable, Mapping

from benchmarks.refused import RefusedError
from benchmarks.script import Script

EXPERIMENTS: Mapping[str, str] = {
    "federated": "federated.grid",
    "standard_problem": "federated.standard_problem",
    "table2_cross_silo": "federated.table2_cross_silo",
    "table3_cross_device": "federated.table3_cross_device",
    "fig9_vgg8": "federated.fig9_vgg8",
    "fig10_windows": "federated.fig10_windows",
    "fig11_scope_trajectories": "federated.fig11_scope_trajectories",
    "fig12_predefined_targets": "federated.fig12_predefined_targets",
    "what_makes_the_gain": "federated.what_makes_the_gain",
    "heterogeneous_clients": "federated.heterogeneous_clients",
    "gain_hypotheses": "federated.gain_hypotheses",
    "strength_sweep": "federated.strength_sweep",
    "extreme_noniid": "federated.extreme_noniid",
    "rounds_to_accuracy": "federated.rounds_to_accuracy",
    "best_against_best": "federated.best_against_best",
    "sanity_matching": "merging.sanity_matching",
    "fig1_optimizers": "merging.fig1_optimizers",
    "table1_conditions": "merging.table1_conditions",
    "fig3_gaussianity": "merging.fig3_gaussianity",
    "fig4_scaling": "merging.fig4_scaling",
    "fig5_otfusion": "merging.fig5_otfusion",
    "fig6_rebasin": "merging.fig6_rebasin",
    "fig7_landscape": "merging.fig7_landscape",
    "fig8_vit": "merging.fig8_vit",
    "graphs": "merging.graphs",
    "pretrained": "merging.pretrained",
    "minilm": "merging.minilm",
    "np_merge_table": "merging.np_merge_table",
    "np_merge_data": "merging.np_merge_data",
    "np_merge_many": "merging.np_merge_many",
    "merging_grid": "merging.merging_grid",
    "repair_anchors": "merging.repair_anchors",
    "coefficients": "merging.coefficients",
    "align_settings": "merging.align_settings",
    "np_merge_federated": "federated.np_merge_federated",
}
"""Tables and figures, in the order of RESULTS.md."""

TIMINGS: Mapping[str, str] = {
    "client_step": "speed.client_step",
    "federated_round": "speed.federated_round",
    "matching": "speed.matching",
    "np_merge": "speed.np_merge",
    "path": "speed.path",
    "assignment": "speed.assignment",
    "import_time": "speed.import_time",
    "files": "speed.files",
    "many_runs": "speed.many_runs",
    "scale_model": "speed.scale_model",
}

TOOLS: Mapping[str, str] = {
    "report": "report.pages",
    "first_record": "federated.first_record",
    "mechanism": "federated.mechanism",
    "on_the_way": "federated.on_the_way",
    "story": "report.story",
    "import-rows": "federated.import_rows",
}


def full_name(given: str, names: Iterable[str]) -> str:
    """The one of the names that is meant: itself, or the only one that begins like that.

    >>> full_name("table2", EXPERIMENTS), full_name("import_rows", TOOLS)
    ('table2_cross_silo', 'import-rows')
    """
    spelled = {name.replace("-", "_"): name for name in names}
    wanted = given.replace("-", "_")
    if wanted in spelled:
        return spelled[wanted]
    found = [name for plain, name in spelled.items() if wanted and plain.startswith(wanted)]
    if len(found) > 1:
        raise RefusedError(f"{given} begins {', '.join(found)}; give more of the one you mean")
    if not found:
        unknown = f"{given} is unknown" if given else "a name is missing"
        raise RefusedError(f"{unknown}; give one of {', '.join(spelled.values())}")
    return found[0]


def script(name: str, modules: Mapping[str, str] = EXPERIMENTS) -> Script:
    """The script of a full name; refused in one line where a library that it imports is missing."""
    from wsa_jax.extras import MissingExtraError, require

    try:
        for needed in ("tyro",) if modules is TIMINGS else ("tyro", "matplotlib"):
            require(needed, f"python -m benchmarks {name}")
    except MissingExtraError as error:
        raise RefusedError(str(error)) from None
    return importlib.import_module(f"benchmarks.{modules[name]}").SCRIPT
