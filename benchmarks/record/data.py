"""The data sets of rows: read once, and told apart by digests."""

import functools

from wsa_jax.data import Dataset, DatasetInfo, dataset_info, load_dataset
from wsa_jax.runs.identity import digest


@functools.lru_cache(maxsize=4)
def load_split(
    dataset: str | DatasetInfo, split: str, data_dir: str | None, side: int = 0
) -> Dataset:
    """A split of a data set, kept for the cells that follow; a side of 0 is its images' own."""
    return load_dataset(dataset, split=split, data_dir=data_dir, side=side or None)


@functools.cache
def missing_data(dataset: str, data_dir: str | None) -> str | None:
    """The loader's complaint if a data set is not on this machine, None if it is."""
    try:
        load_split(dataset, "test", data_dir)
    except FileNotFoundError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=8)
def data_digests(dataset: str, data_dir: str | None, side: int = 0) -> dict[str, str]:
    """Digests of a data set's arrays: copies of it may differ, by another compression say."""
    names = {"train": dataset_info(dataset).splits[0], "test": "test"}
    parts = {part: load_split(dataset, name, data_dir, side) for part, name in names.items()}
    return {part: digest(found.images, found.labels) for part, found in parts.items()}
