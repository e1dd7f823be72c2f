"""Signatures: text to normalised shingles, to MinHash values, to one key per band and a byte per hash function."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.bands import MinHashConfig
from chinchilla_ds.data.dedup.shingles import mix, normalise, pieces, shingle_hashes

BLOCK_UNITS = 1 << 18
"""Shingles hashed at a time, about 100 bytes of memory each; longer texts are split and their minima combined."""


def band_keys(texts: Sequence[str], /, *, config: MinHashConfig) -> NDArray[np.uint64]:
    """Return the keys by which pairs of near duplicates are found: [texts, config.num_columns].

    The first `bands` columns are the keys of the bands: two texts that share a key are a candidate pair. The
    others hold the lowest byte of each hash value, by which candidate pairs are checked (see `agreeing`).

    The result for a text depends on the text and `config` alone, not on the batch, the process or the order. A text
    with fewer units than a shingle has a single shingle, the whole text, and so is a duplicate only of an equal one
    (after normalisation). A text of white space alone has none; all such texts are duplicates of each other.
    """
    values = signatures(texts, config=config)
    banded = values[:, : config.bands * config.rows].reshape(len(texts), config.bands, config.rows)
    keys = np.zeros((len(texts), config.bands), dtype=np.uint64)
    for row in range(config.rows):
        keys = mix(keys ^ banded[:, :, row])
    low_bytes = np.zeros((len(texts), 8 * (config.num_columns - config.bands)), dtype=np.uint8)
    low_bytes[:, : config.num_permutations] = values & np.uint32(0xFF)
    return np.concatenate([keys, low_bytes.view(np.uint64)], axis=1)


def agreeing(first: NDArray[np.uint64], second: NDArray[np.uint64], /, *, config: MinHashConfig) -> NDArray[np.int64]:
    """Return how many hash values agree in each pair of rows of `band_keys`: [pairs].

    Only the lowest bytes are compared, so about one in 256 values that differ counts as agreeing.

    Args:
        first: rows of `band_keys`, [pairs, columns].
        second: the rows to compare them with, [pairs, columns].
        config: gives the number of bands and permutations.
    """
    low_bytes = [
        np.ascontiguousarray(rows[:, config.bands :]).view(np.uint8)[:, : config.num_permutations]
        for rows in (first, second)
    ]
    return np.asarray(np.count_nonzero(low_bytes[0] == low_bytes[1], axis=1))


def signatures(texts: Sequence[str], /, *, config: MinHashConfig) -> NDArray[np.uint32]:
    """Return the MinHash values of each text: [texts, num_permutations].

    rensa's RMinHash over shingle hashes. Its estimate of the Jaccard index is unbiased and its bands collide as often
    as independent hash functions would; the tests measure both. Its "rho" variant is biased, and is not used.
    """
    from rensa import RMinHash  # type: ignore[import-untyped]

    values = np.full((len(texts), config.num_permutations), 0xFFFFFFFF, dtype=np.uint32)
    for owners, parts in _blocks(texts, config=config):
        hashes, offsets = shingle_hashes(parts, unit=config.unit, size=config.shingle_size)
        rows = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, config.num_permutations, config.seed)
        np.minimum.at(values, owners, np.array(rows.to_rows(), dtype=np.uint32))
    return values


def _blocks(texts: Sequence[str], *, config: MinHashConfig) -> Iterator[tuple[list[int], list[str]]]:
    """Yield blocks of parts of texts, each of about BLOCK_UNITS characters, and the text that each part belongs to."""
    owners: list[int] = []
    parts: list[str] = []
    size = 0
    for owner, text in enumerate(texts):
        normalised = normalise(text, unit=config.unit)
        for part in pieces(normalised, unit=config.unit, size=config.shingle_size, units=BLOCK_UNITS):
            owners.append(owner)
            parts.append(part)
            size += len(part)
            if size >= BLOCK_UNITS:
                yield owners, parts
                owners, parts, size = [], [], 0
    if parts:
        yield owners, parts
