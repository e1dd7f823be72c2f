"""SentencePiece byte-pair tokenizers that lose nothing: what `decode(encode(text))` returns is `text`.

White space is kept as it is, digits are single pieces, there is no Unicode normalisation, and a character outside the
vocabulary becomes its UTF-8 bytes, so there are no unknown tokens. The one exception is SentencePiece's own marker
U+2581, which decodes to a space.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EOD_PIECE = "<|endoftext|>"
"""Ends every document; never produced by encoding text."""

MIN_VOCAB_SIZE = 320
"""The fixed pieces and room for a small alphabet."""

_NUM_FIXED_PIECES = 258
"""256 bytes, the unknown piece, which never occurs, and `EOD_PIECE`."""

_CHARACTER_COVERAGE = 0.9995
"""Share of the text whose characters get pieces of their own, SentencePiece's default."""

_RESERVED_CHARACTERS = "\0\u2581\u2585"
"""SentencePiece's terminator, space and unknown marks: never pieces, always bytes (U+2581: a space)."""

_SENTENCE_CHARACTERS = 1000
"""Longest training sentence: at 4 bytes a character it stays below SentencePiece's limit of 4192 bytes."""

_TRAINING_THREADS = 4
"""A constant: SentencePiece writes it into the model, whose bytes must not depend on the machine."""


class Tokenizer:
    """A SentencePiece model."""

    def __init__(self, model: bytes) -> None:
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read the tokenizer that `save` wrote."""
        return cls(path.read_bytes())

    def save(self, path: Path) -> None:
        """Write the SentencePiece model."""
        path.write_bytes(self._model)

    @property
    def vocab_size(self) -> int:
        """Pieces there really are; a small corpus gives fewer than were asked for."""
        return int(self._processor.vocab_size())

    @property
    def eod_id(self) -> int:
        """Token that ends every document."""
        return int(self._processor.eos_id())

    @cached_property
    def sha256(self) -> str:
        """Hash of the model, which travels with data and checkpoints."""
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without an end-of-document token."""
        return list(self._processor.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; end-of-document tokens decode to nothing."""
        return str(self._processor.decode(list(token_ids)))

    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, an end-of-document token last: int32 [tokens of the document]."""
        import numpy as np

        for ids in self._processor.encode(list(documents), num_threads=num_threads, add_eos=True):
            yield np.array(ids, dtype=np.int32)


def train_tokenizer(documents: Sequence[bytes], *, vocab_size: int) -> Tokenizer:
    """Train a byte-pair tokenizer of at most `vocab_size` pieces; the same documents give the same bytes.

    Line ends are ordinary characters here, so that frequent ends of lines become pieces of their own.

    Raises:
        DataError: `vocab_size` is below `MIN_VOCAB_SIZE`, or there is nothing to train on.
    """
    import sentencepiece

    texts = [document.decode() for document in documents]
    alphabet = _alphabet(texts, max_characters=(vocab_size - _NUM_FIXED_PIECES) // 2)
    if not alphabet:
        raise DataError("there is no text to train a tokenizer on")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts, alphabet=alphabet),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,  # of the sentences, which hold nothing else
            normalization_rule_name="identity",
            byte_fallback=True,
            split_digits=True,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            unk_id=0,
            eos_id=1,
            eos_piece=EOD_PIECE,
            bos_id=-1,
            pad_id=-1,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise DataError(f"no tokenizer of {vocab_size} pieces can be trained on this text: {error}") from None
    return Tokenizer(model.getvalue())


def _sentences(texts: Sequence[str], *, alphabet: set[str]) -> Iterator[str]:
    """Yield training sentences: stretches of text within the alphabet, of bounded length."""
    stretch = re.compile(f"[{re.escape(''.join(sorted(alphabet)))}]{{1,{_SENTENCE_CHARACTERS}}}")
    for text in texts:
        yield from stretch.findall(text)


def _alphabet(texts: Sequence[str], *, max_characters: int) -> set[str]:
    """Return the characters that get pieces of their own: the most frequent, 99.95 % of the text unless too many.

    Done here because SentencePiece refuses a character coverage below 0.98, which a small vocabulary of a large script
    needs; what is left out becomes bytes.
    """
    counts = Counter[str]()
    for text in texts:
        counts.update(text)
    for reserved in _RESERVED_CHARACTERS:
        counts.pop(reserved, None)
    wanted, covered = _CHARACTER_COVERAGE * counts.total(), 0
    alphabet: set[str] = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:max_characters]:
        if covered >= wanted:
            break
        alphabet.add(character)
        covered += count
    return alphabet
