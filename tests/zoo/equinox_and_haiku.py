"""Equimo's models and Haiku's networks, small, as functions of their parameters."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

# Name: module, class, settings, and the size of an image.
EQUIMO = {
    "Equimo ViT": (
        "vit",
        "VisionTransformer",
        {"img_size": 16, "in_channels": 3, "dim": 12, "patch_size": 8, "num_heads": 3}
        | {"depths": [2], "num_classes": 3, "reg_tokens": 2},
        16,
    ),
    "Equimo ConvNeXt": (
        "convnext",
        "ConvNeXt",
        {"depths": [1, 1], "dims": [8, 12], "num_classes": 3, "layer_scale_init_value": 0.5},
        32,
    ),
    "Equimo MLLA": (
        "mlla",
        "Mlla",
        {"img_size": 32, "in_channels": 3, "dim": 12, "depths": [1, 1], "num_heads": [2, 3]}
        | {"num_classes": 3},
        32,
    ),
    "Equimo VSSD (Mamba-2)": (
        "vssd",
        "Vssd",
        {"img_size": 32, "in_channels": 3, "dim": 16, "depths": [1, 1], "num_heads": [2, 2]}
        | {"attentions_layers": ["mamba2mixer", "attention"], "num_classes": 3},
        32,
    ),
    "Equimo ReduceFormer": (
        "reduceformer",
        "ReduceFormer",
        {"in_channels": 3, "widths": [8, 8, 16], "depths": [1, 1, 1], "head_dim": 8}
        | {"block_types": ["conv", "conv", "attention"], "num_classes": 3},
        32,
    ),
}


def build_equimo(name):
    """A function of a model and images, the model, and what draws images."""
    import equinox as eqx

    module, model_class, settings, size = EQUIMO[name]
    made = getattr(importlib.import_module(f"equimo.vision.models.{module}"), model_class)
    model = eqx.nn.inference_mode(made(**settings, key=jax.random.key(0)))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(params, images):
        model = eqx.combine(params, static)
        call = lambda image: model(image, key=jax.random.key(0), inference=True)  # noqa: E731
        return jax.vmap(call)(images)

    def draw(rng, count):
        return rng.normal(size=(count, 3, size, size)).astype(np.float32)

    return apply, params, draw


def _haiku_networks():
    import haiku as hk

    class Transformer(hk.Module):
        def __call__(self, x):
            h = hk.Linear(12)(x)
            for _ in range(2):
                n = hk.LayerNorm(-1, True, True)(h)
                h = h + hk.MultiHeadAttention(3, 4, w_init=hk.initializers.VarianceScaling())(
                    n, n, n
                )
                n = hk.LayerNorm(-1, True, True)(h)
                h = h + hk.Linear(12)(jax.nn.gelu(hk.Linear(10)(n)))
            return hk.Linear(3)(hk.LayerNorm(-1, True, True)(h).mean(1))

    def recurrent(x, training):
        states = hk.dynamic_unroll(hk.GRU(8), x.swapaxes(0, 1), jnp.zeros((len(x), 8)))
        return hk.Linear(3)(states[1])

    def residual(x, training):
        return hk.nets.ResNet([1, 1, 1, 1], 3, channels_per_group=(8, 8, 12, 12))(x, training)

    def separable(x, training):
        return hk.nets.MobileNetV1((1, 2), (8, 12), 3)(x, training)

    return {
        "Haiku MLP": (lambda x, training: hk.nets.MLP([9, 7, 3])(x), (6,)),
        "Haiku transformer": (lambda x, training: Transformer()(x), (5, 6)),
        "Haiku GRU": (recurrent, (5, 6)),
        "Haiku ResNet": (residual, (32, 32, 3)),
        "Haiku MobileNet": (separable, (16, 16, 3)),
    }


HAIKU = ("Haiku MLP", "Haiku transformer", "Haiku GRU", "Haiku ResNet", "Haiku MobileNet")


def build_haiku(name):
    """A function of parameters and state, and one array of inputs; shapes; what draws inputs."""
    import haiku as hk

    network, shape = _haiku_networks()[name]
    network = hk.transform_with_state(network)
    inputs = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    variables = jax.eval_shape(lambda k, x: network.init(k, x, True), jax.random.key(0), inputs)

    def apply(variables, inputs):
        return network.apply(*variables, None, inputs, False)[0]

    def draw(rng, count):
        return rng.normal(size=(count, *shape)).astype(np.float32)

    return apply, variables, draw
