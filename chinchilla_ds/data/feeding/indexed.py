"""Megatron-core's indexed datasets: token files on disk (`.bin`, `.idx`) and training sequences cut from them.

The only module of `data` that imports megatron.
"""

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from chinchilla_ds.errors import DataError, reason
from chinchilla_ds.structured import open_regular

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset


INDEX_MAGIC = b"MMIDIDX\x00\x00"
INDEX_HEADER = struct.Struct("<QBQQ")
"""Version, type of the tokens, number of sequences, and number of documents plus one that ends the list."""
INDEX_CODES = {"uint16": 8, "int32": 4}
"""`megatron.core.datasets.indexed_dataset.DType`."""
INDEX_ITEM_BYTES = {8: 2, 4: 4}


class Sequences(Protocol):
    """Training sequences by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> "dict[str, torch.Tensor]":
        """Return `tokens` and `labels`, both int64 [s]."""


class _TokenizerFacts:
    """The attributes that GPTDatasetConfig reads from a tokenizer."""

    def __init__(self, *, eod_id: int, vocab_size: int, sha256: str) -> None:
        self.eod = eod_id
        self.vocab_size = vocab_size
        self.pad = -1
        self.unique_identifiers = {"sha256": sha256}


def check_index(prefix: Path, /) -> None:
    """Check that an index is complete and matches its tokens, before Megatron-core maps it.

    Only the header, the sizes and the last document are read, whatever the number of documents.

    Raises:
        DataError: names the file and the problem.
    """
    path, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    try:
        with open_regular(path) as stream, open_regular(tokens) as token_stream:
            header = stream.read(INDEX_HEADER.size + len(INDEX_MAGIC))
            size, num_bytes = os.fstat(stream.fileno()).st_size, os.fstat(token_stream.fileno()).st_size
            problem = _header_problem(header, size=size) or _last_problem(stream, header, num_bytes=num_bytes)
    except OSError as error:
        raise DataError(f"cannot read the dataset {prefix}: {reason(error)}") from None
    if problem is not None:
        raise DataError(f"{path} {problem}; restore the folder, or prepare the text again")


def _header_problem(header: bytes, *, size: int) -> str | None:
    magic, fields = header[: len(INDEX_MAGIC)], header[len(INDEX_MAGIC) :]
    if magic != INDEX_MAGIC or len(fields) < INDEX_HEADER.size:
        return "is not an index of Megatron-core"
    version, code, num_sequences, num_documents = INDEX_HEADER.unpack(fields)
    if version != 1 or code not in INDEX_ITEM_BYTES:
        return f"has version {version} and type {code}; version 1 and types {sorted(INDEX_ITEM_BYTES)} are read"
    wanted = len(header) + 12 * num_sequences + 8 * num_documents
    if num_documents != num_sequences + 1 or size != wanted:
        return f"has {size} bytes, but an index of {num_sequences} documents has {wanted}"
    return "holds no documents" if not num_sequences else None


def _last_problem(stream: BinaryIO, header: bytes, *, num_bytes: int) -> str | None:
    """Return a problem if the last document does not end where the tokens do."""
    _, code, number, _ = INDEX_HEADER.unpack(header[len(INDEX_MAGIC) :])
    stream.seek(len(header) + 4 * (number - 1))
    (length,) = struct.unpack("<i", stream.read(4))
    stream.seek(len(header) + 4 * number + 8 * (number - 1))
    (offset,) = struct.unpack("<q", stream.read(8))
    end = offset + length * INDEX_ITEM_BYTES[code]
    if end == num_bytes and length > 0:
        return None
    return f"ends at byte {end} of the tokens, but they have {num_bytes}"


def open_sequences(
    *,
    prefix: Path,
    index_folder: Path,
    seq_length: int,
    num_samples: int | None,
    seed: int,
    eod_id: int,
    vocab_size: int,
    tokenizer_sha256: str,
) -> "GPTDataset":
    """Return the shuffled training sequences of an indexed dataset; writes its index to `index_folder` if it is absent.

    Documents are shuffled, joined, and cut every `seq_length` tokens; then the sequences are shuffled. `num_samples`
    None means one pass over the data. A sequence may hold parts of several documents; whether attention crosses them is
    up to the model.

    Args:
        prefix: the dataset, without `.bin` and `.idx`.
        index_folder: folder of the shuffled index.
        seq_length: tokens per sequence.
        num_samples: sequences of the run; None: one pass over the data.
        seed: seeds both shuffles.
        eod_id: the end-of-document token.
        vocab_size: number of tokens of the tokenizer.
        tokenizer_sha256: the tokenizer's hash, part of the index's key.
    """
    import numpy as np
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        blend=([prefix.name], None),
        split="1,0,0",
        path_to_cache=str(index_folder),
        tokenizer=_TokenizerFacts(eod_id=eod_id, vocab_size=vocab_size, sha256=tokenizer_sha256),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    check_index(prefix)
    indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    documents = np.arange(len(indexed), dtype=np.int32)
    return GPTDataset(indexed, prefix.name, documents, num_samples, Split.train, config)


def read_documents(prefix: Path, /) -> "Iterator[npt.NDArray[np.integer[Any]]]":
    """Yield the tokens of every document of an indexed dataset, in stored order: [tokens of the document]."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    check_index(prefix)
    indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    yield from (indexed[number] for number in range(len(indexed)))


