"""The FedJAX side: its federated averaging, one jitted call a local step, on the JAX it runs on."""

from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.speed.peers.jax_clock import compile_clock
from benchmarks.speed.peers.turns import EVALUATED, Scenario, Turns, load

DENSE = ((1600, 384), (384, 192), (192, 10))
CONV = ((5, 5, 3, 32), (5, 5, 32, 64))


def init(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Weights and biases uniform within one over the root of the fan-in, as on all sides."""
    layers = []
    for index, shape in enumerate((*CONV, *DENSE)):
        bound = 1 / np.sqrt(np.prod(shape[:-1]))
        keys = jax.random.split(jax.random.fold_in(key, index))
        layers.append(
            (
                jax.random.uniform(keys[0], shape, minval=-bound, maxval=bound),
                jax.random.uniform(keys[1], shape[-1:], minval=-bound, maxval=bound),
            )
        )
    return layers


def mean_loss(params: Any, images: Any, labels: Any, scenario: Scenario) -> jax.Array:
    x = (images / jnp.float32(scenario.scale) - jnp.array(scenario.mean)) / jnp.array(scenario.std)
    for kernel, bias in params[: len(CONV)]:
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        window, least = (1, 2, 2, 1), -jnp.inf
        x = jax.lax.reduce_window(x + bias, least, jax.lax.max, window, window, "VALID")
        x = jax.nn.relu(x)
    x = x.reshape(x.shape[0], -1)
    for index, (kernel, bias) in enumerate(params[len(CONV) :]):
        x = (jax.nn.relu(x) if index else x) @ kernel + bias
    return optax.softmax_cross_entropy_with_integer_labels(x, labels).mean()


def main() -> None:
    scenario = Scenario.from_argv()
    turns = Turns(scenario)
    compile_seconds = compile_clock()
    data = load(scenario.data)
    clients = fedjax.InMemoryFederatedData(
        {
            client: {"x": data.images[rows], "y": data.labels[rows]}
            for client, rows in enumerate(data.indices)
        }
    )

    def grad_fn(params: Any, batch: Any, key: Any) -> Any:
        return jax.grad(mean_loss)(params, batch["x"], batch["y"], scenario)

    local = optax.chain(
        optax.clip_by_global_norm(scenario.clip_norm),
        optax.add_decayed_weights(scenario.weight_decay),
        optax.sgd(scenario.learning_rate),
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        grad_fn,
        fedjax.optimizers.create_optimizer_from_optax(local),
        fedjax.optimizers.sgd(learning_rate=1.0),
        fedjax.ShuffleRepeatBatchHParams(
            batch_size=scenario.batch, num_epochs=None, num_steps=scenario.steps
        ),
    )
    sampler = fedjax.client_samplers.UniformGetClientSampler(
        clients, num_clients=scenario.participants, seed=0
    )
    state = algorithm.init(init(jax.random.PRNGKey(0)))
    for _ in range(scenario.rounds):
        state, _ = algorithm.apply(state, sampler.sample())
        jax.block_until_ready(state.params)
        turns.done()
    compiled = compile_seconds()
    loss = mean_loss(state.params, data.images[:EVALUATED], data.labels[:EVALUATED], scenario)
    turns.finish(float(loss), compile_seconds=compiled)


if __name__ == "__main__":
    main()
