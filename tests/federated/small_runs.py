"""A small simulation that several tests, and the processes they start, run."""

import jax

from tests.tiny import INFO, examples
from wsa_jax.federated import LocalSettings, WeightScopeAlignment, iid, simulate
from wsa_jax.models import MLP
from wsa_jax.training import classification


def simulate_small(clients, count=150, **settings):
    """Simulate a linear model on examples; settings replace the defaults, or add to them."""
    train = examples(count)
    defaults = {
        "wsa": WeightScopeAlignment(strength=0.5, form="proximal"),
        "learning_rate": lambda i: 0.1 * 0.9**i,
        "local": LocalSettings(steps=3, batch_size=10),
    }
    return simulate(
        jax.random.key(5),
        classification(MLP(features=(3,)), INFO),
        train,
        iid(train[1], clients=clients, seed=0),
        **(defaults | settings),
    )


def untimed(rows):
    """Rows of a history without their wall times."""
    return [row | {"seconds": 0} for row in rows]
