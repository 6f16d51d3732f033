"""One command runs every script by its name, refuses what it cannot run, and counts the record."""

import ast
import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import registry
from benchmarks.record import failure, texts
from benchmarks.record.ledger import RESULTS, ROOT
from benchmarks.refused import RefusedError
from benchmarks.registry import EXPERIMENTS, TIMINGS, TOOLS, full_name, script

GROUPS = (EXPERIMENTS, TIMINGS, TOOLS)
SCRIPTS = [(name, group) for group in GROUPS for name in group]


@pytest.mark.parametrize(("name", "group"), SCRIPTS, ids=[name for name, _ in SCRIPTS])
def test_every_script_has_its_name_and_says_what_it_is(name, group):
    found = script(name, group)
    assert found.name == name
    first, blank = found.description.splitlines()[:2]
    assert first[-1] in ".?"
    assert not blank
    called = re.findall(r"^    python -m benchmarks (?:speed )?([\w-]+)", found.description, re.M)
    assert name in [full_name(given, group) for given in called]


def test_every_experiment_is_registered():
    scripts = {
        f"{path.parent.name}.{path.stem}"
        for room in ("federated", "merging", "report", "speed")
        for path in (ROOT / room).glob("*.py")
        if re.search(r"^SCRIPT = ", path.read_text(), re.M)
    }
    assert scripts == {module for group in GROUPS for module in group.values()}


@pytest.mark.parametrize("module", [registry, failure, texts])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["zz"], "zz is unknown; give one of federated, "),
        (["fig1"], "fig1 begins fig10_windows, "),
        (["speed"], "a name is missing; give one of client_step, "),
        (["speed", "table2"], "table2 is unknown; give one of client_step, "),
        (["import-rows", "absent.jsonl"], "absent.jsonl is no file"),
        (["fig7", "--seed", "0", "1"], "--seed 0 1 are 2 seeds"),
        (["speed", "path", "--rounds", "0"], "--rounds 0: give at least 1"),
        (["fig6", "--epoch", "3"], "--epoch 3 is unknown; give one of --help, --preset, "),
        (["fig6", "--pre-set", "cpu"], "--pre-set cpu is unknown; give --preset"),
        (["--presets", "cpu"], "--presets cpu is unknown; give --preset"),
        (["import-rows"], "file is missing; python -m benchmarks import-rows --help tells"),
    ],
)
def test_what_cannot_run_is_told_in_one_line_with_status_2(arguments, complaint, capsys):
    with pytest.raises(RefusedError) as refusal:
        command.main(arguments)
    assert refusal.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(complaint)


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "script", lambda *_: interrupt)
    with pytest.raises(SystemExit) as ended:
        command.main(["table2"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == (
        "interrupted; what is recorded stays: start again to resume\n"
    )


def test_a_reader_that_has_gone_is_told_nothing(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(command, "script", lambda *_: lambda _: print("a row"))
        with pytest.raises(SystemExit) as ended:
            command.main(["table2"])
    assert ended.value.code == 141
    assert capsys.readouterr().err == ""


def test_the_list_counts_the_cells_on_record(capsys):
    before = {path.name: path.stat().st_mtime_ns for path in RESULTS.iterdir()}
    command.main([])
    output = capsys.readouterr().out
    for group in GROUPS:
        assert all(f"\n  {name} " in output for name in group)
    cells = json.loads(output.splitlines()[-1])["cells"]
    assert cells.keys() == EXPERIMENTS.keys()
    assert all(0 <= state["recorded"] <= state["asked"] for state in cells.values())
    # Of merged models everything that the record's verdicts rest on is there.
    assert cells["np_merge_table"] == {"recorded": 64, "asked": 64, "more": False}
    assert {path.name: path.stat().st_mtime_ns for path in RESULTS.iterdir()} == before


def test_the_record_knows_no_experiment():
    for path in (ROOT / "record").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
                assert node.module.split(".")[1] in ("record", "refused"), path


def test_the_peers_part_needs_the_standard_library_and_numpy_alone():
    # Peers import it in environments that have neither JAX nor tyro.
    code = (
        "import sys; import benchmarks.speed.peers.turns; "
        "print({name.split('.')[0] for name in sys.modules} & {'jax', 'tyro', 'rich', 'wsa_jax'})"
    )
    root = Path(ROOT).parent
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"
