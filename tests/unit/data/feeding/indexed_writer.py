"""Token files written by Megatron-core's own builder: what the package's writer and readers are held against."""

from pathlib import Path
from types import TracebackType

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder, get_bin_path, get_idx_path

_UINT16_VOCAB_SIZE = 65500
"""Below this vocabulary Megatron-core stores tokens as uint16 (`DType.optimal_dtype`)."""


class IndexedWriter:
    """Write documents to `prefix.bin` and `prefix.idx`; a context manager that finishes the index on success."""

    def __init__(self, *, prefix: Path, vocab_size: int) -> None:
        dtype = np.uint16 if vocab_size < _UINT16_VOCAB_SIZE else np.int32
        self._prefix = str(prefix)
        self._builder = IndexedDatasetBuilder(get_bin_path(self._prefix), dtype=dtype)

    def add_document(self, token_ids: np.ndarray) -> None:
        """Append one document: [tokens], its end-of-document token included."""
        self._builder.add_document(token_ids, [len(token_ids)])

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._builder.finalize(get_idx_path(self._prefix))
        else:
            self._builder.data_file.close()
