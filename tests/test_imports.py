"""What `import wsa_jax` may and may not do, in a fresh interpreter; which room imports which."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, os, sys
import flax.linen, jax, optax
known, before = set(sys.modules), dict(os.environ)
import wsa_jax
import wsa_jax.federated, wsa_jax.training, wsa_jax.runs.checkpoint
from jax._src import xla_bridge
print(json.dumps({
    "modules": sorted(set(sys.modules) - known),
    "environment": {k: v for k, v in os.environ.items() if before.get(k) != v},
    "backends": xla_bridge.backends_are_initialized(),
}))
"""


@pytest.fixture(scope="module")
def imported():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "module",
    [
        "tensorflow_datasets",
        "tensorflow",
        "sklearn",
        "matplotlib",
        "orbax.checkpoint",
        "rich",
        "tyro",
        "beartype",
    ],
)
def test_loads_no_heavy_library(imported, module):
    # Beyond what jax, flax and optax load themselves.
    assert "wsa_jax.scope" in imported["modules"]
    assert module not in imported["modules"]


def test_sets_no_environment_variable(imported):
    assert imported["environment"] == {}


def test_leaves_the_backend_alone(imported):
    assert not imported["backends"]


PACKAGE = Path(__file__).resolve().parent.parent / "wsa_jax"
DESIGN = (PACKAGE.parent / "docs" / "design.md").read_text()
# The rooms in the order in which the page on the design lists them.
LAYOUT = re.search(r"^wsa_jax/\n(.*?)^benchmarks/", DESIGN, re.MULTILINE | re.DOTALL)[1]
ROOMS = [
    room.rstrip("/")
    for line in re.findall(r"^  (\w.*)", LAYOUT, re.MULTILINE)
    for room in re.split(r" {3,}", line)[0].split()
]


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "wsa_jax":
            _, *rest = node.module.split(".")
            yield from rest[:1] or [alias.name for alias in node.names]


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_rooms_import_only_those_before_them(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    known = {*ROOMS[: ROOMS.index(room) + 1], "__version__"}
    assert set(imported_rooms(path)) <= known
