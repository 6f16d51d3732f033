"""What an extra installs is asked for in one line, and nothing else needs it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main as benchmarks_main
from wsa_jax import cli
from wsa_jax.data import load_dataset
from wsa_jax.extras import _OPTIONAL, MissingExtraError
from wsa_jax.federated import iid
from wsa_jax.federated.plots import partition_heatmap
from wsa_jax.progress import progress_bar
from wsa_jax.training import equinox_task

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def draw():
    labels = np.arange(6) % 2
    return partition_heatmap(iid(labels, clients=2, seed=0), labels)


def show_bar():
    with progress_bar(True, 1) as advance:
        advance()


@pytest.mark.parametrize(
    ("module", "call", "message"),
    [
        ("matplotlib", draw, "a figure needs matplotlib, which is not installed; run pip install"),
        ("rich", show_bar, "a progress bar needs rich, which is not installed; run pip install"),
        ("sklearn", lambda: load_dataset("digits"), "the data set 'digits' needs scikit-learn, "),
        (
            "equinox",
            lambda: equinox_task(len),
            "equinox_task needs equinox, which is not installed",
        ),
    ],
)
def test_a_missing_extra_is_one_line_with_the_way_out(module, call, message, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # what Python itself does for a blocked import
    with pytest.raises(MissingExtraError) as error:
        call()
    assert str(error.value).startswith(message)
    assert f"the extra {_OPTIONAL[module].extra!r} of wsa-jax" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("module", "said"), [("tyro", "the command"), ("rich", "this command")])
def test_the_command_says_what_it_lacks(module, said, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wsa-jax: error: {said}")


@pytest.mark.parametrize("module", ["tyro", "matplotlib"])
def test_an_experiment_says_what_it_lacks(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit) as stopped:
        benchmarks_main(["table2"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m benchmarks table2_cross_silo needs {module}, which is not")


def test_every_optional_module_is_in_the_extra_that_is_named():
    extras = PROJECT["optional-dependencies"]
    for package, extra in _OPTIONAL.values():
        assert any(line.startswith(package) for line in extras[extra])
        assert not any(line.startswith(package) for line in PROJECT["dependencies"])


def test_the_library_imports_and_merges_without_any_extra():
    code = f"""
import sys
import flax.linen, flax.nnx  # which show tables by rich
for module in {sorted(_OPTIONAL)}:
    sys.modules[module] = None
import wsa_jax, wsa_jax.data, wsa_jax.models, wsa_jax.training, wsa_jax.federated, wsa_jax.merging
from wsa_jax import demo, plots, cli
print(wsa_jax.merging.average([{{"w": 1.0}}, {{"w": 1.0}}])["w"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr
