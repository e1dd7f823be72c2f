"""Train and held-out documents, told apart by content hash: the same text always falls on the same side."""

import hashlib
import heapq
from array import array

from chinchilla_ds.errors import DataError

SAMPLE_BYTES = 8 * 1024 * 1024
"""Text that the tokenizer is trained on, at most."""

SAMPLE_DOCUMENT_BYTES = 64 * 1024
"""What one document can give to that sample, at most."""


def document_hash(document: bytes) -> int:
    """Return the 64-bit BLAKE2b hash of a document."""
    return int.from_bytes(hashlib.blake2b(document, digest_size=8).digest())


class DocumentSurvey:
    """Hashes and sizes of all documents, and a sample of their text; 16 bytes of memory per document."""

    def __init__(self, *, seed: int) -> None:
        self.hashes = array("Q")
        self.sizes = array("Q")
        self._sample: list[tuple[int, int, bytes]] = []
        self._sampled: set[int] = set()
        self._sample_bytes = 0
        self._salt = hashlib.blake2b(str(seed).encode(), digest_size=8).digest()

    def add(self, document: bytes) -> None:
        """Count one document, and keep its text while it is among the sample."""
        content = document_hash(document)
        self.hashes.append(content)
        self.sizes.append(len(document))
        if content in self._sampled:
            return
        rank = int.from_bytes(hashlib.blake2b(content.to_bytes(8), key=self._salt, digest_size=8).digest())
        if self._sample_bytes >= SAMPLE_BYTES and rank >= -self._sample[0][0]:
            return
        self._keep(rank, content, document[:SAMPLE_DOCUMENT_BYTES].decode(errors="ignore").encode())

    def _keep(self, rank: int, content: int, text: bytes) -> None:
        heapq.heappush(self._sample, (-rank, content, text))
        self._sampled.add(content)
        self._sample_bytes += len(text)
        while self._sample_bytes - len(self._sample[0][2]) >= SAMPLE_BYTES:
            _, dropped, text = heapq.heappop(self._sample)
            self._sampled.remove(dropped)
            self._sample_bytes -= len(text)

    def held_out_threshold(self, *, held_out_fraction: float) -> int:
        """Return the hash below which a document is held out.

        Documents of the lowest hashes are held out until they make up `held_out_fraction` of the bytes: at least one
        distinct document, and at least one is left to train on.

        Raises:
            DataError: there are fewer than two distinct documents.
        """
        if not self.hashes:
            raise DataError("the corpus holds no text: every document is empty")
        if min(self.hashes) == max(self.hashes):
            raise DataError("the corpus is one single document; a held-out part of its own needs at least 2")
        wanted, held_out = held_out_fraction * sum(self.sizes), 0
        order = sorted(range(len(self.hashes)), key=self.hashes.__getitem__)
        highest = self.hashes[order[-1]]
        for index in order:
            if held_out >= wanted or self.hashes[index] == highest:
                return self.hashes[index]
            held_out += self.sizes[index]
        raise AssertionError("the highest hash ends the loop")

    def tokenizer_sample(self, *, threshold: int) -> list[bytes]:
        """Return the sampled training documents, in an order that depends on content and seed alone."""
        ranked = sorted(self._sample, key=lambda item: -item[0])
        return [text for _, content, text in ranked if content >= threshold]
