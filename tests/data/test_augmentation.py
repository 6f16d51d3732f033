import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsa_jax.data import DATASETS, augment, load_dataset, normalize
from wsa_jax.data.augmentation import draw_crops

# Compiled whole: operation by operation the same tests spend ten times as long compiling.
augment_jit = jax.jit(augment, static_argnames=("mode", "padding", "flip"))
draw_jit = jax.jit(draw_crops, static_argnums=1, static_argnames=("padding", "flip"))


def random_images(shape=(6, 9, 7, 3), dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


def crop_and_flip(images, offsets, flips, padding):
    """The plain way: pad, cut out, reverse."""
    images = np.asarray(images)
    _, height, width, _ = images.shape
    edge = (padding, padding)
    padded = np.pad(images, ((0, 0), edge, edge, (0, 0)))
    out = []
    for image, (top, left), flip in zip(padded, offsets, flips, strict=True):
        crop = image[top : top + height, left : left + width]
        out.append(crop[:, ::-1] if flip else crop)
    return np.stack(out)


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (4, True), (4, False), (12, True)])
@pytest.mark.parametrize("mode", ["batch", "example"])
def test_equals_pad_cut_and_reverse_with_the_drawn_numbers(mode, flip, padding):
    images, key = random_images(), jax.random.key(3)
    count = len(images) if mode == "example" else 1
    offsets, flips = draw_jit(key, count, padding=padding, flip=flip)
    expected = crop_and_flip(
        images,
        np.broadcast_to(offsets, (len(images), 2)),
        np.broadcast_to(flips, len(images)),
        padding,
    )
    actual = augment_jit(key, images, mode=mode, padding=padding, flip=flip)
    np.testing.assert_array_equal(actual, expected)


def test_none_returns_the_images():
    images = random_images()
    assert augment(jax.random.key(0), images, mode="none") is images


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_keeps_the_dtype_and_moves_values_without_rounding(dtype):
    images = random_images(dtype=dtype)
    out = augment_jit(jax.random.key(1), images, mode="example")
    assert out.dtype == dtype
    assert set(np.unique(out)) <= {*np.unique(images), 0}


@pytest.mark.parametrize("mode", ["batch", "example"])
def test_inside_scan_and_vmap_equals_one_call_at_a_time(mode):
    images = random_images((3, 4, 8, 8, 3))
    keys = jax.random.split(jax.random.key(0), (3, 5))

    def steps(keys, images):
        def step(carry, key):
            return carry, augment(key, images, mode=mode, padding=2)

        return jax.lax.scan(step, 0, keys)[1]

    together = jax.jit(jax.vmap(steps))(keys, images)
    for client in range(3):
        for step in range(5):
            alone = augment_jit(keys[client, step], images[client], mode=mode, padding=2)
            np.testing.assert_array_equal(together[client, step], alone)


def test_one_crop_for_the_batch_and_many_for_the_examples():
    ramp = jnp.broadcast_to(jnp.arange(1.0, 65.0).reshape(1, 8, 8, 1), (16, 8, 8, 1))
    batch = augment_jit(jax.random.key(0), ramp, mode="batch")
    assert len(np.unique(batch, axis=0)) == 1
    example = augment_jit(jax.random.key(0), ramp, mode="example")
    # 16 independent draws of 81 crops and a coin all agree with probability 162 ** -15.
    assert len(np.unique(example, axis=0)) > 1


def test_offsets_are_uniform_and_the_coin_is_fair():
    padding, draws = 4, 20_000
    offsets, flips = draw_jit(jax.random.key(0), draws, padding=padding, flip=True)
    cells = np.bincount(np.asarray(offsets) @ np.array([9, 1]), minlength=81)
    assert cells.size == 81
    # Pearson's statistic has mean 80 and variance about 2 * 80: five standard deviations.
    statistic = ((cells - draws / 81) ** 2 / (draws / 81)).sum()
    assert statistic < 80 + 5 * np.sqrt(160)
    assert abs(float(flips.mean()) - 0.5) < 5 * 0.5 / np.sqrt(draws)


def test_equal_keys_give_equal_images_and_others_do_not():
    images = random_images()
    first, again, other = (
        augment_jit(jax.random.key(seed), images, mode="example") for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("mode", ["batch", "example"])
def test_compiles_once_for_one_shape(mode):
    traces = []

    @jax.jit
    def step(key, images):
        traces.append(None)
        return augment(key, images, mode=mode)

    for seed in range(3):
        step(jax.random.key(seed), random_images())
    assert len(traces) == 1


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="padding=-1"):
        augment(jax.random.key(0), random_images(), mode="batch", padding=-1)


@pytest.mark.parametrize("name", DATASETS)
def test_normalize_is_the_formula(name):
    info = DATASETS[name]
    pixels = np.random.default_rng(0).integers(0, int(info.scale) + 1, (2, 5, 4, len(info.mean)))
    expected = (pixels / info.scale - np.array(info.mean)) / np.array(info.std)
    actual = normalize(jnp.asarray(pixels, jnp.uint8), info)
    assert actual.dtype == jnp.float32
    # Two float32 roundings of terms of size at most 1 / std.
    np.testing.assert_allclose(actual, expected, atol=2.0**-22 / min(info.std), rtol=0)


def test_normalize_under_jit_and_over_extra_axes():
    train = load_dataset("digits")
    images = train.images[:12]
    flat = normalize(images, train.info)
    np.testing.assert_allclose(
        jax.jit(lambda x: normalize(x, train.info))(images), flat, atol=1e-6, rtol=0
    )
    stacked = normalize(images.reshape(3, 4, 8, 8, 1), train.info)
    np.testing.assert_array_equal(stacked.reshape(flat.shape), flat)


def test_normalize_refuses_another_number_of_channels():
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 1\).*cifar10"):
        normalize(np.zeros((2, 4, 4, 1), np.uint8), DATASETS["cifar10"])