class BlendedSequences:
    """Sequences of several sources, interleaved so that every prefix of the run follows their weights."""

    def __init__(
        self,
        sources: "Sequence[Sequences]",
        *,
        source_index: "npt.NDArray[np.int16]",
        sample_index: "npt.NDArray[np.int64]",
    ) -> None:
        """Store the sources and the place of every sample of the run.

        Args:
            sources: the sequences of each source.
            source_index: source of every sample, [samples].
            sample_index: number of every sample within its source, [samples].
        """
        self._sources = sources
        self.source_index, self.sample_index = source_index, sample_index

    def __len__(self) -> int:
        return len(self.source_index)

    def __getitem__(self, index: int, /) -> "dict[str, torch.Tensor]":
        """Return sample `index` of the run."""
        source = self._sources[int(self.source_index[index])]
        return source[int(self.sample_index[index])]


def interleave(weights: Sequence[float], *, num_samples: int) -> "tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]":
    """Return the source of every sample, and its number within that source: both [samples].

    Each sample comes from the source that is furthest behind its weight; Megatron-core's own helper.
    """
    import numpy as np
    from megatron.core.datasets import helpers

    source_index = np.zeros(num_samples, dtype=np.int16)
    sample_index = np.zeros(num_samples, dtype=np.int64)
    helpers.build_blending_indices(
        source_index, sample_index, np.array(weights, dtype=np.float64), len(weights), num_samples, False
    )
    return source_index, sample_index


def open_blend(
    open_source: "Callable[[int, int], Sequences]", *, weights: Sequence[float], num_samples: int, index_folder: Path
) -> BlendedSequences:
    """Return the blend of several sources; writes its index to `index_folder` if it is absent.

    Megatron-core's BlendedDataset gives the same samples, from the same helper; it builds a cached index only within a
    process group, and its builder requests half a per cent more samples from every source than are read.

    Args:
        open_source: Returns the sequences of a source, given its index in `weights` and its number of samples.
        weights: Shares of the sources; they sum to 1.
        num_samples: Samples of the run.
        index_folder: Folder of the index; created if absent.
    """
    import numpy as np

    paths = [index_folder / f"blend_{part}.npy" for part in ("sources", "samples", "counts")]
    if not all(path.is_file() for path in paths):
        source_index, sample_index = interleave(weights, num_samples=num_samples)
        index_folder.mkdir(parents=True, exist_ok=True)
        built: list[npt.NDArray[np.integer[Any]]] = [source_index, sample_index]
        built.append(np.bincount(source_index, minlength=len(weights)))
        for path, values in zip(paths, built, strict=True):
            np.save(path, values)
    source_index, sample_index, counts = (np.load(path, mmap_mode="r") for path in paths)
    sources = [open_source(place, int(count)) for place, count in enumerate(counts)]
    return BlendedSequences(sources, source_index=source_index, sample_index=sample_index)
