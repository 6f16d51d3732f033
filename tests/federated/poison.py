"""One bad client in one round, for every algorithm and rule: what becomes of the run is counted.

    python -m tests.federated.poison

The last line printed is one JSON object. A run is *held* where its parameters stay finite and the
row of the bad round counts the client as dropped or the round as refused, and *absorbed* where they
stay finite because a clip or a robust rule bounds what the client sent.
"""

import collections
import itertools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from tests.tiny import INFO
from wsa_jax.federated import (
    Aggregation,
    LocalSettings,
    fed_adam,
    fed_avg,
    fed_exp,
    fed_yogi,
    iid,
    scaffold,
    simulate,
)
from wsa_jax.models import MLP
from wsa_jax.training import classification

VALUES = (np.nan, np.inf, -np.inf, 3e38, 1e30, 1e25, 1e20)
ALGORITHMS = (fed_avg, fed_adam, fed_yogi, fed_exp, scaffold)
RULES = (
    Aggregation(),
    Aggregation(clip_norm=1.0),
    Aggregation(rule="median"),
    Aggregation(rule="trimmed_mean", trim=0.3),
)


def poisoned(algorithm, value):
    """The algorithm, in which one client in ten sends one constant in place of its update."""
    send = algorithm.send

    def bad(update, context):
        sent = send(update, context)
        chosen = jax.random.uniform(jax.random.fold_in(context.key, 5)) < 0.1
        return jax.tree.map(lambda leaf: jnp.where(chosen, value, leaf), sent)

    return algorithm._replace(send=bad)


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    images = rng.integers(0, 16, (60, 3, 3, 1)).astype(np.uint8)
    task = classification(MLP(features=(8, 3)), INFO)
    counts: collections.Counter[str] = collections.Counter()
    for make, rule, value in itertools.product(ALGORITHMS, RULES, VALUES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = simulate(
                jax.random.key(0),
                task,
                (images, labels),
                iid(labels, clients=5, seed=0),
                rounds=6,
                algorithm=poisoned(make(), value),
                aggregation=rule,
                local=LocalSettings(steps=2, batch_size=8),
                evaluate_every=6,
            )
        leaves = jax.tree.leaves((result.params, result.state))
        finite = all(
            np.isfinite(leaf).all() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)
        )
        stopped = sum(row["dropped"] + row["refused"] for row in result.history)
        kind = "held" if stopped else "absorbed"
        counts[kind if finite else "broken"] += 1
        if not finite:
            print(make.__name__, rule, value, stopped)
    print(json.dumps({"runs": sum(counts.values())} | dict(counts)))


if __name__ == "__main__":
    main()
