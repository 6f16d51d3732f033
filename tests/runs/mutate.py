"""Damage run directories in every way a disk or a person may, and count what a start then says.

    python tests/runs/mutate.py [--all] [--mutations 60] [--flips 40] [--seed 0]

Each trial copies the directory of a run, damages the copy, starts the run again there, and ends as
one of: resumed (bitwise the same result), clear (one line of ours with the path), foreign (any
other exception) or silent (another result, without a word).
"""

import argparse
import collections
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wsa_jax.federated import LocalSettings, iid, simulate
from wsa_jax.training import FitSettings, classification_task, fit

ROUNDS, LONGER, STEPS, EVERY = 4, 5, 8, 2
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(30, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 30)
TASK = classification_task(
    # Most of the checkpoint's bytes are weights.
    lambda key: ({"w": 0.1 * jax.random.normal(key, (4, 300)), "b": jnp.zeros(3)}, {}),
    lambda params, state, x, train, key: (x @ params["w"][:, :3] + params["b"][None], state),
    settings=(("model", "linear"),),
)


class Trial(NamedTuple):
    """How a directory is damaged, and with which seed and length its run is then started."""

    name: str
    damage: Callable[[Path], None]
    kind: str
    seed: int = 0
    longer: bool = False


def run(kind: str, directory: Path | None, seed: int = 0, longer: bool = False) -> Any:
    """The whole result of a run, as NumPy arrays and rows without their wall times."""
    if kind == "fit":
        settings = FitSettings(steps=STEPS, batch_size=5)
        found = fit(
            jax.random.key(seed), TASK, INPUTS, LABELS, settings=settings,
            directory=directory, checkpoint_every=EVERY,
        )  # fmt: skip
        return jax.tree.map(np.asarray, tuple(found)), []
    found = simulate(
        jax.random.key(seed), TASK, (INPUTS, LABELS), iid(LABELS, clients=3, seed=0),
        rounds=LONGER if longer else ROUNDS, learning_rate=0.1, test=(INPUTS, LABELS),
        local=LocalSettings(steps=1, batch_size=5), directory=directory, evaluate_every=1,
    )  # fmt: skip
    rows = [row | {"seconds": 0} for row in found.history]
    return jax.tree.map(np.asarray, jax.tree.leaves((found.state, found.params))), rows


class Trials:
    """Undamaged directories and results to copy and compare with."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._expected = functools.cache(lambda *start: run(start[0], None, *start[1:]))
        for kind in ("simulate", "fit"):
            for seed in (0, 1):
                run(kind, self.saved(kind, seed), seed)

    def saved(self, kind: str, seed: int = 0) -> Path:
        """The directory of a finished run."""
        return self._folder / f"{kind}-{seed}"

    def outcome(self, trial: Trial) -> tuple[str, str]:
        """What becomes of a trial, and what was said."""
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.saved(trial.kind), copy)
        trial.damage(copy)
        start = (trial.kind, trial.seed, trial.longer)
        try:
            found = run(start[0], copy, *start[1:])
        except Exception as error:  # Counted, whatever it is.
            return _class_of(error, copy), f"{type(error).__name__}: {error}"[:400]
        same = _same(found, self._expected(*start))
        return ("resumed" if same else "silent"), ""


def mutations(trials: Trials, seed: int) -> list[Trial]:
    """All mutations of both kinds of run, in an order that the seed gives."""
    found = []
    for kind in ("simulate", "fit"):
        saved, other = trials.saved(kind), trials.saved(kind, 1)
        for longer in (False, True) if kind == "simulate" else (False,):
            make = functools.partial(Trial, kind=kind, longer=longer)
            for path in sorted(p.relative_to(saved) for p in saved.rglob("*")):
                if path.name == ".lock" and longer:
                    continue
                damages = _file_damages if (saved / path).is_file() else _folder_damages
                twin = _twin(other, path)
                for name, damage in damages(twin).items():
                    found.append(
                        make(f"{kind} {path}: {name}", functools.partial(_at, path, damage))
                    )
            if kind == "simulate":
                for name, edit in ROW_DAMAGES.items():
                    found.append(make(f"rows: {name}", functools.partial(_rows, edit)))
        # The traces of one run, the start of another.
        for name in ("run.json", "metrics.jsonl")[: 1 + (kind == "simulate")]:
            missing = functools.partial(_at, Path(name), _delete)
            found.append(Trial(f"{kind} {name} deleted, another seed", missing, kind, seed=1))
    np.random.default_rng(seed).shuffle(found)
    return found


def flips(trials: Trials, count: int, seed: int) -> list[Trial]:
    """Single bits flipped in the newest checkpoint, each bit of it as likely as the others."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        kind = ("simulate", "fit")[index % 2]
        saved = trials.saved(kind)
        newest = max((saved / "checkpoints").iterdir(), key=lambda p: int(p.name))
        files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
        sizes = np.array([p.stat().st_size for p in files])
        path = files[rng.choice(len(files), p=sizes / sizes.sum())]
        bit = int(rng.integers(8 * path.stat().st_size))
        damage = functools.partial(_at, path.relative_to(saved), functools.partial(_flip, bit))
        found.append(Trial(f"{kind} {path.relative_to(saved)}: bit {bit}", damage, kind))
    return found


