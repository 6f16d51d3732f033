"""A prepared data set is data: it cannot name code to be imported."""

import json
from collections.abc import Iterator
from pathlib import Path

__all__ = ["check_features"]

# How tensorflow_datasets names a feature's class, which it imports: today's proto in both of its
# spellings, and the form before it.
_NAMES = ("pythonClassName", "python_class_name", "type")


def check_features(folder: Path) -> None:
    """Raise a ValueError unless a prepared data set's features are tensorflow_datasets' own.

    To be called before that library reads ``features.json``: it imports the module of any class
    that the file names.

    Raises:
      ValueError: the file names another class, or is no JSON.
      FileNotFoundError: there is no such file.
    """
    path = folder / "features.json"
    try:
        features = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is not there: the data set was prepared by an old version, or in part; "
            "prepare it anew"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} cannot be read as JSON ({reason}); prepare the data set anew"
        ) from error
    known = _feature_classes()
    for name in _class_names(features):
        if name not in known:
            raise ValueError(
                f"{path} names the class {name!r}, which is none of tensorflow_datasets.features; "
                "code named by data is not run: prepare the data set with features of that library"
            )


def _class_names(value: object) -> Iterator[str]:
    """All names of classes, however deep."""
    if isinstance(value, dict):
        for name in _NAMES:
            if isinstance(value.get(name), str):
                yield value[name]
        for inside in value.values():
            yield from _class_names(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _class_names(inside)


def _feature_classes() -> set[str]:
    import tensorflow_datasets as tfds

    classes = [
        value
        for value in vars(tfds.features).values()
        if isinstance(value, type) and issubclass(value, tfds.features.FeatureConnector)
    ]
    return {f"{value.__module__}.{value.__name__}" for value in classes}
