"""What the timings on record say, beside what was aimed at."""

from collections.abc import Callable, Iterable

from benchmarks.record.claims import Claim, together
from benchmarks.record.ledger import RESULTS, Ledger
from benchmarks.record.statistics import Row

SPEED = "speed"
"""The source of these claims."""

# Under which heading of the page, and what was run.
_STEP = ("one-client-step", "client step of the CNN, batch 50")
_ROUND = ("one-federated-round-against-other-simulators", "a round of 10 clients x 20 steps")
_MATCHING = ("weight-matching-against-its-solver", "VGG16")
_MERGE = ("a-step-of-np-merge-and-a-path", "VGG11 x0.25, batch 50")
_PATH = (_MERGE[0], "the CNN, 25 points")
_FILES = "merging-files"
_ASSIGNMENT = ("solvers-of-the-assignment-problem", "512 to 4,096 units")


def as_fast(ratio: float, aim: float) -> str:
    """Ratios are ours over theirs, so smaller is better; 3 % is what repeated runs differ by.

    >>> as_fast(0.8, 1.0), as_fast(1.02, 1.0), as_fast(1.3, 1.0)
    ('faster', 'level', 'slower')
    """
    return "faster" if ratio < aim - 0.03 else "level" if ratio <= aim + 0.03 else "slower"


def within(ratio: float, aim: float) -> str:
    """Whether an upper bound holds.

    >>> within(1.0, 1.15), within(2.4, 2.0)
    ('within its bound', 'above its bound')
    """
    return "within its bound" if ratio <= aim else "above its bound"


def timed(
    claim: str,
    where: tuple[str, str],
    values: Iterable[float],
    aim: float,
    judge: Callable[[float, float], str],
    several: str = "runs",
) -> Claim:
    """One line; several runs, or sizes, are told by their least and greatest."""
    found = sorted(values)
    ours = f"{found[0]:.2f}"
    ours += f" to {found[-1]:.2f} ({len(found)} {several})" if found[1:] else ""
    verdict = together([judge(value, aim) for value in found])
    return Claim(SPEED, claim, where[1], ours, f"{aim:g}", verdict, f"speed.md#{where[0]}")


def rows_of(name: str) -> list[Row]:
    """The rows of a timing, in the order of their time."""
    rows = Ledger(RESULTS / f"speed_{name}.jsonl").rows()
    return sorted((row for row in rows if row["benchmark"] == name), key=lambda row: row["time"])


def ratios(rows: list[Row], name: str) -> list[float]:
    """A ratio of all the rows that have it."""
    return [row["ratios"][name] for row in rows if name in row["ratios"]]


def speed_claims() -> list[Claim]:
    """The timings' lines of the table of results."""
    steps, rounds, merges = (rows_of(n) for n in ("client_step", "federated_round", "np_merge"))
    (*_, matching), (*_, path) = rows_of("matching"), rows_of("path")
    *_, merged = rows_of("files")
    *_, assigned = rows_of("assignment")
    copies = merges[-1]["memory_copies"]["beyond_fine_tuning"]
    peers = {
        "PyTorch, channels_last": (steps, "torch_channels_last", _STEP),
        "PyTorch, default layout": (steps, "torch_default", _STEP),
        "pfl": (rounds, "pfl", _ROUND),
        "Flower": (rounds, "flower", _ROUND),
        "FedJAX": (rounds, "fedjax", _ROUND),
        "our own without WSA": (rounds, "wsa_over_plain", _ROUND),
    }
    solver = ratios([matching], "total_over_solver_vgg16")
    tuned, plain = ratios(merges, "fine_tuning"), ratios([path], "barrier_over_plain")
    # By solver, SciPy's time over it at each size.
    solvers = {
        name: [1 / row["ratios"][name] for row in assigned["sizes"].values()]
        for name in ("lapjv", "lapjvc", "lapjvs")
    }
    return [
        *(
            timed(f"as fast as {peer}", where, ratios(rows, key), 1, as_fast)
            for peer, (rows, key, where) in peers.items()
        ),
        timed("matching over its solver's time", _MATCHING, solver, 2, within),
        *(
            timed(f"SciPy's solver over lapx's {name}", _ASSIGNMENT, found, 1, as_fast, "sizes")
            for name, found in solvers.items()
        ),
        timed("a step of NP Merge over fine-tuning's", _MERGE, tuned, 1.15, within),
        timed("its memory beyond that, in models", _MERGE, [copies], 3, within),
        timed("a barrier over its evaluations", _PATH, plain, 1.1, within),
        *(
            timed(
                "merging two files over reading and writing them",
                (_FILES, f"2 x 2.1 GB, float32, {inputs}"),
                ratios([merged], key),
                1.2,
                within,
            )
            for key, inputs in (
                ("read_and_write_from_disk", "from disk"),
                ("read_and_write", "inputs in the cache"),
            )
        ),
    ]
