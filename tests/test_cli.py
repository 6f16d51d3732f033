"""The wsa-jax command as a user meets it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wsa_jax
from wsa_jax.cli import main
from wsa_jax.demo import DemoSettings, demo_steps, run_demo

ROOT = Path(__file__).resolve().parent.parent


SHORT_DEMO = ["demo", "--seeds", "1", "--steps", "60", "--examples", "50"]


def test_demo_tells_its_story_and_keeps_every_number(tmp_path, capsys):
    main([*SHORT_DEMO, "--output", str(tmp_path / "out")])
    printed = " ".join(capsys.readouterr().out.split())
    for said in ("their average, matched", "NP Merge", "docs/explanations/choose.md"):
        assert said in printed
    assert str(tmp_path / "out" / "demo.json") in printed
    numbers = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [group["units"] for group in numbers["spec"]] == [64, 64, 64]
    (plain,), (held,) = numbers["plain"], numbers["held"]
    # Matching changes neither end of the path; held to one target, the scopes are nearer.
    for place in (0, -1):
        assert plain["matched"]["loss"][place] == pytest.approx(
            plain["as trained"]["loss"][place], rel=1e-4
        )
    assert held["scope_divergence"] < plain["scope_divergence"]
    # What the sentence says of the barrier is what the numbers say.
    lower = held["as trained"]["barrier"] < plain["as trained"]["barrier"]
    assert ("as trained is lower for it" in printed) is lower
    (merges,) = numbers["specialists"]
    assert list(merges)[-1] == "NP Merge"
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["demo.json", "demo.png"]


def test_an_interrupted_demo_goes_on_where_it_was(tmp_path):
    settings = DemoSettings(output=tmp_path, seeds=1, steps=60, examples=50)
    told = []

    def advance(what):
        told.append(what)
        if len(told) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(settings, advance)
    (kept,) = tmp_path.glob(".unfinished-*/plain/checkpoints/60")
    seen, made = [], kept.stat().st_mtime_ns

    def look(what):
        seen.append(kept.stat().st_mtime_ns)
        told.append(what)

    run_demo(settings, look)
    # The first run was found, not run again; all steps are told of.
    assert set(seen) == {made}
    assert len(told) == 1 + demo_steps(settings)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_one_line_and_status_130(tmp_path):
    program = "from wsa_jax.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *SHORT_DEMO, "--output", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".unfinished-*/plain/checkpoints/60")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert error.startswith("wsa-jax: interrupted")
    assert error.endswith("; start again to resume\n")
    assert error.count("\n") == 1


def test_partition_prints_a_table_and_draws_it(tmp_path, capsys):
    main(["partition", "--clients", "3", "--output", str(tmp_path / "p.png")])
    assert "client" in capsys.readouterr().out
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["partition", "--dataset", "cifar11"], "cifar11"),
        (["partition", "--alpha", "0"], "alpha"),
        (["partition", "--clients", "5000"], "5000"),
        (["demo", "--strength", "-1"], "strength"),
        (["demo", "--seeds", "0"], "seeds"),
        (["partition", "--dataset", "cifar10", "--data-dir", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_that_names_it(arguments, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert error.startswith("wsa-jax: error:")
    assert named in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("merge a b", "--output is missing; for example wsa-jax merge a.safetensors"),
        ("match a", "second, --output are missing; for example wsa-jax match a.safetensors"),
        ("merge a b --ouput c", "--ouput c is unknown; give --output"),
        ("merge a b -o c --dry-runs --keep 1", "--dry-runs is unknown; give --dry-run"),
        ("demo --epochs=3", "--epochs=3 is unknown; give one of --help, --output, "),
        ("match a b c -o d", "c is one argument too many; for example wsa-jax match"),
        ("demo --seeds few", "--seeds: invalid literal for int() with base 10: 'few'"),
        ("merge a b -o c --keep all", "--keep 'all' cannot be read; give a number"),
        ("merge a b -o c --weights 1 b", "--weights '1', 'b' cannot be read; --help tells"),
        ("partition --kind skewed", "invalid choice 'skewed' for argument '--kind'. Expected one"),
        ("partition --clients", "Missing value for argument '--clients'"),
    ],
)
def test_arguments_that_cannot_be_read_are_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"wsa-jax: error: {said}")


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"wsa-jax {wsa_jax.__version__}\n"


class TestOutput:
    @pytest.fixture
    def no_work(self, monkeypatch):
        def work(*_, **__):
            raise AssertionError("the output was not checked before the work")

        monkeypatch.setattr("wsa_jax.demo.run_demo", work)
        monkeypatch.setattr("wsa_jax.data.load_dataset", work)

    @pytest.mark.parametrize("command", ["demo", "partition"])
    def test_a_place_that_cannot_be_written_is_refused_before_any_work(
        self, command, no_work, tmp_path, capsys
    ):
        file = tmp_path / "file"
        file.write_text("kept")
        figure = "" if command == "demo" else "/fig.png"
        long = tmp_path / ("n" * 300)
        for place, named in (
            (f"{file}{figure}", f"{file} is a file, not a folder"),
            (f"{file}/inside{figure}", f"cannot make the folder {file}/inside"),
            (f"{long}{figure}", "cannot make the folder"),
            (f"/proc/none{figure}", "cannot make the folder /proc/none"),
        ):
            with pytest.raises(SystemExit) as stopped:
                main([command, "--output", place])
            assert stopped.value.code == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert named in line
        assert file.read_text() == "kept"

    def test_a_figure_that_cannot_be_drawn_is_refused_before_any_work(
        self, no_work, tmp_path, capsys
    ):
        (tmp_path / "folder.png").mkdir()
        for name, said in (("x.txt", "end it in one of"), ("folder.png", "is a folder")):
            with pytest.raises(SystemExit):
                main(["partition", "--output", str(tmp_path / name)])
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{name} is " in line
            assert said in line
        assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]

    def test_a_name_without_an_ending_is_printed_as_it_is_written(self, tmp_path, capsys):
        main(["partition", "--clients", "3", "--output", str(tmp_path / "new" / "fig")])
        written = tmp_path / "new" / "fig.png"
        assert capsys.readouterr().out.splitlines()[-1] == f"figure   {written}"
        assert [path.name for path in written.parent.iterdir()] == ["fig.png"]

    def test_an_interrupted_demo_is_one_line(self, monkeypatch, tmp_path, capsys):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("wsa_jax.demo.run_demo", interrupted)
        with pytest.raises(SystemExit) as stopped:
            main(["demo", "--output", str(tmp_path)])
        assert stopped.value.code == 130
        assert capsys.readouterr().err == "wsa-jax: interrupted; start again to resume\n"
