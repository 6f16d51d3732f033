"""One bad client in one round, for every algorithm and rule: what becomes of the run is counted.

    python -m tests.federated.poison

The last line printed is one JSON object. A run is *held* where its parameters stay finite and the
row of the bad round counts the client as dropped or the round as refused, and *absorbed* where they
stay finite because a clip or a robust rule bounds what the client sent.
"""

import collections
import dataclasses
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


class Poison:
    """An algorithm in which one client in ten sends one constant in place of its update.

    The constant is part of the server's state, so that all of them share one compilation.
    """

    def __init__(self, algorithm):
        self.value = 0.0
        self.algorithm = algorithm._replace(
            init_server=lambda params: (algorithm.init_server(params), jnp.float32(self.value)),
            broadcast=lambda server: (algorithm.broadcast(server[0]), server[1]),
            correct=lambda grads, params, at: algorithm.correct(grads, params, own(at)),
            send=lambda update, at: bad(algorithm.send(update, own(at)), at),
            finish=lambda update, at: algorithm.finish(update, own(at)),
            apply=lambda server, at: stepped(algorithm.apply(server[0], at), server[1]),
            evaluated=lambda server, params: algorithm.evaluated(server[0], params),
        )


def own(context):
    return context._replace(server=context.server[0])


def bad(sent, context):
    chosen = jax.random.uniform(jax.random.fold_in(context.key, 5)) < 0.1
    return jax.tree.map(lambda leaf: jnp.where(chosen, context.server[1], leaf), sent)


def stepped(new, value):
    params, server = new
    return params, (server, value)


def outcome(poison, rule, value, images, labels, task) -> str:
    """Run six rounds, and say what became of them."""
    poison.value = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = simulate(
            jax.random.key(0),
            task,
            (images, labels),
            iid(labels, clients=5, seed=0),
            rounds=6,
            algorithm=poison.algorithm,
            aggregation=rule,
            local=LocalSettings(steps=2, batch_size=8),
            evaluate_every=6,
        )
    server, _ = result.state.server
    leaves = jax.tree.leaves((result.params, dataclasses.replace(result.state, server=server)))
    finite = all(
        np.isfinite(leaf).all() for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    stopped = sum(row["dropped"] + row["refused"] for row in result.history)
    return ("held" if stopped else "absorbed") if finite else "broken"


def main() -> None:
    jax.config.update("jax_disable_most_optimizations", True)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60).astype(np.int32)
    images = rng.integers(0, 16, (60, 3, 3, 1)).astype(np.uint8)
    task = classification(MLP(features=(8, 3)), INFO)
    counts: collections.Counter[str] = collections.Counter()
    for make, rule in itertools.product(ALGORITHMS, RULES):
        poison = Poison(make())
        for value in VALUES:
            kind = outcome(poison, rule, value, images, labels, task)
            counts[kind] += 1
            if kind == "broken":
                print(make.__name__, rule, value)
    print(json.dumps({"runs": sum(counts.values())} | dict(counts)))


if __name__ == "__main__":
    main()
