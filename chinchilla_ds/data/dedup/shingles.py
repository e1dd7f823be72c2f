"""Shingles: text normalised for comparison, and 64-bit hashes of its runs of characters or words."""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.bands import Unit
from chinchilla_ds.data.words import characters, comparable, words

_BASE = 0x9E3779B97F4A7C15
"""Base of the polynomial hashes, modulo 2^64; odd, so that it has an inverse."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")


def normalise(text: str, /, *, unit: Unit) -> str:
    """Return the normalised form of a text for comparison; the text itself is never changed.

    Both units: NFKC, lower case, no layout-only characters; white space becomes single spaces. If nothing would be
    left, only white space is collapsed.

    Characters, as SlimPajama's to_hash.py: punctuation is deleted, here that of all scripts; so is the space beside a
    character of a script without spaces. Words, after FineWeb's settings of datatrove's simplify_text: each number
    becomes 0; punctuation and control characters become white space; combining marks are deleted after NFD. In scripts
    without spaces, a character with its marks is a word.
    """
    if unit is Unit.CHARACTER:
        normalised = characters(text)
    else:
        normalised = " ".join(words(_NUMBER.sub("0", comparable(text))))
        normalised = normalised if normalised.isascii() else " ".join(_without_marks(normalised).split())
    return normalised or " ".join(text.split())


def _without_marks(text: str) -> str:
    """Return the text in NFD without its combining marks."""
    decomposed = unicodedata.normalize("NFD", text)
    for character in set(decomposed):
        if unicodedata.category(character) == "Mn":
            decomposed = decomposed.replace(character, "")
    return decomposed


def pieces(normalised: str, /, *, unit: Unit, size: int, units: int) -> Iterator[str]:
    """Split a long text into parts of at most `units` shingles, which together have exactly its shingles.

    Args:
        normalised: the normalised text.
        unit: the unit of a shingle.
        size: units per shingle.
        units: largest number of shingles of a part.
    """
    if len(normalised) <= units:
        yield normalised
        return
    if unit is Unit.CHARACTER:
        for start in range(0, max(len(normalised) - size + 1, 1), units):
            yield normalised[start : start + units + size - 1]
        return
    words = normalised.split(" ")
    for start in range(0, max(len(words) - size + 1, 1), units):
        yield " ".join(words[start : start + units + size - 1])


def shingle_hashes(parts: Sequence[str], /, *, unit: Unit, size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the hashes of all shingles, part after part, and the offset of each part's first: [shingles], [parts + 1].

    A part with fewer units than `size` has a single shingle, the whole part; an empty part has none.

    Args:
        parts: Normalised texts, without line ends.
        unit: What a shingle is made of.
        size: Units per shingle.
    """
    if unit is Unit.CHARACTER:
        units = _codes("".join(parts)).astype(np.uint64)
        counts = np.fromiter((len(part) for part in parts), dtype=np.int64, count=len(parts))
    else:
        units, counts = _word_hashes(parts)
    return _window_hashes(units, counts=counts, size=size)


def mix(values: NDArray[np.uint64], /) -> NDArray[np.uint64]:
    """Return a bijective scrambling of 64-bit values (SplitMix64's finaliser, Steele et al. 2014)."""
    mixed = values + np.uint64(_BASE)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4").astype(np.uint32, copy=False)


def _word_hashes(parts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return the hash of each word, and the number of words of each part: [words], [parts]."""
    codes = _codes("\n".join([*parts, ""]))
    line_ends = np.flatnonzero(codes == ord("\n"))
    ends = np.flatnonzero((codes == ord(" ")) | (codes == ord("\n")))
    starts = np.concatenate([[0], ends[:-1] + 1])
    word = ends > starts  # an empty part gives an empty word, which does not count
    starts, ends = starts[word], ends[word]
    sums, inverse = _sums(codes.astype(np.uint64))
    before = np.searchsorted(ends, line_ends, side="right")
    return mix((sums[ends] - sums[starts]) * inverse[starts]), np.diff(before, prepend=0)


def _window_hashes(
    units: NDArray[np.uint64], *, counts: NDArray[np.int64], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    windows = np.where(counts > 0, np.maximum(counts - size + 1, 1), 0)
    offsets = np.concatenate([[0], np.cumsum(windows)])
    part_ends = np.cumsum(counts)
    starts = np.arange(offsets[-1]) + np.repeat(part_ends - counts - offsets[:-1], windows)
    ends = np.minimum(starts + size, np.repeat(part_ends, windows))
    sums, inverse = _sums(units)
    hashes = (sums[ends] - sums[starts]) * inverse[starts]
    return mix(hashes + (ends - starts).astype(np.uint64)), offsets.astype(np.uint64)


def _sums(units: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the prefix sums of u_i B^i, and the powers of 1/B, modulo 2^64: [units + 1], [units + 1]."""
    powers, inverse = _powers(1 << max(len(units), 1).bit_length())
    sums = np.zeros(len(units) + 1, dtype=np.uint64)
    np.cumsum(units * powers[: len(units)], out=sums[1:])
    return sums, inverse


@functools.lru_cache(maxsize=2)
def _powers(number: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    def of(base: int) -> NDArray[np.uint64]:
        factors = np.full(number, base, dtype=np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return of(_BASE), of(pow(_BASE, -1, 2**64))
