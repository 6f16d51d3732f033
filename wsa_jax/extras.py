"""Libraries that only parts of this one need: each comes with an extra of the package."""

import importlib.util
from typing import NamedTuple

__all__ = ["MissingExtraError", "require"]


class _Optional(NamedTuple):
    """The package that holds a module, and the extra that installs it."""

    package: str
    extra: str


_OPTIONAL = {
    "PIL": _Optional("pillow", "data"),
    "array_record": _Optional("array-record", "data"),
    "equinox": _Optional("equinox", "test"),
    "ot": _Optional("POT", "transport"),
    "matplotlib": _Optional("matplotlib", "plots"),
    "rich": _Optional("rich", "cli"),
    "safetensors": _Optional("safetensors", "files"),
    "sklearn": _Optional("scikit-learn", "data"),
    "tensorboardX": _Optional("tensorboardX", "tensorboard"),
    "tyro": _Optional("tyro", "cli"),
    "yaml": _Optional("pyyaml", "files"),
}


class MissingExtraError(ImportError):
    """A library that is installed by an extra is not there; the message says how to get it."""


def require(module: str, purpose: str) -> None:
    """Refuse in one line what needs an optional library that is not installed.

    Call it before the import, which then cannot fail.

    Args:
      module: the module's name, as it is imported.
      purpose: what needs it, as the message's first words.

    Raises:
      MissingExtraError: the module is not installed.

    >>> require("matplotlib", "a figure")
    """
    if importlib.util.find_spec(module) is None:
        package, extra = _OPTIONAL[module]
        raise MissingExtraError(
            f"{purpose} needs {package}, which is not installed; run pip install {package} "
            f"(the extra {extra!r} of wsa-jax installs it)"
        )
