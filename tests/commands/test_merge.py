"""``wsa-jax merge`` against NumPy, and what it refuses."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.cli import main
from wsa_jax.commands import merge_leaves, sources
from wsa_jax.files import flatten, load_model, open_model, save_model
from wsa_jax.merging import dare, model_stock, slerp, ties

RNG = np.random.default_rng(0)
SHAPES = {"layer1.0.weight": (6, 3), "head.weight": (3, 6)}


def weights(dtype=np.float32):
    return {name: RNG.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def models():
    return [weights() for _ in range(3)]


@pytest.fixture
def files(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    counted = [{**model, "count": np.array(i, np.int64)} for i, model in enumerate(models)]
    for name, model in zip("abc", counted, strict=True):
        save_model(f"{name}.safetensors", model, metadata={"format": "pt", "name": name})
    return [f"{name}.safetensors" for name in "abc"]


def merged(*arguments, output="out.safetensors"):
    main(["merge", *arguments, "-o", output])
    return dict(open_model(output))


def contents():
    return {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def refused(capsys, *arguments, command="merge"):
    before = contents()
    with pytest.raises(SystemExit) as exit_:
        main([command, *arguments])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("wsa-jax: error: ")
    assert error.count("\n") == 1
    # Nothing is written, half or whole.
    assert before == contents()
    return error


def close(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


def test_average_and_weights(files, models, capsys):
    found = merged(*files)
    close(found, {n: np.mean([m[n] for m in models], axis=0) for n in SHAPES})
    # Integers are the first file's, and told.
    assert found["count"] == 0
    assert found["count"].dtype == np.int64
    assert "1 of them, integers, are the first file's: count" in capsys.readouterr().out
    found = merged(*files, "--method", "weighted", "--weights", "1", "0", "3", output="w.npz")
    close(found, {n: (models[0][n] + 3 * models[2][n]) / 4 for n in SHAPES})
    assert {name: leaf.dtype for name, leaf in found.items()} == {
        name: leaf.dtype for name, leaf in open_model(files[0]).items()
    }


def test_large_leaves_come_in_pieces(files, models, monkeypatch):
    monkeypatch.setattr(merge_leaves, "_PIECE", 5)
    monkeypatch.setattr(merge_leaves, "_READ", 7)
    expected = {n: np.mean([m[n] for m in models], axis=0) for n in SHAPES}
    close(merged(*files), expected)
    base = ("--method", "task-arithmetic", "--base", files[2], "--weights", "1", "-0.5")
    a, b, c = models
    close(
        merged(*files[:2], *base, output="t.npz"),
        {n: c[n] + (a[n] - c[n]) - 0.5 * (b[n] - c[n]) for n in SHAPES},
    )


def test_pieces_of_one_buffer_make_whole_leaves(files, models, monkeypatch):
    monkeypatch.setattr(merge_leaves, "_PIECE", 5)
    monkeypatch.setattr(merge_leaves, "_READ", 7)
    expected = {n: np.mean([m[n] for m in models], axis=0) for n in SHAPES}
    close(merged(*files, output="out.msgpack"), expected)
    ties_of = ("--method", "ties", "--base", files[2], "--keep", "0.5")
    close(
        merged(*files[:2], *ties_of, output="t.safetensors"),
        flatten(ties(models[:2], models[2], keep=0.5)),
    )


def backwards(path, leaves):
    """A safetensors file whose leaves lie in the reverse order of their names."""
    order, end, header = sorted(leaves, reverse=True), 0, {}
    for name in order:
        begin, end = end, end + leaves[name].nbytes
        kind = {"float32": "F32", "int64": "I64"}[str(leaves[name].dtype)]
        header[name] = {"dtype": kind, "shape": leaves[name].shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    data = b"".join(leaves[name].tobytes() for name in order)
    Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_digests_are_those_of_the_files_whatever_is_read(files, models, monkeypatch):
    monkeypatch.setattr(merge_leaves, "_PIECE", 4)
    monkeypatch.setattr(merge_leaves, "_READ", 8)
    monkeypatch.setattr(sources, "_BLOCK", 7)
    monkeypatch.setattr(sources, "_WAITING", 2)
    # In another order, with a leaf of a file that is not read at all, and twice over.
    backwards("b.safetensors", {**models[1], "count": np.array(1)})
    save_model("c", {**models[2], "count": np.array(2)}, shard_bytes=75)
    inputs = ("a.safetensors", "b.safetensors", "c")
    shards = sorted(Path("c").iterdir())
    assert len(shards) == 4  # the index is one of them
    lines = [f"{hashlib.sha256(one.read_bytes()).hexdigest()}  {one.name}\n" for one in shards]
    expected = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in inputs[:2]]
    expected.append(hashlib.sha256("".join(lines).encode()).hexdigest())
    for number, more in enumerate(
        (
            [*inputs],
            [*inputs, "--method", "weighted", "--weights", "1", "0", "3"],
            [*inputs[:2], "--method", "ties", "--base", "c"],
            [*inputs[:2], "--method", "model-stock", "--base", "c"],
        )
    ):
        merged(*more, output=f"{number}.safetensors")
        told = json.loads(open_model(f"{number}.safetensors").metadata["wsa_jax"])
        found = [*told["models"], *([told["base"]] if "base" in told else [])]
        assert found == [f"sha256:{digest}" for digest in expected]


def test_the_digest_of_a_folder_is_of_all_its_files(files, models):
    for name, model in zip("xy", models, strict=False):
        save_model(name, model)  # orbax has two manifests, in different folders
    merged("x", "y")
    told = json.loads(open_model("out.safetensors").metadata["wsa_jax"])["models"]
    for folder, digest in zip("xy", told, strict=True):
        parts = {p.relative_to(folder).as_posix(): p for p in Path(folder).rglob("*")}
        lines = [
            f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {name}\n"
            for name, part in sorted(parts.items())
            if part.is_file()
        ]
        assert digest == f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"


def test_ties_looks_at_the_whole_model_in_every_precision(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(merge_leaves, "_PIECE", 7)
    kinds = {"half": jnp.bfloat16, "single": np.float32, "double": np.float64}
    # One leaf changes ten times as much: by leaf, as much of each would be kept.
    sizes = {"half": 0.1, "single": 1.0, "double": 0.1}
    for names in (["half", "single"], list(kinds)):
        models = [
            {n: (sizes[n] * RNG.standard_normal((3, 10))).astype(kinds[n]) for n in names}
            for _ in range(3)
        ]
        for name, model in zip("abc", models, strict=True):
            save_model(f"{name}.safetensors", model)
        pair, base = ("a.safetensors", "b.safetensors"), ("--base", "c.safetensors")
        for keep in ("0.1", "1"):
            out = f"{len(names)}-{keep}.safetensors"
            found = merged(*pair, "--method", "ties", *base, "--keep", keep, output=out)
            with jax.enable_x64(True):
                expected = flatten(ties(models[:2], models[2], keep=float(keep)))
            for name, value in expected.items():
                assert found[name].tobytes() == np.asarray(value).tobytes()


def test_layers_have_weights_of_their_own(files, models):
    Path("recipe.yaml").write_text(
        'method: weighted\nweights: [1, 1]\nlayers:\n  "head\\\\..*": [1, 3]\n'
    )
    found = merged(*files[:2], "--config", "recipe.yaml")
    a, b, _ = models
    close(found, {"head.weight": (a["head.weight"] + 3 * b["head.weight"]) / 4})
    close(found, {n: (a[n] + b[n]) / 2 for n in SHAPES if n != "head.weight"})
    asked = {"method": "weighted", "weights": [1, 1], "layers": {"head\\..*": [1, 3]}}
    Path("recipe.json").write_text(json.dumps(asked))
    merged(*files[:2], "--config", "recipe.json", output="j.safetensors")
    assert Path("out.safetensors").read_bytes() == Path("j.safetensors").read_bytes()


def test_methods_are_the_library_s_on_whole_models(files, models):
    a, b, base = models
    two, options = files[:2], ("--base", files[2])
    close(merged(*two, "--method", "slerp", "--weights", "1", "3"), flatten(slerp(a, b, 0.75)))
    found = merged(*two, "--method", "ties", *options, "--keep", "0.5", output="t.npz")
    close(found, flatten(ties([a, b], base, keep=0.5)))
    found = merged(*two, "--method", "model-stock", *options, output="m.npz")
    close(found, flatten(model_stock([a, b], base)))
    found = merged(
        *two, "--method", "dare", *options, "--drop", "0.5", "--seed", "3", output="d.npz"
    )
    trees = [load_model(f) for f in files]
    whole = dare(jax.random.key(3), trees[:2], trees[2], drop=0.5)
    close(found, {n: leaf for n, leaf in flatten(whole).items() if n != "count"})


def test_double_and_half_precision_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for dtype in (np.float64, jnp.bfloat16):
        first, second = weights(dtype), weights(dtype)
        save_model("a.safetensors", first)
        save_model("b.safetensors", second)
        name = f"{np.dtype(dtype)}.safetensors"
        for method in ("average",) if dtype != np.float64 else ("average", "slerp"):
            found = merged("a.safetensors", "b.safetensors", "--method", method, output=name)
            assert found["head.weight"].dtype == dtype
            Path(name).unlink()
        means = {n: (np.float64(first[n]) + np.float64(second[n])) / 2 for n in SHAPES}
        found = merged("a.safetensors", "b.safetensors", output=name)
        rounding = 1e-15 if dtype == np.float64 else 2.0**-8
        for leaf, value in means.items():
            np.testing.assert_allclose(np.float64(found[leaf]), value, rtol=rounding, atol=1e-15)


def test_provenance_and_equal_bytes(files):
    merged(*files)
    told = open_model("out.safetensors").metadata
    assert told["format"] == "pt"  # what all say alike is kept
    assert "name" not in told
    made = json.loads(told["wsa_jax"])
    digests = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in files]
    assert made["models"] == [f"sha256:{digest}" for digest in digests]
    assert made["method"] == "average"
    assert set(made["versions"]) == {"wsa_jax", "jax", "numpy"}
    for name in files:
        Path(name).rename(f"moved-{name}")
    merged(*(f"moved-{name}" for name in files), output="again.safetensors")
    assert Path("out.safetensors").read_bytes() == Path("again.safetensors").read_bytes()


@pytest.mark.parametrize("form", ["npz", "msgpack", "orbax"])
def test_every_format_goes_in_and_out(files, models, form):
    names = [f"model-{i}{'' if form == 'orbax' else f'.{form}'}" for i in range(2)]
    for name, model in zip(names, models, strict=False):
        save_model(name, model)
    output = "out" if form == "orbax" else f"out.{form}"
    found = merged(*names, output=output)
    close(found, {n: (models[0][n] + models[1][n]) / 2 for n in SHAPES})
    assert json.loads(open_model(output).metadata["wsa_jax"])["method"] == "average"


@pytest.mark.parametrize("method", ["average", "slerp"])
def test_a_foreign_byte_order_is_merged(files, models, method):
    for name, model in zip("ab", models, strict=False):
        np.savez(f"{name}.npz", **{key: leaf.astype(">f4") for key, leaf in model.items()})
    expected = merged(*files[:2], "--method", method, output="expected.safetensors")
    found = merged("a.npz", "b.npz", "--method", method, output="out.msgpack")
    close(found, {name: expected[name] for name in SHAPES})


def test_dry_run_and_force(files, capsys):
    main(["merge", *files, "-o", "out.safetensors", "--dry-run"])
    printed = capsys.readouterr().out
    assert "3 leaves, 152 B a model, into out.safetensors" in printed
    assert printed.endswith("dry run: nothing was written\n")
    assert not Path("out.safetensors").exists()
    merged(*files[:2])
    assert "exists; give another output, or --force" in refused(
        capsys, *files, "-o", "out.safetensors"
    )
    merged(*files, "--force")
    assert len(json.loads(open_model("out.safetensors").metadata["wsa_jax"])["models"]) == 3


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("command", ["merge", "match"])
def test_no_folder_of_mine_and_no_file_is_replaced(files, capsys, monkeypatch, command, force):
    # Refused before the work: no model is opened.
    monkeypatch.setattr(f"wsa_jax.commands.{command}.open_model", None)
    Path("project").mkdir()
    Path("project/precious.txt").write_text("mine")
    Path("NOTES").write_text("mine")
    for output, message in (
        ("project", "project holds other things than one checkpoint of orbax (precious.txt)"),
        ("NOTES", "NOTES is a file, and a path without an ending names a folder of orbax"),
        (".", ". holds other things than one checkpoint of orbax (NOTES, "),
    ):
        assert message in refused(capsys, *files[:2], "-o", output, *force, command=command)
    assert Path("project/precious.txt").read_text() == Path("NOTES").read_text() == "mine"


def test_running_statistics_are_told(files, capsys):
    for name in "xy":
        save_model(f"{name}.npz", {"bn.running_mean": np.ones(2), "bn.weight": np.ones(2)})
    merged("x.npz", "y.npz")
    assert "note: 1 running statistics are merged like weights" in capsys.readouterr().out


TIES = ["--method", "ties", "--base", "c.safetensors"]
REFUSALS = [
    (["no.npz", "a.safetensors"], "there is no model at no.npz"),
    (["a.safetensors"], "average merges two models or more, got 1"),
    (
        ["a.safetensors", "b.safetensors", "--weights", "1", "2"],
        "average takes no weights; give --",
    ),
    (["a.safetensors", "b.safetensors", "--method", "weighted"], "weighted needs --weights"),
    (
        ["a.safetensors", "b.safetensors", "--method", "ties"],
        "give --base, the model that all were",
    ),
    (
        ["a.safetensors", "b.safetensors", "--base", "c.safetensors"],
        "average has no use for a base",
    ),
    (["a.safetensors", "b.safetensors", "--keep", "0.5"], "average has no use for keep"),
    (
        ["a.safetensors", "b.safetensors", "c.safetensors", "--method", "slerp"],
        "slerp merges 2 mod",
    ),
    (
        ["a.safetensors", "b.safetensors", "--method", "weighted", "--weights", "1"],
        "1 weights for 2 models",
    ),
    (
        ["a.safetensors", "b.safetensors", "--method", "weighted", "--weights", "1", "-1"],
        "are not shares",
    ),
    (
        [
            "a.safetensors",
            "b.safetensors",
            "--method",
            "dare",
            "--base",
            "c.safetensors",
            "--drop",
            "1",
        ],
        "drop 1.0 is not a share in [0, 1)",
    ),
    (
        ["a.safetensors", "b.safetensors", *TIES, "--keep", "0"],
        "keep 0.0 is not a share in (0, 1]",
    ),
    (["a.safetensors", "b.safetensors", *TIES, "--scale", "nan"], "scale nan is not finite"),
    (
        ["a.safetensors", "b.safetensors", "--method", "median"],
        "method 'median' is unknown; give one of average, weighted",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS)
def test_refusals_are_one_line(files, capsys, arguments, message):
    assert message in refused(capsys, *arguments, "-o", "out.safetensors")


def test_differences_are_listed_up_to_ten(files, models, capsys):
    cases = {
        "more": {**models[0], **{f"x{i}": np.ones(1) for i in range(12)}},
        "shape": {**models[0], "count": np.array(0), "head.weight": np.ones((3, 7), np.float32)},
        "type": {**models[0], "count": np.array(0), "head.weight": np.ones((3, 6), np.float16)},
    }
    messages = {
        "more": "a.safetensors lacks x0, x1, x10, x11, x2",
        "shape": "their shapes differ: head.weight [3, 6] and [3, 7]",
        "type": "their types differ: head.weight float32 and float16; convert one",
    }
    for name, model in cases.items():
        save_model(f"{name}.safetensors", model)
        error = refused(capsys, files[0], f"{name}.safetensors", "-o", "out.npz")
        assert "are not of one architecture" in error
        wanted = "lacks count" if name == "more" else messages[name]
        assert wanted in error
    save_model("more2.safetensors", {**cases["more"], "count": np.array(0)})
    error = refused(capsys, files[0], "more2.safetensors", "-o", "out.npz")
    assert messages["more"] in error
    assert "and 2 more" in error


def test_what_cannot_be_merged_leaves_nothing(files, models, capsys):
    bad = {**models[1], "count": np.array(1)}
    bad["head.weight"] = np.full((3, 6), np.nan, np.float32)
    save_model("nan.safetensors", bad)
    for more in ([], ["--method", "slerp"]):
        error = refused(capsys, files[0], "nan.safetensors", *more, "-o", "out.safetensors")
        assert "leaf head.weight of file 2 holds NaN or infinite values" in error
    # Of ten times the largest number, a tenth each: the sum rounds to infinity.
    large = {**bad, "head.weight": np.full((3, 6), np.finfo(np.float32).max)}
    save_model("large.safetensors", large)
    error = refused(capsys, *["large.safetensors"] * 10, "-o", "out.safetensors")
    assert "the mean of leaf head.weight is too large for float32; give it in float64" in error
    Path("torn.safetensors").write_bytes(Path(files[1]).read_bytes()[:-5])
    assert "cannot read torn" in refused(capsys, files[0], "torn.safetensors", "-o", "o.npz")
    error = refused(capsys, *files, "-o", "out.pt")
    assert "out.pt is a pickle" in error
    error = refused(capsys, *files, "-o", f"{files[0]}/out.npz")
    assert "a.safetensors is a file, not a folder; give another output than" in error
    found = merged(files[0], "nan.safetensors", "--method", "weighted", "--weights", "1", "0")
    close(found, models[0])


@pytest.mark.parametrize("method", ["task-arithmetic", "dare"])
def test_what_a_half_type_cannot_hold_is_refused(files, models, capsys, method):
    for name, value in (("base", 1_000), ("x", 50_000), ("y", 60_000)):
        half = {leaf: np.full(shape, value, np.float16) for leaf, shape in SHAPES.items()}
        save_model(f"{name}.npz", half)
    options = ["--weights", "1", "1", *(["--drop", "0"] if method == "dare" else [])]
    error = refused(
        capsys, "x.npz", "y.npz", "--base", "base.npz", "--method", method, *options, "-o", "o.npz"
    )
    assert f"{method} of leaf " in error
    assert "is too large for float16; give files of a wider type, or smaller weights" in error


def test_ties_refuses_before_it_writes(files, models, capsys):
    turned = {**models[0], "count": np.array(1), "head.weight": models[0]["head.weight"] * 1j}
    turned["head.weight"] = turned["head.weight"].astype(np.complex64)
    save_model("x.safetensors", turned)
    asked = ("--method", "ties", "--base", "x.safetensors", "-o", "out.safetensors")
    error = refused(capsys, "x.safetensors", "x.safetensors", *asked)
    assert "complex weights have none: head.weight" in error
    bad = {**models[1], "count": np.array(1), "head.weight": np.full((3, 6), np.inf, np.float32)}
    save_model("inf.safetensors", bad)
    asked = ("--method", "ties", "--base", "inf.safetensors", "-o", "out.safetensors")
    error = refused(capsys, files[0], files[1], *asked)
    assert "leaf head.weight of file 3 holds NaN or infinite values" in error


CONFIGS = [
    ("a.yaml", "- 1", "holds no keys and values"),
    ("a.yaml", "mehtod: average", "has mehtod; known are method"),
    ("a.yaml", "method: median", "method 'median' is unknown"),
    ("a.yaml", "method: 3", "method of a.yaml is 3; give its name"),
    ("a.yaml", "weights: [1, x]", "weights of a.yaml is [1, 'x']; give a list of numbers"),
    ("a.yaml", "{", "cannot read a.yaml"),
    ("a.yaml", "!!python/object/apply:os.system ['true']", "cannot read a.yaml"),
    ("a.json", "{", "cannot read a.json"),
    ("a.toml", "", "a.toml ends in neither"),
    ("a.yaml", "method: weighted\nweights: [1, 1]\nlayers: {'(': [1, 2]}", "no regular expression"),
    (
        "a.yaml",
        "method: weighted\nweights: [1, 1]\nlayers: {haed: [1, 2]}",
        "layers haed of the con",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), CONFIGS)
def test_a_config_is_checked(files, capsys, name, text, message):
    Path(name).write_text(text)
    error = refused(capsys, *files[:2], "--config", name, "-o", "out.npz")
    assert message in error


def test_a_setting_in_both_places_is_refused(files, capsys):
    Path("a.yaml").write_text("method: slerp")
    error = refused(capsys, *files[:2], "--config", "a.yaml", "--method", "ties", "-o", "o.npz")
    assert "method is both in a.yaml and on the command line" in error
