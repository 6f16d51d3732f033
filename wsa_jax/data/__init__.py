"""Datasets as uint8 NumPy arrays, and what happens to a batch inside the jitted step."""

from wsa_jax.data.augmentation import AugmentMode as AugmentMode
from wsa_jax.data.augmentation import augment as augment
from wsa_jax.data.augmentation import normalize as normalize
from wsa_jax.data.loading import Dataset as Dataset
from wsa_jax.data.loading import load_dataset as load_dataset
from wsa_jax.data.loading import train_validation_split as train_validation_split
from wsa_jax.data.registry import DATASETS as DATASETS
from wsa_jax.data.registry import DatasetInfo as DatasetInfo
from wsa_jax.data.registry import dataset_info as dataset_info
