"""Encoding: segments of text to segments of tokens, and these merged into Megatron-core's `.bin` and `.idx`.

Documents are ordered by content hash, so the same documents give the same files, in whatever order they were read.
Merging processes one range of hashes at a time over all segments, so memory does not grow with the corpus.
"""

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.data.dedup.components import CONTENT_HASH_NAME, DUPLICATE_OF_NAME
from chinchilla_ds.data.feeding.indexed import INDEX_CODES, INDEX_HEADER, INDEX_MAGIC
from chinchilla_ds.data.prepared import UINT16_VOCAB_SIZE
from chinchilla_ds.data.preparing.read_stage import COUNTS_NAME
from chinchilla_ds.data.preparing.segments import ENDS_NAME, Segment
from chinchilla_ds.data.preparing.split import FilteredSegment, is_held_out
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.errors import DataError
from chinchilla_ds.files import save_array, whole_folder
from chinchilla_ds.structured import read_json

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCH_BYTES = 2**20
"""Bytes of text encoded at a time. Encoding needs about 15 times as much memory, because text is split into words."""

TOKENS_NAME = "tokens.bin"
_SIZES_NAME = "sizes.npy"
ORIGIN_DTYPE = [("source", "<u2"), ("bytes", "<i8")]
"""Record of a document: the index of its source in the sorted names, and its size in bytes."""
_MERGE_TOKENS = 4 * 2**20
"""Approximate number of tokens merged at a time; with fewer, every segment is opened more often."""
_COUNT_TOKENS = 2**18
"""Tokens counted at a time, as int64."""


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """One segment, and its tokenizer."""

    segment: FilteredSegment
    threshold: int
    """Documents whose hash is below it are held out."""
    tokenizer: Path
    folder: Path
    """Where the tokens go; if it exists, it is complete."""


def encode_segment(task: EncodeTask, /) -> None:
    """Encode the kept documents of a segment and count the fates of the others."""
    import numpy as np

    if task.folder.exists():
        return
    segment, keep = Segment(task.segment.folder), task.segment.keep()
    (rows,) = np.nonzero(keep)
    tokenizer = _tokenizer(task.tokenizer)
    lengths: list[int] = []
    with whole_folder(task.folder) as folder:
        with (folder / TOKENS_NAME).open("wb") as stream:
            for batch in _batches(segment.documents(rows)):
                for ids in tokenizer.encode_documents(batch, num_threads=1):
                    stream.write(ids.astype(token_dtype(tokenizer.vocab_size)).tobytes())
                    lengths.append(len(ids))
        save_array(folder / CONTENT_HASH_NAME, segment.hashes[rows])
        save_array(folder / ENDS_NAME, np.cumsum(np.array(lengths, dtype=np.int64)))
        save_array(folder / _SIZES_NAME, segment.sizes[rows])
        counts = _fates(task, segment=segment, keep=keep)
        (folder / COUNTS_NAME).write_text(json.dumps(counts), encoding="utf-8")


def _fates(task: EncodeTask, *, segment: Segment, keep: "npt.NDArray[np.bool_]") -> dict[str, int]:
    """Return documents and bytes that are duplicates, held out, or train."""
    import numpy as np

    sizes = segment.sizes
    exact = np.zeros_like(keep)
    if task.segment.verdict is not None:
        exact = ~task.segment.unique() & (np.load(task.segment.verdict / DUPLICATE_OF_NAME) == segment.hashes)
    held_out = keep & is_held_out(segment.hashes, threshold=task.threshold)
    masks = {"exact": exact, "near": ~keep & ~exact, "held_out": held_out, "train": keep & ~held_out}
    counts: dict[str, int] = {}
    for fate, mask in masks.items():
        counts |= {f"{fate}/documents": int(mask.sum()), f"{fate}/bytes": int(sizes[mask].sum())}
    return counts


@lru_cache(maxsize=1)
def _tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.load(path, trusted=True)


