"""Candidate pairs: documents that share a band key, checked by their signatures, as edges between documents.

A document is known by its ordinal: its place in the concatenation of all shards.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chinchilla_ds.data.dedup.bands import MinHashConfig
from chinchilla_ds.data.dedup.exchange import key_range, read_range, write_array
from chinchilla_ds.data.dedup.minhash import agreeing
from chinchilla_ds.data.dedup.shingles import mix

CONTENT_HASH_NAME = "content_hash.npy"
"""In a shard's folder, uint64 [documents] or [documents, 2]: the hash of each cleaned text."""
SOURCE_NAME = "source.npy"
"""In a shard's folder, unsigned integers [documents]: the index of each document's source in the sorted names."""
BAND_KEYS_NAME = "band_keys.npy"
"""In a shard's folder, the result of `band_keys`, [documents, columns]; absent if only exact copies are found."""

TASK_RECORDS = 1 << 16
"""Approximate number of records that a task reads from the runs."""

KEYED = np.dtype([("key", "<u8"), ("hash", "<u8"), ("ordinal", "<u8")])
"""Record of a document under one of its keys, with the first 64 bits of its content hash."""


@dataclass(frozen=True, kw_only=True)
class DedupJob:
    """The data shared by every task."""

    shards: tuple[Path, ...]
    num_documents: tuple[int, ...]
    """Documents of each shard."""
    config: MinHashConfig | None
    folder: Path

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Ordinal of each shard's first document, and their total: [shards + 1]."""
        return np.concatenate([[0], np.cumsum(self.num_documents, dtype=np.int64)])

    @property
    def num_bands(self) -> int:
        """Keys per document; exact copies are found by one, made of the content hash."""
        return 1 if self.config is None else self.config.bands

    @property
    def num_ranges(self) -> int:
        """Number of ranges of keys, each with about TASK_RECORDS documents of a band."""
        return max(1, -(-int(self.offsets[-1]) // TASK_RECORDS))

    @property
    def runs(self) -> list[Path]:
        """One file per shard: KEYED [bands, documents], each row sorted."""
        return [self.folder / "runs" / f"{index:06d}.npy" for index in range(len(self.shards))]

    @property
    def edges(self) -> list[Path]:
        """One file per band and range: pairs of ordinals of duplicates, int64 [edges, 2]."""
        parts = self.num_bands * self.num_ranges
        return [self.folder / "edges" / f"{index:06d}.npy" for index in range(parts)]

    def content_hashes(self, shard: int) -> NDArray[np.uint64]:
        """Return the hashes of a shard's texts, 64-bit ones padded with zeros: [documents, 2]."""
        hashes = np.load(self.shards[shard] / CONTENT_HASH_NAME)
        return hashes if hashes.ndim == 2 else np.stack([hashes, np.zeros_like(hashes)], axis=1)


def sort_keys(shard: int, /, *, job: DedupJob) -> None:
    """Write a shard's run: its documents sorted by each band's key."""
    hashes = job.content_hashes(shard)
    if job.config is None:
        keys = mix(mix(hashes[:, 0].copy()) ^ hashes[:, 1])[:, None]
    else:
        keys = np.load(job.shards[shard] / BAND_KEYS_NAME, mmap_mode="r")
    run = np.empty((job.num_bands, len(hashes)), dtype=KEYED)
    for band in range(job.num_bands):
        column = np.ascontiguousarray(keys[:, band])
        order = np.argsort(column, kind="stable")
        run[band]["key"], run[band]["hash"] = column[order], hashes[order, 0]
        run[band]["ordinal"] = order + int(job.offsets[shard])
    write_array(job.runs[shard], run)


def match_keys(part: int, /, *, job: DedupJob) -> None:
    """Write the edges of one range of one band's keys.

    All documents of a key are compared with the one with the smallest content hash, so that the edges do not
    depend on the order and the shards.
    """
    band, index = divmod(part, job.num_ranges)
    low, high = key_range(index, number=job.num_ranges)
    records = read_range(job.runs, low=low, high=high, row=band)
    records = records[np.lexsort((records["ordinal"], records["hash"], records["key"]))]
    first = np.flatnonzero(np.diff(records["key"], prepend=~records["key"][:1]))
    centre = np.repeat(records["ordinal"][first], np.diff(first, append=len(records)))
    pairs = np.stack([centre, records["ordinal"]], axis=1).astype(np.int64)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if job.config is not None and job.config.min_similarity > 0:
        pairs = pairs[_similar(pairs, job=job, config=job.config)]
    write_array(job.edges[part], pairs)


def _similar(pairs: NDArray[np.int64], *, job: DedupJob, config: MinHashConfig) -> NDArray[np.bool_]:
    similar = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), TASK_RECORDS):
        block = pairs[start : start + TASK_RECORDS]
        nodes, inverse = np.unique(block, return_inverse=True)
        keys, places = _rows(nodes, job=job, columns=config.num_columns), inverse.reshape(block.shape)
        agree = agreeing(keys[places[:, 0]], keys[places[:, 1]], config=config)
        similar[start : start + len(block)] = agree >= config.min_agreeing
    return similar


def _rows(ordinals: NDArray[np.int64], *, job: DedupJob, columns: int) -> NDArray[np.uint64]:
    """Return the rows of band keys of these documents, whose ordinals ascend: [ordinals, columns]."""
    rows = np.empty((len(ordinals), columns), dtype=np.uint64)
    bounds = np.searchsorted(ordinals, job.offsets)
    for shard, (first, last) in enumerate(pairwise(bounds)):
        if first < last:
            keys = np.load(job.shards[shard] / BAND_KEYS_NAME, mmap_mode="r")
            rows[first:last] = keys[ordinals[first:last] - job.offsets[shard]]
    return rows
