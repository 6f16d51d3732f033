"""Run algorithms in a directory round by round; a test kills this.

    python resume_worker.py DIRECTORY PAUSE [WHOLE]

With WHOLE, a second directory, the same runs are done there afterwards, each in one go.
"""

import hashlib
import itertools
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.federated.small_runs import simulate_small, untimed
from wsa_jax.federated import fed_adam, fed_avg, fed_exp, scaffold
from wsa_jax.runs.checkpoint import Checkpoints

ROUNDS = 6
# One of each kind of state: of clients and the server, parameters, an optimiser's, and none.
MAKERS = (scaffold, fed_exp, fed_adam, fed_avg)


def run(directory: Path, pause: float, stride: int, last: int = ROUNDS) -> dict[str, list]:
    digests = {}
    # A stride below the last round resumes each algorithm from its directory at every stop.
    for rounds, make in itertools.product(range(stride, last + 1, stride), MAKERS):
        algorithm = make()
        if (Checkpoints(directory / algorithm.name / "checkpoints").latest() or 0) > rounds:
            continue
        result = simulate_small(
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
    return digests


def main(directory: Path, pause: float, whole: Path | None = None) -> None:
    print(json.dumps(run(directory, pause, 1)))
    if whole is not None:
        print(json.dumps(run(whole, 0.0, ROUNDS)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), *map(Path, sys.argv[3:]))
