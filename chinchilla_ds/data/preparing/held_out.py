"""Near duplicates of held-out documents in the training set, found by a stricter search than other duplicates.

The bands of a preset find only some of the pairs with a Jaccard index of 0.8, 4 in 10 for `slimpajama`: enough to thin
out a corpus, but not to keep two parts of it disjoint. Held-out documents are few, so each training document is
compared with all of them in bands of `ROWS` hash values, which find a pair with probability
1 - (1 - J^ROWS)^(permutations / ROWS): for 128 permutations 0.990 at J = 0.7 and 0.99995 at 0.8. As in deduplication, a
share of `min_similarity` of all values must agree.

The keys of the held-out documents are mapped into memory, about 500 bytes per held-out document.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.dedup.bands import MinHashConfig
from chinchilla_ds.data.dedup.components import BAND_KEYS_NAME
from chinchilla_ds.data.preparing.segments import Segment
from chinchilla_ds.data.preparing.split import NEAR_NAME, FilteredSegment, is_held_out
from chinchilla_ds.files import save_array, whole_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROWS = 5
"""Hash values per band here."""
MIN_SIMILARITY = 0.65
"""Smallest share of values that must agree, even if deduplication requires less: a band of 5 is weak evidence."""
_BLOCK = 1 << 14
"""Documents processed at a time."""
_PAIRS = 1 << 16
"""Approximate number of pairs compared at a time."""
_KEYS_NAME, _OWNERS_NAME, _BYTES_NAME = "keys.npy", "owners.npy", "low_bytes.npy"


@dataclass(frozen=True, kw_only=True)
class NearTask:
    """One segment, and the held-out documents with which its training documents are compared."""

    segment: FilteredSegment
    threshold: int
    """Documents whose hash is below it are held out."""
    config: MinHashConfig
    keys: Path
    """The folder written by `write_keys`."""
    folder: Path
    """Where the result goes; if it exists, it is complete."""

    @property
    def result(self) -> FilteredSegment:
        """The segment without the training documents that are similar to held-out ones."""
        return dataclasses.replace(self.segment, near_held_out=self.folder)


def write_keys(segments: Sequence[FilteredSegment], /, *, threshold: int, config: MinHashConfig, folder: Path) -> None:
    """Write the keys of all held-out documents, sorted, with the document of each, and the documents' low bytes.

    Args:
        segments: all segments.
        threshold: documents with a lower content hash are held out.
        config: gives the number of permutations.
        folder: receives the keys.
    """
    import numpy as np

    if folder.exists():
        return
    blocks = [np.zeros((0, config.num_permutations), dtype=np.uint8)]
    for segment in segments:
        held_out = is_held_out(Segment(segment.folder).hashes, threshold=threshold)
        blocks.append(_low_bytes(segment.folder, np.flatnonzero(held_out & segment.keep()), config=config))
    low_bytes = np.concatenate(blocks)
    keys = _keys(low_bytes)
    order = np.argsort(keys.ravel(), kind="stable")
    with whole_folder(folder) as aside:
        save_array(aside / _KEYS_NAME, keys.ravel()[order])
        save_array(aside / _OWNERS_NAME, order // max(keys.shape[1], 1))
        save_array(aside / _BYTES_NAME, low_bytes)


def find_near(task: NearTask, /) -> None:
    """Write the mask of a segment's training documents that are similar to a held-out one: bool [documents]."""
    import numpy as np

    if task.folder.exists():
        return
    hashes, keep = Segment(task.segment.folder).hashes, task.segment.keep()
    near = np.zeros_like(keep)
    rows = np.flatnonzero(keep & ~is_held_out(hashes, threshold=task.threshold))
    held_out = _HeldOut(task.keys, config=task.config)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        near[block] = held_out.near(_low_bytes(task.segment.folder, block, config=task.config))
    with whole_folder(task.folder) as aside:
        save_array(aside / NEAR_NAME, near)


class _HeldOut:
    """The result of `write_keys`, mapped into memory."""

    def __init__(self, folder: Path, *, config: MinHashConfig) -> None:
        import numpy as np

        self._keys, self._owners, self._low_bytes = (
            np.load(folder / name, mmap_mode="r") for name in (_KEYS_NAME, _OWNERS_NAME, _BYTES_NAME)
        )
        self._min_agreeing = max(config.min_agreeing, math.ceil(MIN_SIMILARITY * config.num_permutations - 1e-9))

    def near(self, low_bytes: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.bool_]":
        """Return which of these documents, uint8 [documents, permutations], are similar to a held-out one."""
        import numpy as np

        near = np.zeros(len(low_bytes), dtype=np.bool_)
        for documents, owners in self._pairs(_keys(low_bytes)):
            agree = np.count_nonzero(low_bytes[documents] == self._low_bytes[owners], axis=1)
            near[documents[agree >= self._min_agreeing]] = True
        return near

    def _pairs(self, keys: "npt.NDArray[np.uint64]") -> "Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]":
        """Yield documents and held-out documents that share a key, [pairs] and [pairs]."""
        import numpy as np

        flat = keys.ravel()
        first = np.searchsorted(self._keys, flat)
        counts = np.searchsorted(self._keys, flat, side="right") - first
        (hits,) = np.nonzero(counts)
        bounds = np.searchsorted(np.cumsum(counts[hits]), np.arange(0, counts.sum(), _PAIRS), side="right")
        for chosen in np.split(hits, bounds[1:]):
            number = counts[chosen]
            places = np.arange(number.sum()) + np.repeat(first[chosen] - (np.cumsum(number) - number), number)
            yield np.repeat(chosen // keys.shape[1], number), self._owners[places]


def _low_bytes(segment: Path, rows: "npt.NDArray[np.int64]", *, config: MinHashConfig) -> "npt.NDArray[np.uint8]":
    """Return the lowest byte of each hash value of these documents: [rows, permutations]."""
    import numpy as np

    stored = np.load(segment / BAND_KEYS_NAME, mmap_mode="r")[rows, config.bands :]
    return np.ascontiguousarray(stored).view(np.uint8)[:, : config.num_permutations]


def _keys(low_bytes: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.uint64]":
    """Return the number of each band and the bytes of its rows as one integer: [documents, bands]."""
    import numpy as np

    number = low_bytes.shape[1] // ROWS
    keys = np.tile(np.arange(number, dtype=np.uint64), (len(low_bytes), 1))
    for row in range(ROWS):
        keys = (keys << np.uint64(8)) | low_bytes[:, row : number * ROWS : ROWS]
    return keys
