"""Segments: cleaned documents on disk, ordered by content hash, with the arrays that later stages need.

Segments are merged by hash, so the prepared corpus does not depend on how the input was ordered and split.

```
content_hash.npy   uint64 [documents], ascending
ends.npy           int64 [documents], end of each document in text.bin, bytes
text.bin           UTF-8
source.npy         uint16 [documents]
band_keys.npy      uint64 [documents, bands], for near duplicates
```
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.dedup.bands import MinHashConfig
from chinchilla_ds.data.dedup.components import BAND_KEYS_NAME, CONTENT_HASH_NAME, SOURCE_NAME
from chinchilla_ds.files import save_array

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ENDS_NAME = "ends.npy"
TEXT_NAME = "text.bin"
_SIGN_BYTES = 2**20
"""Bytes of text whose signatures are computed at a time."""


def document_hash(document: bytes) -> int:
    """Return the 64-bit BLAKE2b hash of a document."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest())


class SegmentWriter:
    """Collects documents and writes a segment whenever there are `segment_bytes` of them."""

    def __init__(self, *, folder: Path, source: int, minhash: MinHashConfig | None, segment_bytes: int) -> None:
        """Start without documents.

        Args:
            folder: receives the segments.
            source: index of the source in the sorted names.
            minhash: how near duplicates are found; None: only exact ones.
            segment_bytes: size of a segment, bytes of text.
        """
        self._folder = folder
        self._source = source
        self._minhash = minhash
        self._segment_bytes = segment_bytes
        self._number = 0
        self._documents: list[bytes] = []
        self._size = 0
        self._unsigned: list[str] = []
        self._unsigned_size = 0
        self._keys: list[npt.NDArray[np.uint64]] = []

    def add(self, text: str, document: bytes) -> None:
        """Add a document, given as text and as its UTF-8 bytes."""
        self._documents.append(document)
        self._size += len(document)
        if self._minhash is not None:
            self._unsigned.append(text)
            self._unsigned_size += len(document)
            if self._unsigned_size >= _SIGN_BYTES:
                self._sign(self._minhash)
        if self._size >= self._segment_bytes:
            self.flush()

    def _sign(self, config: MinHashConfig) -> None:
        from chinchilla_ds.data.dedup.minhash import band_keys

        self._keys.append(band_keys(self._unsigned, config=config))
        self._unsigned, self._unsigned_size = [], 0

    def flush(self) -> None:
        """Write what has been collected."""
        import numpy as np

        if not self._documents:
            return
        folder = self._folder / f"{self._number:05d}"
        folder.mkdir()
        hashes = np.array([document_hash(document) for document in self._documents], dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        sizes = np.array([len(document) for document in self._documents], dtype=np.int64)
        save_array(folder / CONTENT_HASH_NAME, hashes[order])
        save_array(folder / ENDS_NAME, np.cumsum(sizes[order]))
        save_array(folder / SOURCE_NAME, np.full(len(order), self._source, dtype=np.uint16))
        if self._minhash is not None:
            if self._unsigned:
                self._sign(self._minhash)
            save_array(folder / BAND_KEYS_NAME, np.concatenate(self._keys)[order])
        with (folder / TEXT_NAME).open("wb") as stream:
            stream.writelines(self._documents[index] for index in order)
        self._number += 1
        self._documents, self._size, self._keys = [], 0, []


class Segment:
    """A segment on disk, its arrays mapped."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self.folder = folder
        self.hashes: npt.NDArray[np.uint64] = np.load(folder / CONTENT_HASH_NAME, mmap_mode="r")
        self.ends: npt.NDArray[np.int64] = np.load(folder / ENDS_NAME, mmap_mode="r")

    @property
    def sizes(self) -> "npt.NDArray[np.int64]":
        """Bytes of each document: [documents]."""
        import numpy as np

        return np.diff(self.ends, prepend=0)

    def documents(self, rows: "Sequence[int] | npt.NDArray[np.int64]") -> Iterator[bytes]:
        """Yield the documents of ascending `rows`."""
        with (self.folder / TEXT_NAME).open("rb") as stream:
            for row in rows:
                start = int(self.ends[row - 1]) if row else 0
                stream.seek(start)
                yield stream.read(int(self.ends[row]) - start)


def segments_of(shards: Sequence[Path], /) -> list[Path]:
    """Return the folders of the segments of the shards, in order."""
    return [path for shard in shards for path in sorted(shard.iterdir()) if path.is_dir()]
