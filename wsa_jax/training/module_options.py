"""What the tasks of modules share: losses, and images as inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from wsa_jax.data.augmentation import AugmentMode, augment, normalize
from wsa_jax.data.checks import check_images
from wsa_jax.data.registry import DatasetInfo
from wsa_jax.runs.described import described
from wsa_jax.training.regression import regression_task
from wsa_jax.training.task import Apply, Task, classification_task
from wsa_jax.types import Inputs

Loss = Literal["cross_entropy", "squared_error"]
"""Of integer labels, one for each position of the logits; or of numbers, of the outputs' shape."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a module's inputs and outputs are."""

    loss: Loss
    info: DatasetInfo | None
    augmentation: AugmentMode
    padding_label: int | None

    def __post_init__(self):
        if self.info is None and self.augmentation != "none":
            raise ValueError(
                f"augmentation {self.augmentation!r} is for images, and info says what they are; "
                "give both"
            )
        if self.loss == "squared_error" and self.padding_label is not None:
            raise ValueError(
                f"padding_label {self.padding_label} is a class, and loss is 'squared_error'; "
                "leave it out"
            )

    def prepared(self, params: PyTree, inputs: Inputs, key: Array | None) -> Inputs:
        """Inputs as the module gets them: images normalised, in training augmented."""
        if self.info is None:
            return inputs
        images = normalize(inputs, self.info).astype(jnp.result_type(*jax.tree.leaves(params)))
        return images if key is None else augment(key, images, mode=self.augmentation)

    def task(self, init: Callable[[Array], tuple[PyTree, PyTree]], apply: Apply, name: str) -> Task:
        """The task of a module; its settings say all that is not in the parameters."""
        settings = (("module", name), *((n, described(v)) for n, v in sorted(vars(self).items())))
        if self.loss == "squared_error":
            task = regression_task(init, apply, settings=settings)
        else:
            task = classification_task(
                init, apply, settings=settings, padding_label=self.padding_label
            )
        info = self.info
        if info is None:
            return task
        return task._replace(check_inputs=lambda images, what: check_images(images, info, what))
