"""Whether files hold models of one architecture, told before any work."""

from collections.abc import Sequence

from wsa_jax.files.model_file import ModelFile, ModelFileError, listed


def check_same(files: Sequence[ModelFile]) -> None:
    """Raise a ModelFileError that lists, up to ten, the leaves in which files differ."""
    first = files[0]
    for other in files[1:]:
        if missing := [name for name in first if name not in other]:
            _refuse(first, other, f"{other.path} lacks {listed(missing)}")
        if more := [name for name in other if name not in first]:
            _refuse(first, other, f"{first.path} lacks {listed(more)}")
        shapes = [
            f"{name} {list(shape.shape)} and {list(other.shapes[name].shape)}"
            for name, shape in first.shapes.items()
            if shape.shape != other.shapes[name].shape
        ]
        if shapes:
            _refuse(first, other, f"their shapes differ: {listed(shapes)}")
        kinds = [
            f"{name} {shape.dtype} and {other.shapes[name].dtype}"
            for name, shape in first.shapes.items()
            if shape.dtype != other.shapes[name].dtype
        ]
        if kinds:
            _refuse(first, other, f"their types differ: {listed(kinds)}; convert one of them")


def _refuse(first: ModelFile, other: ModelFile, why: str) -> None:
    raise ModelFileError(f"{first.path} and {other.path} are not of one architecture: {why}")
