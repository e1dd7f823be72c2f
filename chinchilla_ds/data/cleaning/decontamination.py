"""Decontamination: finds training documents that share a run of words with a benchmark, to be dropped.

Source: Brown et al. 2020 (GPT-3, arXiv:2005.14165), appendix C: overlaps of 13 words, lower-cased and without
punctuation. GPT-3 cut 200 characters around an overlap; here the caller drops the whole document.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.bands import Unit
from chinchilla_ds.data.dedup.shingles import shingle_hashes
from chinchilla_ds.data.words import comparable, words
from chinchilla_ds.errors import DataError, reason
from chinchilla_ds.structured import open_regular, parse_json

DEFAULT_WORDS = 13
"""Number of words of an overlap; GPT-3's value."""

_JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The overlap of a text with the benchmarks."""

    runs: tuple[str, ...]
    """The shared runs of n words, in the text's order and in normalised form."""
    is_too_short: bool
    """Whether the text has fewer than n words, so that no overlap can be found."""


class Contamination:
    """The runs of `n` words of benchmark texts, as sorted 64-bit hashes: 8 bytes of memory per run.

    Words are those of `words.words`: in scripts without spaces, single characters. A benchmark text of fewer than n
    words has no run and cannot be found; `num_short` counts these.
    """

    def __init__(self, texts: Iterable[str], /, *, n: int = DEFAULT_WORDS) -> None:
        self.n = n
        self.num_texts = self.num_short = 0
        hashes = [np.empty(0, dtype=np.uint64)]
        for text in texts:
            _, runs = _runs(text, n=n)
            self.num_texts += 1
            self.num_short += len(runs) == 0
            hashes.append(runs)
        self._hashes = np.unique(np.concatenate(hashes))

    @property
    def num_runs(self) -> int:
        """Distinct runs of n words that are searched for."""
        return len(self._hashes)

    def overlap(self, text: str, /) -> Overlap:
        """Return the runs of n words that a text shares with the benchmarks."""
        units, hashes = _runs(text, n=self.n)
        shared: Iterable[int] = ()
        if len(hashes) and len(self._hashes):
            nearest = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
            shared = np.flatnonzero(self._hashes[nearest] == hashes)
        runs = tuple(" ".join(units[start : start + self.n]) for start in shared)
        return Overlap(runs=runs, is_too_short=len(units) < self.n)


def _runs(text: str, *, n: int) -> tuple[list[str], NDArray[np.uint64]]:
    """Return the words of a text, and the hash of each run of n of them: [max(words - n + 1, 0)]."""
    units = words(comparable(text))
    if len(units) < n:
        return units, np.empty(0, dtype=np.uint64)
    return units, shingle_hashes([" ".join(units)], unit=Unit.WORD, size=n)[0]


def read_contamination(paths: Sequence[Path], /) -> Contamination:
    """Return the runs of benchmark files.

    Raises:
        DataError: as `read_benchmarks`, or none of the texts is long enough to be found.
    """
    contamination = Contamination(read_benchmarks(paths))
    if contamination.num_runs == 0:
        raise DataError(
            f"none of the {contamination.num_texts} texts in {', '.join(map(str, paths))} has {contamination.n} words "
            "(in scripts without spaces: characters), so none can be found; give longer texts, or leave out "
            "`decontaminate`"
        )
    return contamination


def read_benchmarks(paths: Sequence[Path], /) -> Iterator[str]:
    """Yield the texts of benchmark files: every string in JSON and JSON lines, otherwise the whole file.

    Raises:
        DataError: a file is missing, empty, not UTF-8, or has a line that is not JSON; every problem is listed.
    """
    problems: list[str] = []
    texts: list[str] = []
    for path in paths:
        try:
            with open_regular(path) as stream:
                content = stream.read().decode("utf-8-sig")
        except OSError as error:
            problems.append(f"{path}: {reason(error)}")
            continue
        except UnicodeDecodeError as error:
            problems.append(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}")
            continue
        if not content.strip():
            problems.append(f"{path} is empty: a benchmark file holds the texts that must not be trained on")
        texts += _strings_of(path, content, problems) if path.suffix.lower() in _JSON_SUFFIXES else [content]
    if problems:
        raise DataError(problems)
    yield from texts


def _strings_of(path: Path, content: str, problems: list[str]) -> list[str]:
    """Return the strings of a file of JSON lines, or of one value; `.json` may be either."""
    lines = {f"{path}:{number}": line for number, line in enumerate(content.split("\n"), start=1) if line.strip()}
    if path.suffix.lower() == ".json" and not _is_json(next(iter(lines.values()), "")):
        lines = {str(path): content}
    texts: list[str] = []
    for where, line in lines.items():
        try:
            texts += _strings(parse_json(line, where=where, error=DataError))
        except DataError as error:
            problems.extend(error.problems)
    return texts


def _is_json(line: str) -> bool:
    try:
        parse_json(line, where="", error=DataError)
    except DataError:
        return False
    return True


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a JSON value, but not its field names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