def count(trials: Trials, chosen: list[Trial]) -> tuple[collections.Counter, list[str]]:
    """How many trials end in which way, and a line for each that ends badly."""
    counts, bad = collections.Counter(), []
    for trial in chosen:
        outcome, said = trials.outcome(trial)
        counts[outcome] += 1
        if outcome in ("foreign", "silent"):
            bad.append(f"{outcome}: {trial.name}{' (longer)' * trial.longer} {said}")
    return counts, bad


def _class_of(error: Exception, directory: Path) -> str:
    ours = type(error) is ValueError or type(error).__name__ == "CheckpointError"
    one_line = "\n" not in str(error) and str(directory) in str(error)
    return "clear" if ours and one_line else "foreign"


def _same(one: Any, other: Any) -> bool:
    leaves = zip(jax.tree.leaves(one[0]), jax.tree.leaves(other[0]), strict=True)
    return one[1] == other[1] and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in leaves
    )


def _twin(other: Path, path: Path) -> Path:
    """The same file of another run; names of data files differ from run to run."""
    if (other / path).exists():
        return other / path
    siblings = sorted((other / path).parent.glob("*")) if (other / path).parent.exists() else []
    return siblings[0] if siblings else other / "run.json"


def _at(path: Path, damage: Callable[[Path], None], directory: Path) -> None:
    damage(directory / path)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replace(twin: Path, path: Path) -> None:
    _delete(path)
    (shutil.copytree if twin.is_dir() else shutil.copy)(twin, path)


def _write(data: bytes, path: Path) -> None:
    _delete(path)
    path.write_bytes(data)


def _folder(path: Path) -> None:
    _delete(path)
    path.mkdir()


def _flip(bit: int, path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _file_damages(twin: Path) -> dict[str, Callable[[Path], None]]:
    garbage = np.random.default_rng(1).bytes(100)
    return {
        "deleted": _delete,
        "empty": functools.partial(_write, b""),
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "zeros": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        "garbage": functools.partial(_write, garbage),
        "longer": lambda path: path.write_bytes(path.read_bytes() + garbage),
        "a folder": _folder,
        "another run's": functools.partial(_replace, twin),
        "an object": functools.partial(_write, b"{}\n"),
        "a list": functools.partial(_write, b"[1, 2]\n"),
    }


def _folder_damages(twin: Path) -> dict[str, Callable[[Path], None]]:
    return {
        "deleted": _delete,
        "empty": _folder,
        "a file": functools.partial(_write, b"text"),
        "another run's": functools.partial(_replace, twin),
        "renamed": lambda path: path.rename(path.with_name("1")),
        "copied under another step": lambda path: shutil.copytree(path, path.with_name("5")),
    }


def _rows(edit: Callable[[list[str]], list[str]], directory: Path) -> None:
    path = directory / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in edit(path.read_text().splitlines())))


def _changed(line: str, **change: Any) -> str:
    return json.dumps(json.loads(line) | change)


ROW_DAMAGES: dict[str, Callable[[list[str]], list[str]]] = {
    "first missing": lambda rows: rows[1:],
    "middle missing": lambda rows: rows[:1] + rows[2:],
    "last missing": lambda rows: rows[:-1],
    "doubled": lambda rows: [row for row in rows for _ in range(2)],
    "one doubled": lambda rows: rows[:2] + rows[1:],
    "swapped": lambda rows: [rows[1], rows[0], *rows[2:]],
    "a blank line": lambda rows: [rows[0], "", *rows[1:]],
    "torn": lambda rows: [rows[0][:20], *rows[1:]],
    "a list": lambda rows: ["[1]", *rows[1:]],
    "without keys": lambda rows: ['{"round": 1}', *rows[1:]],
    "another loss": lambda rows: [_changed(rows[0], train_loss=0.5), *rows[1:]],
    "another rate": lambda rows: [_changed(rows[0], learning_rate=0.2), *rows[1:]],
    "a rate in words": lambda rows: [_changed(rows[0], learning_rate="x"), *rows[1:]],
    "a key more": lambda rows: [_changed(rows[0], more=1), *rows[1:]],
    "one more": lambda rows: [*rows, '{"round": 9}'],
}


def main() -> None:
    """Print the counts; exit 1 if anything was silent or foreign."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="318 mutations and 150 flips")
    parser.add_argument("--mutations", type=int, default=60)
    parser.add_argument("--flips", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mutated, flipped = (318, 150) if args.all else (args.mutations, args.flips)
    with tempfile.TemporaryDirectory() as folder:
        trials = Trials(Path(folder))
        every = mutations(trials, args.seed)
        bad = []
        for name, chosen in (
            (f"mutations ({len(every)} in all)", every[:mutated]),
            ("flips", flips(trials, flipped, args.seed)),
        ):
            counts, lines = count(trials, chosen)
            print(name, dict(counts), flush=True)
            bad += lines
    print("\n".join(bad))
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
