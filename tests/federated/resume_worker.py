"""Run every algorithm one after another in a directory; a test kills this at random moments."""

import hashlib
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


def main(directory: Path, pause: float) -> None:
    digits = load_dataset("digits")
    images, labels = digits.images[:150], digits.labels[:150]
    task = classification(MLP(features=(8, 10)), digits.info)
    digests = {}
    for make in (scaffold, fed_exp, fed_adam, fed_yogi, fed_avg_m, fed_prox, fed_avg):
        algorithm = make()
        result = simulate(
            jax.random.key(5),
            task,
            (images, labels),
            iid(labels, clients=4, seed=0),
            rounds=ROUNDS,
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
            hashlib.sha256(whole).hexdigest(),
            hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
        ]
    print(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
