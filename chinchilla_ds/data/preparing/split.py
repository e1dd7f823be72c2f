"""Train and held-out documents, separated by content hash: the same text is always on the same side.

Also the sample of training text for the tokenizer, chosen by content and seed alone.
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
"""Largest part of a single document in that sample, bytes."""

_TOP_BITS = 16


@dataclass(frozen=True, kw_only=True)
class FilteredSegment:
    """A segment, and which of its documents are kept."""

    folder: Path
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
            return np.ones(len(Segment(self.folder).hashes), dtype=np.bool_)
        return np.asarray(np.load(self.verdict / KEEP_NAME))

    def hashes_and_sizes(self) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
        """Return content hashes and bytes of the kept documents."""
        keep, segment = self.keep(), Segment(self.folder)
        return segment.hashes[keep], segment.sizes[keep]


def is_held_out(hashes: "npt.NDArray[np.uint64]", /, *, threshold: int) -> "npt.NDArray[np.bool_]":
    """Return which documents are held out, by their content hashes: those below the threshold, [documents]."""
    import numpy as np

    return hashes < np.uint64(threshold)


def held_out_threshold(segments: Sequence[FilteredSegment], /, *, held_out_fraction: float, fates: str = "") -> int:
    """Return the hash below which a document is held out.

    The documents with the lowest hashes are held out until they make up `held_out_fraction` of the bytes: at least one
    distinct document is held out, and at least one is left for training. Two passes over the hashes; memory does not
    grow with the corpus.

    Args:
        segments: All segments.
        held_out_fraction: Share of the bytes.
        fates: The fates of the documents that were read, for messages.

    Raises:
        DataError: there are fewer than two distinct documents.
    """
    import numpy as np

    totals = np.zeros(2**_TOP_BITS, dtype=np.int64)
    lowest, highest = 2**64, -1
    for segment in segments:
        hashes, sizes = segment.hashes_and_sizes()
        if len(hashes):
            np.add.at(totals, hashes >> np.uint64(64 - _TOP_BITS), sizes)
            lowest, highest = min(lowest, int(hashes[0])), max(highest, int(hashes[-1]))
    if highest < 0:
        raise DataError(f"the corpus holds no text{fates and f': {fates}'}")
    if lowest == highest:
        details = fates and f" ({fates})"
        raise DataError(f"the corpus is a single document{details}; a held-out part needs at least 2")
    before = np.cumsum(totals) - totals
    wanted = held_out_fraction * int(totals.sum())
    return _threshold(segments, wanted=wanted, before=before, totals=totals, highest=highest)


def _threshold(
    segments: Sequence[FilteredSegment],
    *,
    wanted: float,
    before: "npt.NDArray[np.int64]",
    totals: "npt.NDArray[np.int64]",
    highest: int,
) -> int:
    """Return the lowest hash, above the first, below which there are `wanted` bytes, searching bucket by bucket."""
    import numpy as np

    start = int(np.searchsorted(before, wanted))  # the first bucket with enough bytes before it
    for bucket in range(max(0, start - 1), 2**_TOP_BITS):
        if not totals[bucket]:
            continue
        hashes, sizes = _bucket(segments, bucket)
        order = np.argsort(hashes, kind="stable")
        held_out = before[bucket] + np.cumsum(sizes[order]) - sizes[order]
        enough = (held_out >= wanted) & (held_out > 0)
        enough &= np.concatenate(([True], hashes[order][1:] != hashes[order][:-1]))
        if enough.any():
            return int(hashes[order][np.argmax(enough)])
    return highest


def _bucket(segments: Sequence[FilteredSegment], bucket: int) -> "tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]":
    """Return hashes and sizes of the kept documents whose hash begins with `bucket`."""
    import numpy as np

    low = np.uint64(bucket << (64 - _TOP_BITS))
    high = np.uint64((bucket << (64 - _TOP_BITS)) | ((1 << (64 - _TOP_BITS)) - 1))
    blocks = []
    for segment in segments:
        hashes, sizes = segment.hashes_and_sizes()
        within = slice(np.searchsorted(hashes, low), np.searchsorted(hashes, high, side="right"))
        blocks.append((hashes[within], sizes[within]))
    return np.concatenate([hashes for hashes, _ in blocks]), np.concatenate([sizes for _, sizes in blocks])


def tokenizer_sample(segments: Sequence[FilteredSegment], /, *, threshold: int, seed: int) -> list[bytes]:
    """Return `SAMPLE_BYTES` of the training documents, in an order that depends on content and seed alone.

    Every document has a rank, a hash of its content hash and the seed; those with the lowest ranks are chosen. Only
    the beginning of a long one is used, cut between two characters.

    Args:
        segments: all segments.
        threshold: documents with a lower content hash are held out.
        seed: chooses the documents.
    """
    import numpy as np

    total = sum(int(segment.hashes_and_sizes()[1].sum()) for segment in segments)
    share = min(1.0, 2 * SAMPLE_BYTES / max(total, 1))
    while True:
        rows = list(_candidates(segments, threshold=threshold, seed=seed, share=share))
        ranks, hashes, sizes = (np.concatenate([row[field] for row in rows]) for field in range(3))
        _, first = np.unique(ranks, return_index=True)  # ordered by rank; copies count once
        ends = np.cumsum(np.minimum(sizes[first], SAMPLE_DOCUMENT_BYTES))
        if share == 1.0 or (len(ends) and ends[-1] >= SAMPLE_BYTES):
            break
        share = min(1.0, 4 * share)
    chosen = hashes[first[: 1 + int(np.searchsorted(ends, SAMPLE_BYTES))]]
    texts = _texts(segments, set(chosen.tolist()))
    return [texts[content] for content in chosen.tolist()]


def _candidates(
    segments: Sequence[FilteredSegment], *, threshold: int, seed: int, share: float
) -> "Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.int64]]]":
    """Yield rank, hash and size of the training documents whose rank is in the lowest `share` of all ranks."""
    import numpy as np

    highest = np.uint64(min(int(share * 2**64), 2**64 - 1))
    for segment in segments:
        hashes, sizes = segment.hashes_and_sizes()
        ranks = _ranks(hashes, seed=seed)
        chosen = (ranks <= highest) & ~is_held_out(hashes, threshold=threshold)
        yield ranks[chosen], hashes[chosen], sizes[chosen]


def _ranks(hashes: "npt.NDArray[np.uint64]", *, seed: int) -> "npt.NDArray[np.uint64]":
    """Return the image of each hash under a permutation of the 64-bit numbers: splitmix64's finaliser on hash + salt.

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 17.
    """
    import numpy as np

    salt = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest())
    mixed = hashes + np.uint64(salt)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _texts(segments: Sequence[FilteredSegment], wanted: set[int]) -> dict[int, bytes]:
    import numpy as np

    chosen = np.array(sorted(wanted), dtype=np.uint64)
    texts: dict[int, bytes] = {}
    for filtered in segments:
        segment = Segment(filtered.folder)
        (rows,) = np.nonzero(np.isin(segment.hashes, chosen))
        for row, document in zip(rows, segment.documents(rows), strict=True):
            short = document[:SAMPLE_DOCUMENT_BYTES].decode(errors="ignore").encode()
            texts.setdefault(int(segment.hashes[row]), short)
    return texts
