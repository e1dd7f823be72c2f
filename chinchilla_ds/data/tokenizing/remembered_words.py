"""Encodes each distinct stretch of text once: most words recur, which saves half of the time on prose."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

_SPACE_MARK = "\u2581"
_OTHERS = rb"[^ A-Za-z0-9\x80-\xff]+"
_RUN = rb"(?:[A-Za-z]+|[0-9]+|" + _OTHERS + rb")"
_STRETCHES = (
    re.compile(rb" *(?:" + _RUN + rb"|(?=[\x80-\xff]))(?:[\x80-\xff]+" + _RUN + rb"?)*| +"),
    re.compile(rb" *[^ ]+| +"),
)
"""Spaces and the text after them, up to a boundary of ASCII letters, digits and marks, or the next space."""
_MAX_REMEMBERED = 100_000
"""Largest number of stretches in the cache, about 20 MB; above it the cache is cleared."""
_MAX_REMEMBERED_BYTES = 32
"""Longer stretches rarely recur."""


class RememberedWords:
    """The tokens of stretches of text encoded before, as int32 bytes.

    If no piece crosses the boundary of two stretches, each can be encoded separately: byte-pair merges never
    cross it, and the best unigram path consists of the best path of each stretch. Models trained here have no such
    pieces.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._known: dict[bytes, bytes] = {}
        pieces = [
            processor.id_to_piece(token).replace(_SPACE_MARK, " ").encode()
            for token in range(processor.vocab_size())
            if not (processor.is_byte(token) or processor.is_control(token) or processor.is_unknown(token))
        ]
        adds_space = processor.encode("a", return_type=str)[0].startswith(_SPACE_MARK)
        exact = (cut for cut in _STRETCHES if not adds_space and all(cut.fullmatch(piece) for piece in pieces))
        self.stretches = next(exact, None)
        """Pattern of the stretches that documents are split into; None leaves them whole."""

    def encode(self, documents: Sequence[bytes], *, num_threads: int) -> Iterator[bytes]:
        """Yield the tokens of each document."""
        parts = [self._cut(document) for document in documents]
        new = list(set().union(*parts) - self._known.keys())
        encoded = self._processor.encode(new, num_threads=num_threads, return_type="numpy")
        self._known.update((stretch, ids.tobytes()) for stretch, ids in zip(new, encoded, strict=True))
        for part in parts:
            yield b"".join(map(self._known.__getitem__, part))
        if len(self._known) > _MAX_REMEMBERED:
            self._known.clear()
        else:
            for stretch in (stretch for stretch in new if len(stretch) > _MAX_REMEMBERED_BYTES):
                del self._known[stretch]

    def _cut(self, document: bytes) -> list[bytes]:
        """Return the stretches of a document; one with U+2581 is left whole, since that mark also encodes a space."""
        if self.stretches is None or _SPACE_MARK.encode() in document:
            return [document]
        return self.stretches.findall(document)
