"""Merging two large files: its time over that of reading and writing their bytes, and its memory.

    python -m benchmarks speed files

Two files of float32 (2 GB each by default: an embedding and blocks of a language model) are
averaged into a third, as `wsa-jax merge` does, with the digests of both in its metadata. The other
side reads 512 KB of each file and writes as many, to the end: with smaller and larger blocks it was
slower from the disk (Linux 6.18, ext4). Both sides are processes of their own that take turns; both
bring what is written to the disk on the way (fsync, in a thread) and end when all of it is there;
imports are not counted.

Each side has turns of two kinds: the inputs are in the system's cache, if it is large enough, or
come from the disk, after the cache has forgotten them (Linux). The bound of memory is the largest
leaf of both models and 300 MB, for all of the process.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.record.ledger import RESULTS
from benchmarks.script import Command, Summary
from benchmarks.speed.alternating import paired, summary, take_turns
from benchmarks.speed.reporting import SpeedArgs, recorded
from wsa_jax.files.model_file import Shapes, size_in_bytes
from wsa_jax.files.safetensors_file import write_safetensors
from wsa_jax.files.writing import Content

MERGE = """
import json, resource, sys, time
from pathlib import Path
from wsa_jax.commands.merge import merge_files
from wsa_jax.commands.recipe import recipe
from wsa_jax.files import open_model
first, second, output = sys.argv[1:]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin, processor = time.perf_counter(), time.process_time()
asked = recipe({"method": "average"}, models=2, base=False)
merge_files([open_model(first), open_model(second)], None, asked, Path(output))
seconds, processor = time.perf_counter() - begin, time.process_time() - processor
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = {"seconds": seconds, "processor": processor}
print(json.dumps(found | {"peak": peak * 1024, "before": before * 1024}))
"""

COPY = """
import json, os, sys, threading, time
first, second, output = sys.argv[1:]
blocks = [bytearray(1 << 19) for _ in range(2)]
begin, processor = time.perf_counter(), time.process_time()
with open(first, "rb", buffering=0) as a, open(second, "rb", buffering=0) as b:
    with open(output, "wb", buffering=0) as file:
        finished = threading.Event()
        def to_the_disk():
            while not finished.wait(0.05):
                os.fsync(file.fileno())
        thread = threading.Thread(target=to_the_disk)
        thread.start()
        # A header first, as the merge writes: what follows lies between the pages, on both sides.
        length = a.read(8)
        file.write(length + a.read(int.from_bytes(length, "little")))
        b.seek(a.tell())
        while (size := a.readinto(blocks[0])) | b.readinto(blocks[1]):
            file.write(memoryview(blocks[0])[:size])
        finished.set()
        thread.join()
        os.fsync(file.fileno())
seconds, processor = time.perf_counter() - begin, time.process_time() - processor
print(json.dumps({"seconds": seconds, "processor": processor}))
"""

# By what it adds to a side's name: whether inputs are read from the disk, or from its cache.
CONDITIONS = {"": False, "_from_disk": True}


@dataclass(frozen=True, kw_only=True)
class Args(SpeedArgs):
    """What to merge and how often."""

    width: int = 2048
    layers: int = 9
    vocabulary: int = 32000
    rounds: int = 5
    folder: Path | None = None
    """Where three files are made and removed again; a temporary folder by default."""
    results: Path = RESULTS / "speed_files.jsonl"


def shapes(args: Args) -> Shapes:
    """An embedding, and for each layer attention, gated dense layers and norms."""
    wide = args.width * 11 // 4
    leaves: dict[str, tuple[int, ...]] = {"embedding.weight": (args.vocabulary, args.width)}
    for i in range(args.layers):
        for name in ("query", "key", "value", "out"):
            leaves[f"layers.{i}.{name}.weight"] = (args.width, args.width)
        leaves |= {f"layers.{i}.{name}.weight": (wide, args.width) for name in ("gate", "up")}
        leaves[f"layers.{i}.down.weight"] = (args.width, wide)
        leaves[f"layers.{i}.norm.weight"] = (args.width,)
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in leaves.items()}


def make(path: Path, leaves: Shapes, seed: int) -> None:
    """A file of normal weights, drawn piece by piece."""
    rng = np.random.default_rng(seed)

    def pieces(name: str) -> Iterator[np.ndarray]:
        left = size_in_bytes(leaves[name]) // 4
        while left:
            count = min(left, 1 << 22)
            yield rng.standard_normal(count, np.float32)
            left -= count

    write_safetensors(path, Content(shapes=leaves, pieces=pieces))


def forget(paths: Iterable[Path]) -> None:
    """Take files out of the system's cache, so that whoever reads them next waits for the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # only what the disk has can be left to it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(args: Args, folder: Path) -> Summary:
    """Make both files, take turns, compare with the bounds."""
    leaves = shapes(args)
    inputs = [folder / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(inputs):
        make(path, leaves, seed)
    output = folder / "out.safetensors"

    def turn(code: str, *, from_disk: bool) -> dict[str, Any]:
        if from_disk:
            forget(inputs)
        command = [sys.executable, "-c", code, *map(str, inputs), str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        output.unlink()
        return json.loads(done.stdout)

    conditions = {"": False} if args.preset == "smoke" else CONDITIONS
    turns = take_turns(
        {
            f"{name}{suffix}": functools.partial(turn, code, from_disk=from_disk)
            for suffix, from_disk in conditions.items()
            for name, code in (("merge", MERGE), ("read_and_write", COPY))
        },
        args.rounds,
        warm_ups=min(1, args.rounds - 1),
    )
    times = {name: [one["seconds"] for one in found] for name, found in turns.items()}
    processor = {n: statistics.median(t["processor"] for t in f) for n, f in turns.items()}
    peak = max(one["peak"] for one in turns["merge"])
    largest = max(map(size_in_bytes, leaves.values()))
    return {
        "benchmark": "files",
        "ratios": {
            f"read_and_write{suffix}": paired(times, f"merge{suffix}", f"read_and_write{suffix}")
            for suffix in conditions
        },
        **summary("seconds", times, 3),
        "processor_seconds": {name: round(value, 3) for name, value in processor.items()},
        "bytes_of_a_file": sum(map(size_in_bytes, leaves.values())),
        "largest_leaf": largest,
        "peak_memory": peak,
        "memory_before": max(one["before"] for one in turns["merge"]),
        "memory_bound": 2 * largest + 300_000_000,
        "settings": {"width": args.width, "layers": args.layers, "rounds": args.rounds},
    }


def run(args: Args) -> Summary:
    if args.preset == "smoke":
        args = dataclasses.replace(args, width=16, layers=1, vocabulary=64, rounds=1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        figures = measure(args, Path(folder))
    for name, seconds in figures["seconds"].items():
        print(f"{name:<24} {seconds:.2f} s")
    print(
        f"memory                   {figures['peak_memory'] / 1e6:.0f} MB, of at most "
        f"{figures['memory_bound'] / 1e6:.0f} MB"
    )
    return recorded(args, figures)


SCRIPT = Command(name="files", description=__doc__, arguments=Args, function=run)
