"""Train and held-out documents, separated by content hash: the same text always falls on the same side.

And a sample of the training text, chosen by content and seed alone, for the tokenizer.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.dedup.components import KEEP_NAME
from chinchilla_ds.data.preparing.segments import Segment
from chinchilla_ds.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

NEAR_NAME = "near.npy"
"""In a folder of `held_out.find_near`, bool [documents]: training documents similar to a held-out one."""

SAMPLE_BYTES = 8 * 1024 * 1024
"""Largest size of the tokenizer's training text, bytes."""

SAMPLE_DOCUMENT_BYTES = 64 * 1024
"""Largest part of one document in that sample, bytes."""

_TOP_BITS = 16


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A segment, and which of its documents are kept."""

    segment: Path
    verdict: Path | None
    """Folder with the verdict on duplicates; None keeps all."""
    near_held_out: Path | None = None
    """Folder with the mask of training documents similar to held-out ones; None drops none."""

    def keep(self) -> "npt.NDArray[np.bool_]":
        """Return the mask of kept documents: [documents]."""
        import numpy as np

        keep = self.unique()
        return keep if self.near_held_out is None else keep & ~np.load(self.near_held_out / NEAR_NAME)

    def unique(self) -> "npt.NDArray[np.bool_]":
        """Return the mask of the documents that deduplication keeps: [documents]."""
        import numpy as np

        if self.verdict is None:
            return np.ones(len(Segment(self.segment).hashes), dtype=np.bool_)
        return np.asarray(np.load(self.verdict / KEEP_NAME))

    def hashes_and_sizes(self) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
        """Return content hashes and bytes of the kept documents."""
        keep, segment = self.keep(), Segment(self.segment)
        return segment.hashes[keep], segment.sizes[keep]


def is_held_out(hashes: "npt.NDArray[np.uint64]", /, *, threshold: int) -> "npt.NDArray[np.bool_]":
    """Return which documents are held out, by their content hashes: those below the threshold, [documents]."""
    import numpy as np

    return hashes < np.uint64(threshold)


def held_out_threshold(kept: Sequence[Kept], /, *, held_out_fraction: float, fates: str = "") -> int:
    """Return the hash below which a document is held out.

    Documents of the lowest hashes are held out until they make up `held_out_fraction` of the bytes: at least one
    distinct document, and at least one is left to train on. Two passes over the hashes; memory does not grow.

    Args:
        kept: All segments.
        held_out_fraction: Share of the bytes.
        fates: The fates of the documents that were read, for messages.

    Raises:
        DataError: there are fewer than two distinct documents.
    """
    import numpy as np

    totals = np.zeros(2**_TOP_BITS, dtype=np.int64)
    lowest, highest = 2**64, -1
    for one in kept:
        hashes, sizes = one.hashes_and_sizes()
        if len(hashes):
            np.add.at(totals, hashes >> np.uint64(64 - _TOP_BITS), sizes)
            lowest, highest = min(lowest, int(hashes[0])), max(highest, int(hashes[-1]))
    if highest < 0:
        raise DataError(f"the corpus holds no text{fates and f': {fates}'}")
    if lowest == highest:
        told = fates and f" ({fates})"
        raise DataError(f"the corpus is one single document{told}; a held-out part of its own needs at least 2")
    before = np.cumsum(totals) - totals
    wanted = held_out_fraction * int(totals.sum())
    return _threshold(kept, wanted=wanted, before=before, totals=totals, highest=highest)


def _threshold(
    kept: Sequence[Kept],
    *,
    wanted: float,
    before: "npt.NDArray[np.int64]",
    totals: "npt.NDArray[np.int64]",
    highest: int,
) -> int:
    """Find the lowest hash, above the first, before which there are `wanted` bytes, going up bucket by bucket."""
    import numpy as np

    start = int(np.searchsorted(before, wanted))  # the first bucket with enough bytes before it
    for bucket in range(max(0, start - 1), 2**_TOP_BITS):
        if not totals[bucket]:
            continue
        hashes, sizes = _bucket(kept, bucket)
        order = np.argsort(hashes, kind="stable")
        held_out = before[bucket] + np.cumsum(sizes[order]) - sizes[order]
        enough = (held_out >= wanted) & (held_out > 0)
        enough &= np.concatenate(([True], hashes[order][1:] != hashes[order][:-1]))
        if enough.any():
            return int(hashes[order][np.argmax(enough)])
    return highest


def _bucket(kept: Sequence[Kept], bucket: int) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
    """Return hashes and sizes of the kept documents whose hash begins with `bucket`."""
    import numpy as np

    low = np.uint64(bucket << (64 - _TOP_BITS))
    high = np.uint64((bucket << (64 - _TOP_BITS)) | ((1 << (64 - _TOP_BITS)) - 1))
    found = []
    for one in kept:
        hashes, sizes = one.hashes_and_sizes()
        within = slice(np.searchsorted(hashes, low), np.searchsorted(hashes, high, side="right"))
        found.append((hashes[within], sizes[within]))
    return np.concatenate([hashes for hashes, _ in found]), np.concatenate([sizes for _, sizes in found])


def tokenizer_sample(kept: Sequence[Kept], /, *, threshold: int, seed: int) -> list[bytes]:
    """Return `SAMPLE_BYTES` of the training documents, in an order that depends on content and seed alone.

    Every document has a rank, a hash of its content hash and the seed; those of the lowest ranks are taken. A long one
    gives its beginning, cut between two characters.

    Args:
        kept: all segments.
        threshold: documents with a lower content hash are held out.
        seed: chooses the documents.
    """
    import numpy as np

    total = sum(int(one.hashes_and_sizes()[1].sum()) for one in kept)
    share = min(1.0, 2 * SAMPLE_BYTES / max(total, 1))
    while True:
        rows = list(_candidates(kept, threshold=threshold, seed=seed, share=share))
        ranks, hashes, sizes = (np.concatenate([row[field] for row in rows]) for field in range(3))
        _, first = np.unique(ranks, return_index=True)  # in the order of ranks, and a copy is taken once
        ends = np.cumsum(np.minimum(sizes[first], SAMPLE_DOCUMENT_BYTES))
        if share == 1.0 or (len(ends) and ends[-1] >= SAMPLE_BYTES):
            break
        share = min(1.0, 4 * share)
    chosen = hashes[first[: 1 + int(np.searchsorted(ends, SAMPLE_BYTES))]]
    texts = _texts(kept, set(chosen.tolist()))
    return [texts[content] for content in chosen.tolist()]


def _candidates(
    kept: Sequence[Kept], *, threshold: int, seed: int, share: float
) -> "Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.int64]]]":
    """Yield rank, hash and size of the training documents whose rank is in the lowest `share` of all ranks."""
    import numpy as np

    highest = np.uint64(min(int(share * 2**64), 2**64 - 1))
    for one in kept:
        hashes, sizes = one.hashes_and_sizes()
        ranks = _ranks(hashes, seed=seed)
        chosen = (ranks <= highest) & ~is_held_out(hashes, threshold=threshold)
        yield ranks[chosen], hashes[chosen], sizes[chosen]


def _ranks(hashes: "npt.NDArray[np.uint64]", *, seed: int) -> "npt.NDArray[np.uint64]":
    """Return a permutation of the 64-bit numbers, of each hash: splitmix64's finaliser on hash + salt.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """
    import numpy as np

    salt = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest())
    mixed = hashes + np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _texts(kept: Sequence[Kept], wanted: set[int]) -> dict[int, bytes]:
    import numpy as np

    chosen = np.array(sorted(wanted), dtype=np.uint64)
    texts: dict[int, bytes] = {}
    for one in kept:
        segment = Segment(one.segment)
        (rows,) = np.nonzero(np.isin(segment.hashes, chosen))
        for row, document in zip(rows, segment.documents(rows), strict=True):
            short = document[:SAMPLE_DOCUMENT_BYTES].decode(errors="ignore").encode()
            texts.setdefault(int(segment.hashes[row]), short)
    return texts
