"""A small simulation of digits that several tests, and the processes they start, run."""

import jax

from wsa_jax.data import load_dataset
from wsa_jax.federated import LocalSettings, WeightScopeAlignment, iid, simulate
from wsa_jax.models import MLP
from wsa_jax.training import classification


def first_digits(examples):
    """Their images and labels."""
    digits = load_dataset("digits")
    return digits.images[:examples], digits.labels[:examples]


def simulate_digits(clients, examples=150, **settings):
    """Simulate an MLP on the first digits; settings replace the defaults, or add to them."""
    train = first_digits(examples)
    defaults = {
        "wsa": WeightScopeAlignment(strength=0.5, form="proximal"),
        "learning_rate": lambda i: 0.1 * 0.9**i,
        "local": LocalSettings(steps=3, batch_size=10),
    }
    return simulate(
        jax.random.key(5),
        classification(MLP(features=(8, 10)), load_dataset("digits").info),
        train,
        iid(train[1], clients=clients, seed=0),
        **(defaults | settings),
    )


def untimed(rows):
    """Rows of a history without their wall times."""
    return [row | {"seconds": 0} for row in rows]
