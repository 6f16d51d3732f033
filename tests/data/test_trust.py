"""Data cannot run code: what a prepared data set names is compared, not imported."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.data.test_data import CIFAR_DIR
from wsa_jax.data import load_dataset

CORE = "tensorflow_datasets.core.features"
EVIL = "evil_mod.X"
IMAGE = {"pythonClassName": f"{CORE}.image_feature.Image", "image": {"dtype": "uint8"}}
FORMS = {
    "today's": {"pythonClassName": EVIL, "image": {}},
    "the proto's own spelling": {"python_class_name": EVIL, "image": {}},
    "legacy": {"type": EVIL, "content": {}},
    "nested": {
        "pythonClassName": f"{CORE}.features_dict.FeaturesDict",
        "featuresDict": {"features": {"image": IMAGE, "label": {"pythonClassName": EVIL}}},
    },
    "in a sequence": {
        "pythonClassName": f"{CORE}.sequence_feature.Sequence",
        "sequence": {"feature": {"pythonClassName": EVIL}},
    },
    "in a list": {"type": f"{CORE}.features_dict.FeaturesDict", "content": [{"type": EVIL}]},
}


def prepared(root: Path, features: str, **info: str) -> Path:
    """A folder that looks prepared."""
    folder = root / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(features)
    (folder / "cifar10-train.array_record-00000-of-00001").write_bytes(b"")
    about = {"name": "cifar10", "version": "3.0.2", "fileFormat": "array_record"} | info
    (folder / "dataset_info.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A module that can be imported, and leaves a file when it is."""
    marker = tmp_path / "ran"
    (tmp_path / "evil_mod.py").write_text(f"open({str(marker)!r}, 'w')\nclass X: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return marker


@pytest.mark.parametrize("features", FORMS.values(), ids=FORMS)
def test_a_class_that_data_names_is_not_imported(tmp_path, evil, features):
    folder = prepared(tmp_path / "data", json.dumps(features))
    with pytest.raises(
        ValueError, match=r"names the class 'evil_mod.X', which is none of"
    ) as error:
        load_dataset("cifar10", data_dir=tmp_path / "data")
    assert str(folder / "features.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert not evil.exists()
    assert "evil_mod" not in sys.modules


@pytest.mark.parametrize("name", ["os.path", "tensorflow_datasets.evil.X", "X", "", CORE])
def test_other_names_are_refused_as_well(tmp_path, name):
    prepared(tmp_path, json.dumps({"pythonClassName": name}))
    with pytest.raises(ValueError, match="which is none of tensorflow_datasets.features"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000])
def test_what_is_no_json_is_one_line(tmp_path, text):
    folder = prepared(tmp_path, text)
    with pytest.raises(ValueError, match="cannot be read as JSON") as error:
        load_dataset("cifar10", data_dir=tmp_path)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_one_line(tmp_path):
    (prepared(tmp_path, "{}") / "features.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"features.json is not there: .* prepare it anew"):
        load_dataset("cifar10", data_dir=tmp_path)


def test_folders_that_are_no_versions_are_passed_over(tmp_path):
    folder = prepared(tmp_path, json.dumps(FORMS["today's"]))
    shutil.copytree(folder, folder.with_name("backup"))
    with pytest.raises(ValueError, match="3.0.2/features.json names the class"):
        load_dataset("cifar10", data_dir=tmp_path)


@pytest.mark.skipif(CIFAR_DIR is None, reason="CIFAR-10 is not on this machine")
def test_the_module_that_a_data_set_says_it_was_made_by_is_not_imported(tmp_path, evil):
    folder = shutil.copytree(CIFAR_DIR / "cifar10" / "3.0.2", tmp_path / "cifar10" / "3.0.2")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "evil_mod"}))
    assert len(load_dataset("cifar10", split="test", data_dir=tmp_path)) == 10_000
    assert not evil.exists()


UNSAFE = {"pickle", "cPickle", "marshal", "shelve", "joblib", "dill"}


def unsafe(node):
    """Whether code reads what may run code; what a message says of pickles is no code."""
    match node:
        case ast.Import(names):
            return any(alias.name.split(".")[0] in UNSAFE for alias in names)
        case ast.ImportFrom(module):
            return (module or "").split(".")[0] in UNSAFE
        case ast.Constant(str(name)):  # given to an importer
            return name in UNSAFE
        case ast.keyword("allow_pickle", value):
            return ast.unparse(value) != "False"
        case ast.Call(func):
            return ast.unparse(func) in ("exec", "eval", "torch.load", "yaml.load")
    return False


def test_nothing_unpickles_or_evaluates_text():
    root = Path(__file__).resolve().parents[2] / "wsa_jax"
    found = {
        (path.name, ast.unparse(node))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if unsafe(node)
    }
    assert not found
    for text in ("import pickle as p", "from dill import loads", "np.load(x, allow_pickle=True)",
                 "torch.load(x)", "eval(x)", "importlib.import_module('joblib')"):  # fmt: skip
        assert any(unsafe(node) for node in ast.walk(ast.parse(text)))
