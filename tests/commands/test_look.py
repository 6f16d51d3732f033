"""``wsa-jax scope``, ``match`` and ``inspect``."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from wsa_jax.cli import COMMANDS, main
from wsa_jax.commands.architectures import architecture
from wsa_jax.commands.scope import scopes
from wsa_jax.files import (
    ModelFileError,
    load_model,
    open_model,
    resnet_names,
    save_model,
    vgg_names,
)
from wsa_jax.merging import check_spec, permute_units
from wsa_jax.models import MLP, VGG, ResNet

RNG = np.random.default_rng(0)


def normal(shape, mean=0.0, std=1.0):
    return (mean + std * RNG.standard_normal(shape)).astype(np.float32)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {
        "a.weight": normal((40, 50)),
        "b.weight": normal((30, 50), std=0.1),
        "a.bias": normal(9),
    }
    second = {**first, "b.weight": normal((30, 50), 0.1, 0.3)}
    second["a.weight"] = RNG.uniform(-1, 1, (40, 50)).astype(np.float32)
    save_model("a.safetensors", first, metadata={"source": "a test"})
    save_model("b.npz", second)
    return first, second


def test_scopes_by_their_definition(files):
    rows = scopes([open_model("a.safetensors"), open_model("b.npz")])
    assert [row["layer"] for row in rows] == ["b.weight", "a.weight"]
    for row in rows:
        pair = [np.float64(model[row["layer"]]) for model in files]
        means, stds = [x.mean() for x in pair], [x.std() for x in pair]
        np.testing.assert_allclose(row["mean"], means, atol=1e-6)
        np.testing.assert_allclose(row["std"], stds, rtol=1e-5)
        ratio, shift = stds[1] / stds[0], (means[1] - means[0]) / stds[0]
        divergence = 0.5 * (ratio**2 + shift**2 - 1) - np.log(ratio)
        np.testing.assert_allclose(row["kl"], [0, divergence], atol=1e-5)
        gaps = [
            stats.kstest(x.ravel(), stats.norm(m, s).cdf).statistic
            for x, m, s in zip(pair, means, stds, strict=True)
        ]
        np.testing.assert_allclose(row["gap"], gaps, atol=1e-6)
    # Uniform numbers are farther from a Gaussian than Gaussian ones.
    assert rows[1]["gap"][1] > 2 * rows[1]["gap"][0]


def test_scope_prints_a_table_json_and_a_figure(files, capsys):
    main(["scope", "a.safetensors", "b.npz", "--plot", "scopes.png"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["layer", "weights", "mean"]
    assert [line.split()[0] for line in printed[1:3]] == ["b.weight", "a.weight"]
    assert printed[4].startswith("2: b.npz, mean KL from the first ")
    # Every column that the table has is explained below it.
    assert [line.split(":")[0] for line in printed[5:7]] == ["gap", "KL"]
    assert printed[7] == "the largest KL comes first"
    assert Path("scopes.png").read_bytes().startswith(b"\x89PNG")
    main(["scope", "a.safetensors", "--json", "--select", "all"])
    found = json.loads(capsys.readouterr().out)
    assert {row["layer"] for row in found["layers"]} == set(files[0])
    assert found["layers"][0]["kl"] == [0.0]


def test_inspect_prints_leaves_and_metadata(files, capsys):
    main(["inspect", "a.safetensors"])
    printed = capsys.readouterr().out
    assert "a.weight  40x50  float32" in printed
    assert "3 leaves, 3,509 numbers, 14.0 kB, safetensors" in printed
    assert "source: a test" in printed


def variables(module, image):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, *image)))
    return jax.tree.map(lambda leaf: normal(leaf.shape), shapes)


def resnet():
    module = ResNet(1, 4, (4, 6, 8), 3, norm="batch", shortcut="pad")
    return "resnet8", module, (32, 32, 3), resnet_names(module, head="linear")


def vgg():
    module = VGG(features=(3, 4, "M", 5), dense=(6,), num_classes=2, norm="batch")
    return "vgg", module, (4, 4, 3), vgg_names(module, side=4)


FEW = ["--restarts", "1"]


def mlp():
    return "mlp", MLP(features=(6, 5, 3)), (7,), None


def test_match_finds_a_planted_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, module, image, names = resnet()
    first = variables(module, image)
    save_model("a.safetensors", first, names=names)
    found = architecture(name, open_model("a.safetensors"))
    spec = found.spec(open_model("a.safetensors"))
    check_spec(spec, first)
    assert spec.groups
    orders = {group.name: RNG.permutation(group.size) for group in spec.groups}
    moved = jax.tree.map(np.asarray, permute_units(spec, first, orders))
    save_model("b.safetensors", moved, names=names, metadata={"who": "b"})
    main(["match", "a.safetensors", "b.safetensors", "-o", "c.npz", *FEW])
    printed = capsys.readouterr().out
    assert printed.startswith("resnet8: ")
    assert ", 0 after\n" in printed
    second = open_model("c.npz")
    assert second.metadata == {"who": "b"}
    for leaf, value in open_model("a.safetensors").items():
        np.testing.assert_array_equal(second[leaf], value)


def test_match_keeps_double_precision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, module, image, _ = mlp()
    first = jax.tree.map(lambda leaf: RNG.standard_normal(leaf.shape), variables(module, image))
    save_model("a.npz", first)
    spec = architecture("mlp", open_model("a.npz")).spec(open_model("a.npz"))
    orders = {group.name: RNG.permutation(group.size) for group in spec.groups}
    with jax.enable_x64(True):
        save_model("b.npz", jax.tree.map(np.asarray, permute_units(spec, first, orders)))
    main(["match", "a.npz", "b.npz", "-o", "c.npz", *FEW])
    second = open_model("c.npz")
    for leaf, value in open_model("a.npz").items():
        assert second[leaf].dtype == np.float64
        np.testing.assert_array_equal(second[leaf], value)


def test_architectures_are_read_off_either_s_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for network in (resnet, vgg):
        name, module, image, names = network()
        ours = variables(module, image)
        save_model("ours.npz", ours)
        theirs = names.to_theirs(ours) | {"bn1.num_batches_tracked": np.array(3)}
        if name == "vgg":
            del theirs["bn1.num_batches_tracked"]
        save_model("theirs.npz", theirs)
        specs = []
        for path in ("ours.npz", "theirs.npz"):
            file = open_model(path)
            found = architecture(name, file)
            loaded = found.load(file)
            assert jax.tree.all(jax.tree.map(np.array_equal, loaded, ours))
            back = found.stored(loaded, file)
            assert {k: v.tolist() for k, v in back.items()} == {
                k: v.tolist() for k, v in file.items()
            }
            specs.append(found.spec(file).canonical())
        assert specs[0] == specs[1]
    # Parameters alone, without their collection.
    _, module, image, _ = mlp()
    save_model("alone.npz", variables(module, image)["params"])
    file = open_model("alone.npz")
    found = architecture("mlp", file)
    assert set(found.stored(found.load(file), file)) == set(file)
    main(["inspect", "alone.npz", "--spec"])
    assert "2 groups; 0 axes are pinned" in capsys.readouterr().out


def test_other_architectures_are_refused(files, capsys):
    file = open_model("a.safetensors")
    for name, message in [
        ("resnet9", "architecture 'resnet9' is unknown; known are mlp, cnn, vgg, resnet "),
        ("resnet", "a.safetensors is no resnet: it lacks"),
        ("mlp20", "architecture 'mlp20' is unknown"),
        ("resnet20", "a.safetensors is no resnet20: it lacks 'Conv_0.kernel'"),
        ("vgg", "is no vgg: it lacks"),
        ("mlp", "is no mlp: it lacks"),
    ]:
        with pytest.raises(ModelFileError, match=message):
            architecture(name, file)
    # Two more blocks than the name says.
    _, module, image, names = resnet()
    theirs = names.to_theirs(variables(module, image))
    save_model("deeper.npz", {**theirs, "layer1.1.conv1.weight": np.ones((4, 4, 3, 3))})
    with pytest.raises(ModelFileError, match="no entry for layer1.1.conv1.weight"):
        architecture("resnet8", open_model("deeper.npz"))
    assert load_model("b.npz")["a"]["bias"].shape == (9,)


def test_help_shows_an_example_of_each(capsys):
    for arguments in (["--help"], []):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0
        printed = capsys.readouterr().out
        assert all(example in printed for example in COMMANDS.values())
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert f"wsa-jax {name} " in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main(["mrege"])
    assert exit_.value.code == 2
    assert "command mrege is unknown; give one of scope, merge" in capsys.readouterr().err


def test_refusals_of_scope(files, capsys):
    for arguments, message in [
        ([], "scope needs a file"),
        (["a.safetensors", "no.npz"], "there is no model at no.npz"),
        (["a.safetensors", "--plot", "no/such/figure.png"], "cannot write no/such/figure.png"),
        (["a.safetensors", "--plot", "figure.npz"], "plot figure.npz is no figure's name; end it"),
    ]:
        with pytest.raises(SystemExit) as exit_:
            main(["scope", *arguments])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err
    save_model("nan.npz", {"w": np.full((2, 2), np.nan)})
    with pytest.raises(SystemExit):
        main(["scope", "nan.npz"])
    assert "leaf w of nan.npz holds NaN or infinite values" in capsys.readouterr().err
    save_model("counts.npz", {"count": np.arange(3)})
    with pytest.raises(SystemExit):
        main(["scope", "counts.npz"])
    assert "counts.npz holds no weights" in capsys.readouterr().err
    save_model("vectors.npz", {"b": np.ones(3)})
    with pytest.raises(SystemExit):
        main(["scope", "vectors.npz"])
    assert "--select kernels finds no layer among the 1 leaves" in capsys.readouterr().err
