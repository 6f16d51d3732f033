"""Ready figures draw the numbers that rows hold, and name what rows lack."""

import numpy as np
import pytest

from wsa_jax.plots import PALETTE, plot_history, plot_merge_table


def history(offset):
    return [
        {"round": 1, "layers": ["a", "b"], "client_divergence": [1.0 + offset, 2.0]},
        {"round": 2, "layers": ["a", "b"], "client_divergence": [3.0, 4.0], "test_accuracy": 0.5},
    ]


def lines(figure):
    return {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}


def test_a_number_of_each_layer_is_a_line_for_each_layer():
    found = lines(plot_history(history(0), "client_divergence"))
    assert found == {"a": [[1, 1], [2, 3]], "b": [[1, 2], [2, 4]]}


def test_labelled_histories_are_sums_over_layers_and_means_over_seeds():
    figure = plot_history({"one": history(0), "two": [history(0), history(2)]}, "client_divergence")
    assert lines(figure) == {"one": [[1, 3], [2, 7]], "two": [[1, 4], [2, 7]]}


def test_rounds_without_the_value_are_left_out():
    assert lines(plot_history(history(0))) == {"test_accuracy": [[2, 0.5]]}


def test_bodies_under_their_heads_are_bars_of_their_own():
    rows = [{"method": "model 2", "model": 2, "loss": 0.9}]
    rows += [{"method": "TIES", "model": model, "loss": 0.1 * model} for model in (1, 2)]
    axes = plot_merge_table(rows, "loss").axes[0]
    named = [text.get_text() for text in axes.get_yticklabels()]
    assert named == ["model 2", "TIES, head 1", "TIES, head 2"]


def test_bars_are_the_table_and_references_are_grey():
    rows = [
        {"method": "model 1", "accuracy": 0.9},
        {"method": "average", "accuracy": 0.5},
        {"method": "rescaling", "accuracy": None},
        {"method": "ensemble", "accuracy": 0.95},
    ]
    bars = plot_merge_table(rows).axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.9, 0.5, 0.95]
    blue = tuple(int(PALETTE[0][i : i + 2], 16) / 255 for i in (1, 3, 5))
    is_blue = [np.allclose(bar.get_facecolor()[:3], blue) for bar in bars]
    assert is_blue == [False, True, False]


@pytest.mark.parametrize("draw", [plot_history, plot_merge_table])
def test_what_no_row_has_is_named(draw):
    with pytest.raises(ValueError, match="no row has 'speed'; they have round, layers"):
        draw(history(0), "speed")
    with pytest.raises(ValueError, match="no row has 'speed'; they have nothing"):
        draw([], "speed")
