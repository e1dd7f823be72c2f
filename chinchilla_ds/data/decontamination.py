"""Decontamination: training documents that share a run of words with a benchmark are found, so that they are dropped.

Source: Brown et al. 2020 (GPT-3, arXiv:2005.14165), appendix C: overlaps of 13 words, lower-cased and without
punctuation. GPT-3 cut 200 characters around an overlap; here the caller drops the whole document.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.bands import Unit
from chinchilla_ds.data.dedup.shingles import shingle_hashes, without_punctuation
from chinchilla_ds.errors import DataError, reason

DEFAULT_WORDS = 13
"""Words of an overlap: GPT-3's."""


class Contamination:
    """The runs of `n` words of benchmark texts, as sorted 64-bit hashes: 8 bytes of memory per run.

    Words are what white space and punctuation leave between them, in lower case. A benchmark text of fewer than n words
    has no run and cannot be found; `num_short` counts these.
    """

    def __init__(self, texts: Iterable[str], /, *, n: int = DEFAULT_WORDS) -> None:
        self.n = n
        self.num_texts = self.num_short = 0
        hashes = [np.empty(0, dtype=np.uint64)]
        for text in texts:
            _, found = _runs(text, n=n)
            self.num_texts += 1
            self.num_short += len(found) == 0
            hashes.append(found)
        self._hashes = np.unique(np.concatenate(hashes))

    @property
    def num_runs(self) -> int:
        """Distinct runs of n words that are looked for."""
        return len(self._hashes)

    def overlap(self, text: str, /) -> tuple[str, ...]:
        """Return the runs of n words that a text shares with the benchmarks, in its order, normalised."""
        words, found = _runs(text, n=self.n)
        if not len(found) or not len(self._hashes):
            return ()
        nearest = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        shared = np.flatnonzero(self._hashes[nearest] == found)
        return tuple(" ".join(words[start : start + self.n]) for start in shared)


def _runs(text: str, *, n: int) -> tuple[list[str], NDArray[np.uint64]]:
    """Return the words of a text, and the hash of each run of n of them: [max(words - n + 1, 0)]."""
    words = without_punctuation(text.lower()).split()
    if len(words) < n:
        return words, np.empty(0, dtype=np.uint64)
    return words, shingle_hashes([" ".join(words)], unit=Unit.WORD, size=n)[0]


def read_benchmarks(paths: Sequence[Path], /) -> Iterator[str]:
    """Yield the texts of benchmark files: of .jsonl every string in each line, of other files the whole file.

    Raises:
        DataError: a file is missing, empty, not UTF-8, or has a line that is no JSON; every problem is listed.
    """
    problems: list[str] = []
    texts: list[str] = []
    for path in paths:
        try:
            content = path.read_text(encoding="utf-8")
        except OSError as error:
            problems.append(f"{path}: {reason(error)}")
            continue
        except UnicodeDecodeError as error:
            problems.append(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}")
            continue
        if not content.strip():
            problems.append(f"{path} is empty: a benchmark file holds the texts that must not be trained on")
        texts += _strings_of_lines(path, content, problems) if path.suffix == ".jsonl" else [content]
    if problems:
        raise DataError(problems)
    yield from texts


def _strings_of_lines(path: Path, content: str, problems: list[str]) -> list[str]:
    texts: list[str] = []
    for number, line in enumerate(content.split("\n"), start=1):
        try:
            texts += _strings(json.loads(line)) if line.strip() else []
        except ValueError as error:
            problems.append(f"{path}:{number}: no JSON: {error}")
    return texts


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value; not the names of its fields."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
