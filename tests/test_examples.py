"""The notebooks run as they are committed, with the outputs that they show."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join(
        "".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_prints_what_it_shows(path, capsys):
    space = {"__name__": path.stem}
    for cell in cells(path):
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        exec(compile(source, path.name, "exec"), space)
        said, shown = capsys.readouterr().out, printed(cell)
        # Numbers differ by rounding between machines; what they belong to does not.
        words = [re.sub(r"[\d.+-]+(e[+-]?\d+)?", "#", text).split() for text in (said, shown)]
        assert words[0] == words[1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_committed_and_small(path):
    assert any(cell["outputs"] for cell in cells(path))
    assert not any(
        output["output_type"] == "error" for cell in cells(path) for output in cell["outputs"]
    )
    assert path.stat().st_size < 150_000


def test_there_are_three():
    assert len(NOTEBOOKS) == 3
