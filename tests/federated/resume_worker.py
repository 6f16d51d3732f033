"""Run every algorithm in a directory, all at once or round by round; a test kills this."""

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from wsa_jax.data import load_dataset
from wsa_jax.federated import (
    LocalSettings,
    WeightScopeAlignment,
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_exp,
    fed_prox,
    fed_yogi,
    iid,
    scaffold,
    simulate,
)
from wsa_jax.models import MLP
from wsa_jax.training import classification

ROUNDS = 6


def rounds_on_disk(directory: Path) -> int:
    saved = (directory / "checkpoints").glob("*")
    return max((int(path.name) for path in saved if path.name.isdigit()), default=0)


def main(directory: Path, pause: float, stride: int) -> None:
    digits = load_dataset("digits")
    images, labels = digits.images[:150], digits.labels[:150]
    task = classification(MLP(features=(8, 10)), digits.info)
    makers = (scaffold, fed_exp, fed_adam, fed_yogi, fed_avg_m, fed_prox, fed_avg)
    digests = {}
    # A stride below ROUNDS resumes each algorithm from its directory at every stop.
    for rounds, make in itertools.product(range(stride, ROUNDS + 1, stride), makers):
        algorithm = make()
        if rounds_on_disk(directory / algorithm.name) > rounds:
            continue
        result = simulate(
            jax.random.key(5),
            task,
            (images, labels),
            iid(labels, clients=4, seed=0),
            rounds=rounds,
            algorithm=algorithm,
            participants=2,
            wsa=WeightScopeAlignment(strength=0.5, form="proximal"),
            learning_rate=lambda i: 0.1 * 0.9**i,
            local=LocalSettings(steps=3, batch_size=10),
            evaluate_every=1,
            directory=directory / algorithm.name,
            on_round=lambda row: time.sleep(pause),
        )
        whole = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(result.state))
        rows = [row | {"seconds": 0} for row in result.history]
        digests[algorithm.name] = [
            rounds,
            hashlib.sha256(whole).hexdigest(),
            hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        ]
    print(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
