"""Bad inputs for every public function, drawn with a seed: what becomes of each is counted.

    python -m tests.robustness.bad_inputs --count 900 --seed 0 [--show foreign]

Each input is a valid call with one argument replaced. It may be accepted, or refused in one line by
`wsa_jax`; anything else is somebody else's traceback. The last line printed is one JSON object.
"""

import argparse
import collections
import json
import random
import signal
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PACKAGE = Path(__file__).resolve().parents[2] / "wsa_jax"
SECONDS = 60


class Outcome(NamedTuple):
    """What became of one bad input: accepted, refused (in one line, by us) or foreign."""

    kind: str
    name: str
    argument: str
    value: str
    message: str


def bad_values(right: Any) -> Iterator[Any]:
    """Values of wrong types, then values of the right type that are out of range."""
    yield from (None, "text", "3", b"bytes", 1.5, -1, 0, 10**12, float("nan"), float("inf"), True)
    yield from ([], [0.1], {}, (), object(), len, lambda *args: None, (i for i in range(2)), int)
    yield from (np.zeros((2, 3)), jnp.float32(1), jnp.ones(3), np.array(["a", "b"]), 1j)
    yield from (jax.random.PRNGKey(0), jax.random.split(jax.random.key(0), 3))
    if isinstance(right, np.ndarray | jax.Array):
        array = np.asarray(right) if not jnp.issubdtype(right.dtype, jax.dtypes.prng_key) else None
        if array is not None and array.ndim:
            yield from (array[:0], array[:1], array.astype(np.float32), array.astype(str))
            yield from (array.astype(bool), array[..., None], -array.astype(np.int64) - 1)
            yield from (array.tolist(), np.concatenate([array, array]), array.astype(complex))
    if isinstance(right, dict) and right:
        name = next(iter(right))
        yield from (dict(list(right.items())[1:]), right | {"surplus": jnp.ones(2)})
        yield right | {name: jax.tree.map(lambda leaf: leaf * jnp.nan, right[name])}
        yield right | {name: jax.tree.map(lambda leaf: leaf[:1], right[name])}
        yield right | {name: jax.tree.map(lambda leaf: leaf.astype(int), right[name])}
    if isinstance(right, list | tuple) and len(right):
        yield from (right[:1], [*right, None], [right[0], "text"], [right], list(right) * 2)
    if isinstance(right, str):
        yield from (right.upper(), f" {right}", f"{right}x", "")
    if isinstance(right, int | float):
        yield from (-right, right * 1e39, str(right), np.float64(right), np.full(2, right))


def drawn_inputs(count: int, seed: int) -> list[tuple[str, str, Any]]:
    """As many inputs as asked for, as equally over functions and arguments as chance allows."""
    from tests.robustness.valid_calls import valid_calls

    draw = random.Random(seed)
    pool: dict[str, list[tuple[str, Any]]] = {}
    for name, call in valid_calls().items():
        given = [(argument, bad) for argument, right in call.arguments.items()
                 for bad in bad_values(right)]  # fmt: skip
        draw.shuffle(given)
        pool[name] = given
    inputs = []
    while len(inputs) < count and any(pool.values()):
        for name, given in pool.items():
            if given and len(inputs) < count:
                inputs.append((name, *given.pop()))
    return inputs


class OutOfTimeError(BaseException):
    """A call that did not end."""


def _out_of_time(*_: Any) -> None:
    raise OutOfTimeError


def outcome(name: str, argument: str, value: Any) -> Outcome:
    """Call a function with one argument replaced, and say what became of it."""
    from tests.robustness.valid_calls import valid_calls

    call = valid_calls()[name]
    shown = f"{type(value).__name__} {' '.join(repr(value).split())}"[:80]
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call.function(**call.arguments | {argument: value})
    except OutOfTimeError:
        return Outcome("foreign", name, argument, shown, f"did not end in {SECONDS} s")
    except Exception as error:  # every kind of exception is what is counted here
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = Path(last).is_relative_to(PACKAGE)
        text = str(error)
        clear = isinstance(error, ValueError | TypeError | OSError) and ours and "\n" not in text
        message = f"{type(error).__name__}: {text[:160]}"
        return Outcome("refused" if clear else "foreign", name, argument, shown, message)
    finally:
        signal.alarm(0)
    return Outcome("accepted", name, argument, shown, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", choices=("foreign", "accepted", "refused"), default="foreign")
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)
    found = [outcome(*each) for each in drawn_inputs(options.count, options.seed)]
    for each in found:
        if each.kind == options.show:
            print(f"{each.name}({each.argument}={each.value}): {each.message}")
    counts = collections.Counter(each.kind for each in found)
    print(json.dumps({"inputs": len(found), "seed": options.seed} | dict(counts)))


if __name__ == "__main__":
    main()
