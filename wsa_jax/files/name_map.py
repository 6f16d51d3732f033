"""Maps between the names of another library's files and ours: a table, read in both directions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from wsa_jax.door import check_fields, door
from wsa_jax.files.layouts import SAME, Layout
from wsa_jax.files.model_file import ModelFileError, listed
from wsa_jax.files.names import flatten, unflatten

__all__ = ["Entry", "NameMap"]

Names = str | tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One line of a name map.

    Attributes:
      theirs: the name in the file, in which ``{anything}`` stands for what is between two dots; or
        several names, whose arrays are joined along their first axis.
      ours: the name of the same leaf in our tree, its path joined by dots, with the same
        placeholders; or several names, among which their first axis is divided equally, as where
        one array holds queries, keys and values. None for what we have no place for: it is left
        out, and not written again.
      layout: how the axes change, after joining and dividing.
      optional: whether a file, or a tree, may lack it.

    Raises:
      ValueError: the placeholders of the names differ.

    >>> Entry("fc.weight", "params.Dense_{i}.kernel")
    Traceback (most recent call last):
    ValueError: params.Dense_{i}.kernel has placeholders ['i'], but fc.weight has []; ...
    """

    theirs: Names
    ours: Names | None
    layout: Layout = SAME
    optional: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        names = [*_several(self.theirs), *_several(self.ours)]
        fields = [sorted(set(_PLACEHOLDER.findall(name))) for name in names]
        for name, found in zip(names, fields, strict=True):
            if found != fields[0]:
                raise ValueError(
                    f"{name} has placeholders {found}, but {names[0]} has {fields[0]}; give the "
                    "same in all names of an entry"
                )


@dataclass(frozen=True)
class NameMap:
    """A table of entries by which models go from files of another library to ours, and back.

    Attributes:
      name: what the table is for, as messages call it.
      entries: its lines; where several fit a name, the first does.

    Guarantees: every name has exactly one line and every line a name, unless it is optional: else
    the error lists them, up to ten. Nothing is rounded, so a file that was read and written again
    is the same, but for names that are left out.

    >>> from wsa_jax.files.layouts import DENSE
    >>> mlp = NameMap("mlp", (
    ...     Entry("layers.{i}.weight", "params.Dense_{i}.kernel", DENSE),
    ...     Entry("layers.{i}.bias", "params.Dense_{i}.bias"),
    ... ))
    >>> theirs = {"layers.0.weight": np.ones((2, 3)), "layers.0.bias": np.ones(2)}
    >>> mlp.to_ours(theirs)["params"]["Dense_0"]["kernel"].shape
    (3, 2)
    >>> list(mlp.to_theirs(mlp.to_ours(theirs)))
    ['layers.0.weight', 'layers.0.bias']
    >>> mlp.to_ours({**theirs, "head.weight": np.ones(2)})
    Traceback (most recent call last):
    wsa_jax.files.model_file.ModelFileError: the map mlp has no entry for head.weight; ...
    """

    name: str
    entries: tuple[Entry, ...]

    @door
    def to_ours(self, leaves: Mapping) -> PyTree:
        """Nested dictionaries under our names, of a dictionary or open file under theirs.

        Raises:
          ModelFileError: a name has no entry, an entry no name, or shapes cannot be divided.
        """
        found: dict[str, np.ndarray] = {}
        for place in self._places(list(leaves), [e.theirs for e in self.entries], "the file"):
            entry, names = self.entries[place.entry], place.names
            if entry.ours is None:
                continue
            whole = _joined([np.asarray(leaves[name]) for name in names])
            ours = [name.format(**place.fields) for name in _several(entry.ours)]
            for one, part in zip(ours, _divided(whole, len(ours), names[0]), strict=True):
                found[one] = _changed(entry.layout.to_ours, part, names[0])
        return unflatten(found)

    @door
    def to_theirs(self, params: PyTree) -> dict[str, np.ndarray]:
        """A flat dictionary under their names, of a tree under ours.

        Raises:
          ModelFileError: a name has no entry, an entry no name, or shapes cannot be divided.
        """
        leaves = flatten(params)
        found: dict[str, np.ndarray] = {}
        patterns = [entry.ours for entry in self.entries]
        for place in self._places(list(leaves), patterns, "the tree"):
            entry, names = self.entries[place.entry], place.names
            parts = [_changed(entry.layout.to_theirs, np.asarray(leaves[n]), n) for n in names]
            theirs = [name.format(**place.fields) for name in _several(entry.theirs)]
            pieces = _divided(_joined(parts), len(theirs), names[0])
            found |= {
                name: np.ascontiguousarray(part) for name, part in zip(theirs, pieces, strict=True)
            }
        return found

    def left_out(self, names: Sequence[str]) -> list[str]:
        """The names of a file that have no place in our tree."""
        patterns = [entry.theirs for entry in self.entries]
        places = self._places(names, patterns, "the file")
        return [
            n for place in places if self.entries[place.entry].ours is None for n in place.names
        ]

    def fits(self, names: Sequence[str]) -> bool:
        """Whether a file with these names is one of theirs."""
        try:
            list(self._places(names, [entry.theirs for entry in self.entries], "the file"))
        except ModelFileError:
            return False
        return True

    def _places(
        self, names: Sequence[str], patterns: Sequence[Names | None], where: str
    ) -> Iterator["_Place"]:
        """Each use of an entry: which names it is for. Every name is used once."""
        given, used = set(names), set()
        places, unmet = [], []
        for index, pattern in enumerate(patterns):
            parts = _several(pattern)
            before = len(places)
            regex = _regex(parts[0] if parts else "")
            for name in names:
                match = regex.fullmatch(name) if parts and name not in used else None
                if match is None:
                    continue
                group = tuple(part.format(**match.groupdict()) for part in parts)
                unmet += [one for one in group if one not in given]
                used |= set(group)
                places.append(_Place(index, match.groupdict(), group))
            if parts and len(places) == before and not self._may_lack(index):
                unmet.append(parts[0])
        if more := [name for name in names if name not in used]:
            raise ModelFileError(
                f"the map {self.name} has no entry for {listed(more)}; add one for each, with None "
                "for what is to be left out"
            )
        if unmet:
            raise ModelFileError(f"{where} lacks {listed(unmet)}, which the map {self.name} needs")
        return iter(places)

    def _may_lack(self, index: int) -> bool:
        return self.entries[index].optional or self.entries[index].ours is None


class _Place(NamedTuple):
    entry: int
    fields: dict[str, int | str]
    names: tuple[str, ...]


_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def _several(names: Names | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def _regex(pattern: str) -> re.Pattern[str]:
    """A placeholder is anything between dots, the same wherever it stands."""
    parts, seen = [], set()
    for index, part in enumerate(_PLACEHOLDER.split(pattern)):
        if index % 2 == 0:
            parts.append(re.escape(part))
        else:
            parts.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^.]+)")
            seen.add(part)
    return re.compile("".join(parts))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _divided(whole: np.ndarray, count: int, name: str) -> Sequence[np.ndarray]:
    if count == 1:
        return [whole]
    if not whole.ndim or len(whole) % count:
        raise ModelFileError(
            f"leaf {name} of shape {list(whole.shape)} cannot be divided into {count} equal parts"
        )
    return np.split(whole, count)


def _changed(
    change: Callable[[np.ndarray], np.ndarray], array: np.ndarray, name: str
) -> np.ndarray:
    try:
        return change(array)
    except ValueError as error:
        raise ModelFileError(
            f"leaf {name} of shape {list(array.shape)} does not have the axes that the map gives "
            f"it ({error})"
        ) from error
