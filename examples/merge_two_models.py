"""Train two models from different seeds, align, merge, and plot the barrier before and after.

python examples/merge_two_models.py [digits|cifar10]
"""

import sys

import jax
from matplotlib.figure import Figure

from wsa_jax.data import load_dataset
from wsa_jax.merging import (
    Model,
    align,
    average,
    interpolate_path,
    loss_barrier,
    reset_batch_norm,
    trace_spec,
    weight_matching,
)
from wsa_jax.merging.evaluate.plots import draw_path
from wsa_jax.models import cifar_resnet
from wsa_jax.training import FitSettings, classification, evaluate, fit
from wsa_jax.tree import stack, unstack

name = sys.argv[1] if len(sys.argv) > 1 else "digits"
train, test = load_dataset(name), load_dataset(name, split="test")
task = classification(cifar_resnet(8, train.info.num_classes, norm="batch"), train.info)

keys = jax.random.split(jax.random.key(0), 2)
settings = FitSettings(steps=300)
fitted = fit(keys, task, train.images, train.labels, settings=settings, learning_rate=0.05)
first, second = map(Model, unstack(fitted.params), unstack(fitted.model_state, 2))

# The network as a function of everything that moves: parameters and statistics.
spec = trace_spec(
    lambda variables, images: task.logits(*Model.of(variables), images),
    first.variables,
    train.images[:2],
)
matching = weight_matching(jax.random.key(1), spec, first.variables, second.variables)
matched = Model.of(align(spec, second.variables, matching))

merged = average(stack([first.params, matched.params]))
state = reset_batch_norm(task, merged, first.model_state, train.images[:1000])
sums = evaluate(task, merged, state, test.images, test.labels)
print(f"{len(spec.groups)} groups traced; merged model: {sums.correct / sums.count:.1%} on test")

paths = {}
for label, other in (("as trained", second), ("matched", matched)):
    path = paths[label] = interpolate_path(
        task, first.params, other.params, test.images, test.labels, num_points=11,
        model_state=first.model_state, calibration=train.images[:1000],
    )  # fmt: skip
    print(f"{label:<10}  loss barrier {loss_barrier(path):.3f}")
draw_path((figure := Figure(layout="constrained")).subplots(), paths)
figure.savefig("merge_two_models.png")
print("figure: merge_two_models.png")
