"""Megatron-core's indexed datasets: token files on disk (`.bin`, `.idx`) and training sequences cut from them.

The only module of `data` that imports megatron.
"""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from megatron.core.datasets.gpt_dataset import GPTDataset

_UINT16_VOCAB_SIZE = 65500
"""Below this vocabulary Megatron-core stores tokens as uint16 (`DType.optimal_dtype`)."""


class IndexedWriter:
    """Write documents to `prefix.bin` and `prefix.idx`; a context manager that finishes the index on success."""

    def __init__(self, *, prefix: Path, vocab_size: int) -> None:
        import numpy as np
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path

        dtype: type[np.number[Any]] = np.uint16 if vocab_size < _UINT16_VOCAB_SIZE else np.int32
        self._prefix = str(prefix)
        self._builder = IndexedDatasetBuilder(get_bin_path(self._prefix), dtype=dtype)

    def add_document(self, token_ids: "npt.NDArray[np.int32]") -> None:
        """Append one document: [tokens], its end-of-document token included."""
        self._builder.add_document(token_ids, [len(token_ids)])

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from megatron.core.datasets.indexed_dataset import get_idx_path

        if kind is None:
            self._builder.finalize(get_idx_path(self._prefix))
        else:
            self._builder.data_file.close()


class _TokenizerFacts:
    """What GPTDatasetConfig asks of a tokenizer."""

    def __init__(self, *, eod_id: int, vocab_size: int, sha256: str) -> None:
        self.eod = eod_id
        self.vocab_size = vocab_size
        self.pad = -1
        self.unique_identifiers = {"sha256": sha256}


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
    None means one pass over the data. A sequence may hold parts of several documents, and attention crosses them.
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
    indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    documents = np.arange(len(indexed), dtype=np.int32)
    return GPTDataset(indexed, prefix.name, documents, num_samples, Split.train, config)
