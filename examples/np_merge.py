"""Merge two models of digits, each trained on different classes, by NP Merge.

    python examples/np_merge.py

Both start from the same initial weights, so their units correspond and no alignment is needed.
"""

import jax
import numpy as np
import optax

from wsa_jax.data import load_dataset
from wsa_jax.merging import LearningSettings, fine_tune, labelled_examples, np_merge
from wsa_jax.models import MLP
from wsa_jax.training import classification, evaluate
from wsa_jax.tree import lerp

train, test = load_dataset("digits"), load_dataset("digits", split="test")
task = classification(MLP(features=(256, 256, 10)), train.info)
params, _ = task.init(jax.random.key(0))


def samples(rows):
    """The chosen rows, as the task's loss takes them."""
    return labelled_examples(train.images[rows], train.labels[rows], num_classes=10)


def accuracy(params):
    """Share of the test images that a model gets right."""
    sums = evaluate(task, params, {}, test.images, test.labels)
    return float(sums.correct / sums.count)


# One has seen the digits 0 to 4, the other 5 to 9.
training = LearningSettings(steps=400, optimizer=optax.sgd)
models = [
    fine_tune(
        jax.random.key(i), task.loss, params, samples(rows), settings=training, learning_rate=0.1
    ).params
    for i, rows in enumerate([train.labels < 5, train.labels >= 5])
]

# The merge sees 200 samples of all digits, and selects its coefficients on 100 others.
shuffled = np.random.default_rng(0).permutation(len(train))
merged = np_merge(
    jax.random.key(2), task.loss, models, samples(shuffled[:200]),
    settings=LearningSettings(steps=300), learning_rate=0.3, held_out=samples(shuffled[200:300]),
)  # fmt: skip

for name, candidate in [
    ("digits 0 to 4", models[0]),
    ("digits 5 to 9", models[1]),
    ("average", lerp(*models, 0.5)),
    ("NP Merge", merged.params),
]:
    print(f"{name:15s} {accuracy(candidate):.3f}")
