"""The wsa-jax command as a user meets it."""

import json

import pytest

from wsa_jax.cli import main


def test_demo_prints_tables_and_paths_and_keeps_every_number(tmp_path, capsys):
    main(["demo", "--rounds", "2", "--seeds", "1", "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "FedAvg+WSA" in printed
    assert str(tmp_path / "out" / "demo.json") in printed
    numbers = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [len(run) for run in numbers["federated"]["FedAvg"]] == [2]
    plain, wsa = (numbers["interpolation"][name][0] for name in ("plain", "WSA"))
    assert plain["t"] == wsa["t"]
    assert len(plain["loss"]) == 25
    # Held to one target, the two models' scopes are nearer to one another.
    assert sum(wsa["scope_divergence"]) < sum(plain["scope_divergence"])
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")


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
