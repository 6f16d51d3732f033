"""Run every algorithm in a directory, all at once or round by round; a test kills this."""

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.federated.digits import simulate_digits, untimed
from wsa_jax.federated import (
    fed_adam,
    fed_avg,
    fed_avg_m,
    fed_exp,
    fed_prox,
    fed_yogi,
    scaffold,
)
from wsa_jax.runs.checkpoint import Checkpoints

ROUNDS = 6


def main(directory: Path, pause: float, stride: int) -> None:
    makers = (scaffold, fed_exp, fed_adam, fed_yogi, fed_avg_m, fed_prox, fed_avg)
    digests = {}
    # A stride below ROUNDS resumes each algorithm from its directory at every stop.
    for rounds, make in itertools.product(range(stride, ROUNDS + 1, stride), makers):
        algorithm = make()
        if (Checkpoints(directory / algorithm.name / "checkpoints").latest() or 0) > rounds:
            continue
        result = simulate_digits(
            clients=4,
            rounds=rounds,
            algorithm=algorithm,
            participants=2,
            evaluate_every=1,
            directory=directory / algorithm.name,
            on_round=lambda row: time.sleep(pause),
        )
        whole = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(result.state))
        digests[algorithm.name] = [
            rounds,
            hashlib.sha256(whole).hexdigest(),
            hashlib.sha256(json.dumps(untimed(result.history)).encode()).hexdigest(),
        ]
    print(json.dumps(digests))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
