"""Encoding: documents to token files, train and held-out apart, in bounded memory."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.indexed import IndexedWriter
from chinchilla_ds.data.split import document_hash
from chinchilla_ds.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BATCH_BYTES = 4 * 1024 * 1024
"""Text encoded at a time."""


class SplitWriter:
    """Writes the documents of one split and counts them."""

    def __init__(self, *, writer: IndexedWriter, vocab_size: int) -> None:
        import numpy as np

        self._writer = writer
        self.num_documents = 0
        self.num_bytes = 0
        self.token_counts: npt.NDArray[np.int64] = np.zeros(vocab_size, dtype=np.int64)
        """How often each token occurs: [vocab_size]."""

    @property
    def num_tokens(self) -> int:
        """Tokens written so far."""
        return int(self.token_counts.sum())

    def add(self, document: bytes, token_ids: "npt.NDArray[np.int32]") -> None:
        """Write one document: [tokens]."""
        import numpy as np

        self._writer.add_document(token_ids)
        self.num_documents += 1
        self.num_bytes += len(document)
        np.add.at(self.token_counts, token_ids, 1)


def encode_split(
    documents: Iterable[bytes], *, tokenizer: Tokenizer, threshold: int, folder: Path
) -> tuple[SplitWriter, SplitWriter]:
    """Write `folder/train` and `folder/held_out`, and return the counts of both.

    Args:
        documents: UTF-8 documents, written in this order.
        tokenizer: Encodes them, on all cores this process may use.
        threshold: Documents whose hash is below it are held out.
        folder: Exists already.
    """
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    vocab_size = tokenizer.vocab_size
    with ExitStack() as stack:
        train, held_out = (
            SplitWriter(
                writer=stack.enter_context(IndexedWriter(prefix=folder / name, vocab_size=vocab_size)),
                vocab_size=vocab_size,
            )
            for name in ("train-corpus", "held_out")
        )
        for batch in _batches(documents):
            for document, ids in zip(batch, tokenizer.encode_documents(batch, num_threads=num_threads), strict=True):
                (held_out if document_hash(document) < threshold else train).add(document, ids)
    return train, held_out


def unigram_loss(*, train_counts: "npt.NDArray[np.int64]", held_out_counts: "npt.NDArray[np.int64]") -> float:
    """Return the held-out loss of the unigram model p(t) = (count(t) + 1) / (tokens + vocab), in nats per token.

    What a model reaches that knows how frequent each token is and nothing else; add-one (Laplace) smoothing.

    Args:
        train_counts: How often each token occurs in train: [vocab_size].
        held_out_counts: The same for held-out: [vocab_size].
    """
    import numpy as np

    log_p = np.log(train_counts + 1.0) - np.log(float(train_counts.sum() + len(train_counts)))
    return float(-(held_out_counts * log_p).sum() / held_out_counts.sum())


def _batches(documents: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
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