def token_dtype(vocab_size: int) -> "np.dtype[Any]":
    """Return the type in which tokens are stored."""
    import numpy as np

    return np.dtype(np.uint16 if vocab_size < UINT16_VOCAB_SIZE else np.int32)


@dataclass(frozen=True, kw_only=True)
class MergeTask:
    """Segments of tokens, and the range of hashes that goes into one dataset."""

    segments: tuple[Path, ...]
    low: int
    high: int
    """Exclusive."""
    prefix: Path
    vocab_size: int


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The counts of a dataset."""

    num_documents: int
    token_counts: "npt.NDArray[np.int64]"
    """How often each token occurs: [vocab_size]."""

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return int(self.token_counts.sum())


def merge(task: MergeTask, /) -> Merged:
    """Write `prefix.bin` and `prefix.idx` of the documents whose hash lies in [low, high), ordered by hash."""
    import numpy as np

    dtype = token_dtype(task.vocab_size)
    ranges = [_rows(path, task.low, task.high) for path in task.segments]
    number = sum(stop - start for start, stop, _ in ranges)
    pieces = max(1, -(-sum(tokens for _, _, tokens in ranges) // _MERGE_TOKENS))
    bounds = [task.low + (task.high - task.low) * piece // pieces for piece in range(pieces + 1)]
    counts = np.zeros(task.vocab_size, dtype=np.int64)
    with _Index(task.prefix, number=number, dtype=dtype) as index, Path(f"{task.prefix}.bin").open("wb") as stream:
        for low, high in pairwise(bounds):
            lengths, tokens = _merged(task.segments, low, high, dtype=dtype)
            stream.write(tokens.data)
            index.add(lengths)
            for start in range(0, len(tokens), _COUNT_TOKENS):
                counts += np.bincount(tokens[start : start + _COUNT_TOKENS], minlength=task.vocab_size)
    return Merged(num_documents=number, token_counts=counts)


def origins(segments_by_source: Sequence[Sequence[Path]], /, *, below: int) -> "npt.NDArray[Any]":
    """Return `source` and `bytes` of the documents whose hash is below `below`, in the order that `merge` gives them.

    Args:
        segments_by_source: Segments of tokens of every source; `merge` was given all of them in this order.
        below: End of the range of hashes, exclusive.
    """
    import numpy as np

    hashes, records = [], []
    for source, segments in enumerate(segments_by_source):
        for folder in segments:
            start, stop, _ = _rows(folder, 0, below)
            rows = np.empty(stop - start, dtype=ORIGIN_DTYPE)
            rows["source"], rows["bytes"] = source, np.load(folder / _SIZES_NAME)[start:stop]
            hashes.append(Segment(folder).hashes[start:stop])
            records.append(rows)
    return np.concatenate(records)[np.argsort(np.concatenate(hashes), kind="stable")]


def hash_of_text(segments: Sequence[Path], /, *, below: int) -> str:
    """Return a hash of the documents whose content hash is below `below`, whatever tokens they have.

    Args:
        segments: All segments of tokens.
        below: Where the range of hashes ends.
    """
    import numpy as np

    hashes = np.sort(np.concatenate([Segment(folder).hashes[: _rows(folder, 0, below)[1]] for folder in segments]))
    return hashlib.blake2b(hashes.astype("<u8").tobytes(), digest_size=10).hexdigest()


def _bound(hashes: "npt.NDArray[np.uint64]", value: int) -> int:
    import numpy as np

    return len(hashes) if value >= 2**64 else int(np.searchsorted(hashes, np.uint64(value)))


def _rows(folder: Path, low: int, high: int) -> tuple[int, int, int]:
    """Return the rows [start, stop) of the documents in a range of hashes, and the number of their tokens."""
    segment = Segment(folder)
    start, stop = _bound(segment.hashes, low), _bound(segment.hashes, high)
    return start, stop, _end(segment, stop) - _end(segment, start)


def _end(segment: Segment, row: int) -> int:
    return int(segment.ends[row - 1]) if row else 0


def _merged(
    segments: Sequence[Path], low: int, high: int, *, dtype: "np.dtype[Any]"
) -> "tuple[npt.NDArray[np.int64], npt.NDArray[Any]]":
    """Return lengths [documents] and tokens of one range of hashes over all segments, ordered by hash."""
    import numpy as np

    hashes, lengths = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    documents: list[npt.NDArray[Any]] = []
    for folder in segments:
        start, stop, count = _rows(folder, low, high)
        if start == stop:
            continue
        segment = Segment(folder)
        first = _end(segment, start)
        ends = segment.ends[start:stop] - first
        tokens = np.fromfile(folder / TOKENS_NAME, dtype=dtype, count=count, offset=first * dtype.itemsize)
        hashes.append(segment.hashes[start:stop])
        lengths.append(np.diff(ends, prepend=0))
        documents += np.split(tokens, ends[:-1])
    order = np.argsort(np.concatenate(hashes), kind="stable")
    in_order = [np.zeros(0, dtype=dtype), *(documents[place] for place in order)]
    return np.concatenate(lengths)[order], np.concatenate(in_order)


class _Index:
    """Writes the three arrays of `prefix.idx`: lengths (int32), byte offsets (int64), and the numbers 0 to n (int64).

    Source: megatron.core.datasets.indexed_dataset._IndexWriter, megatron-core 0.16.
    """

    def __init__(self, prefix: Path, *, number: int, dtype: "np.dtype[Any]") -> None:
        self._stream = Path(f"{prefix}.idx").open("wb")  # noqa: SIM115 (closed by __exit__)
        self._number = number
        self._itemsize = dtype.itemsize
        header = INDEX_HEADER.pack(1, INDEX_CODES[dtype.name], number, number + 1)
        self._stream.write(INDEX_MAGIC + header)
        self._lengths_at = self._stream.tell()
        self._offsets_at = self._lengths_at + 4 * number
        self._documents_at = self._offsets_at + 8 * number
        self._done, self._tokens = 0, 0

    def add(self, lengths: "npt.NDArray[np.int64]") -> None:
        """Write the next documents: [documents], tokens of each."""
        import numpy as np

        offsets = (self._tokens + np.cumsum(lengths) - lengths) * self._itemsize
        documents = np.arange(self._done, self._done + len(lengths))
        self._write(self._lengths_at + 4 * self._done, lengths.astype("<i4"))
        self._write(self._offsets_at + 8 * self._done, offsets.astype("<i8"))
        self._write(self._documents_at + 8 * self._done, documents.astype("<i8"))
        self._done += len(lengths)
        self._tokens += int(lengths.sum())

    def _write(self, position: int, values: "npt.NDArray[Any]") -> None:
        self._stream.seek(position)
        self._stream.write(values.tobytes())

    def __enter__(self) -> "_Index":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            assert self._done == self._number, "every document of the range is merged"
            self._stream.seek(self._documents_at + 8 * self._number)
            self._stream.write(struct.pack("<q", self._number))
        self._stream.close()


def unigram_loss(*, train_counts: "npt.NDArray[np.int64]", held_out_counts: "npt.NDArray[np.int64]") -> float:
    """Return the held-out loss of the unigram model p(t) = (count(t) + 1) / (tokens + vocab), in nats per token.

    It is the loss of a model that knows only the frequency of each token; add-one (Laplace) smoothing.

    Args:
        train_counts: How often each token occurs in train: [vocab_size].
        held_out_counts: The same for held-out: [vocab_size].
    """
    import numpy as np

    log_p = np.log(train_counts + 1.0) - np.log(float(train_counts.sum() + len(train_counts)))
    return float(-(held_out_counts * log_p).sum() / held_out_counts.sum())


def read_counts(folders: Sequence[Path], /) -> Counter[str]:
    """Return the sum of the counts that workers wrote."""
    total = Counter[str]()
    for folder in folders:
        total.update(read_json(folder / COUNTS_NAME, what="the counts", error=DataError))
    return total


def _batches(documents: Iterator[bytes]) -> Iterator[Sequence[bytes]]:
    batch: list[bytes] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
