"""Datasets as uint8 NumPy arrays, and what happens to a batch inside the jitted step."""

from wsa_jax.data.augmentation import AugmentMode, augment, normalize
from wsa_jax.data.loading import Dataset, load_dataset, train_validation_split
from wsa_jax.data.registry import DATASETS, DatasetInfo, dataset_info

__all__ = [
    "DATASETS",
    "AugmentMode",
    "Dataset",
    "DatasetInfo",
    "augment",
    "dataset_info",
    "load_dataset",
    "normalize",
    "train_validation_split",
]
