"""Tokenizers that lose nothing: what `decode(encode(text))` returns is `text`.

Three kinds: a SentencePiece model trained here, one that is given, and a Hugging Face `tokenizer.json`. The ones
trained here keep white space as it is, split digits, normalise nothing, and write a character outside the vocabulary as
its UTF-8 bytes, so there are no unknown tokens. Their one exception is SentencePiece's own marker U+2581, which decodes
to a space. A given tokenizer that loses or changes ordinary text is refused.
"""

import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from chinchilla_ds.errors import DataError, reason

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EOD_PIECE = "<|endoftext|>"
"""Ends every document; never produced by encoding text."""

MIN_VOCAB_SIZE = 320
"""The fixed pieces and room for a small alphabet."""

_OTHER_EOD_PIECES = ("</s>", "<|end_of_text|>", "<eos>", "<|eos|>")
"""What others end documents with, looked for where a tokenizer does not say."""

_PROBES = (
    "  def f(x):\n\treturn x  # 1234",
    "Gr\u00fc\u00dfe, caf\u00e9",
    "\u4e16\u754c\uff0c\u4f60\u597d",
    "\U0001f642",
    "\u0627\u0644\u0639\u0631\u0628",
)
"""Code, Latin, Chinese, emoji, Arabic: a tokenizer that is brought must not lose them."""

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

_SPACE_MARK = "\u2581"
_OTHERS = rb"[^ A-Za-z0-9\x80-\xff]+"
_RUN = rb"(?:[A-Za-z]+|[0-9]+|" + _OTHERS + rb")"
_STRETCHES = (
    re.compile(rb" *(?:" + _RUN + rb"|(?=[\x80-\xff]))(?:[\x80-\xff]+" + _RUN + rb"?)*| +"),
    re.compile(rb" *[^ ]+| +"),
)
"""Spaces and what follows up to where ASCII letters, digits and marks meet, or up to the next space."""
_MAX_REMEMBERED = 100_000
"""Stretches whose tokens are remembered, about 20 MB; beyond them all are forgotten."""
_MAX_REMEMBERED_BYTES = 32
"""Longer stretches rarely come again."""


class ModelType(StrEnum):
    """How SentencePiece chooses pieces."""

    BPE = "bpe"
    """Byte-pair encoding, Sennrich et al. 2016 (arXiv:1508.07909)."""
    UNIGRAM = "unigram"
    """Kudo 2018 (arXiv:1804.10959)."""


class Tokenizer(ABC):
    """Text to tokens and back."""

    saved_as: ClassVar[str]
    """Name that `save` is to be given within a folder of prepared data."""

    @staticmethod
    def load(path: Path) -> "Tokenizer":
        """Read a SentencePiece model, a `tokenizer.json`, or the folder of a Hugging Face tokenizer.

        Raises:
            DataError: it cannot be read, ends documents with no token that can be found, or loses text.
        """
        try:
            if path.is_dir() and not (path / "tokenizer.json").is_file():
                path = _sentencepiece_in(path)
            if path.is_dir() or path.suffix == ".json":
                return HuggingFaceTokenizer.read(path)
            return SentencePieceTokenizer(path.read_bytes(), place=str(path))
        except OSError as error:
            raise DataError(f"cannot read the tokenizer {path}: {reason(error)}") from None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Tokens there really are."""

    @property
    @abstractmethod
    def eod_id(self) -> int:
        """Token that ends every document."""

    @property
    @abstractmethod
    def sha256(self) -> str:
        """Hash of all that decides how text is encoded, which travels with the data."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write what `load` reads."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without an end-of-document token."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; end-of-document tokens decode to nothing."""

    @abstractmethod
    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, an end-of-document token last: int32 [tokens of the document]."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model."""

    saved_as = "tokenizer.model"

    def __init__(self, model: bytes, *, place: str = "this SentencePiece model") -> None:
        """Take the bytes of a model, and how messages name it.

        Raises:
            DataError: no SentencePiece model, one without an end-of-document token, or one that loses text.
        """
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise DataError(f"{place} is no SentencePiece model") from None
        self._model = model
        self._eod_id = self._find_eod(place)
        self._memory = _Memory(self._processor)
        _check_lossless(self, place=place)

    @property
    def vocab_size(self) -> int:
        """Pieces there really are; a small corpus gives fewer than were asked for."""
        return int(self._processor.vocab_size())

    @property
    def eod_id(self) -> int:
        """Token that ends every document."""
        return self._eod_id

    @property
    def sha256(self) -> str:
        """Hash of the model."""
        return hashlib.sha256(self._model).hexdigest()

    def save(self, path: Path) -> None:
        """Write the SentencePiece model."""
        path.write_bytes(self._model)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without an end-of-document token."""
        return list(self._processor.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; end-of-document tokens decode to nothing."""
        return str(self._processor.decode([token for token in token_ids if token != self._eod_id]))

    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, an end-of-document token last: int32 [tokens of the document].

        Words that were met before are remembered, which saves time: half of it on prose, less on code.
        """
        import numpy as np

        end = np.array([self._eod_id], dtype=np.int32).tobytes()
        for tokens in self._memory.encode(documents, num_threads=num_threads):
            yield np.frombuffer(tokens + end, dtype=np.int32)

    def _find_eod(self, place: str) -> int:
        if (found := int(self._processor.eos_id())) >= 0:
            return found
        for piece in (EOD_PIECE, *_OTHER_EOD_PIECES):
            found = int(self._processor.piece_to_id(piece))
            if self._processor.is_control(found) and self._processor.id_to_piece(found) == piece:
                return found
        raise DataError(f"{place} has no end-of-sentence piece to end documents with; train it with an eos_id")


class _Memory:
    """The tokens of stretches of text that were met before, as int32 bytes.

    Where no piece reaches across the border of two stretches, each can be encoded by itself: byte-pair merges never
    cross it, and the best unigram path is the best path of each stretch. Models trained here have no such pieces.
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
        """What documents are cut into; None leaves them whole."""

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
        """Return the stretches of a document; one with U+2581 is left whole, since that mark too stands for a space."""
        if self.stretches is None or _SPACE_MARK.encode() in document:
            return [document]
        return self.stretches.findall(document)


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, read by the `tokenizers` library; special tokens in the text are text."""

    saved_as = "tokenizer"

    def __init__(self, definition: bytes, *, eod_token: str | None = None, place: str = "this tokenizer.json") -> None:
        """Take the bytes of a `tokenizer.json`, the token that ends documents, and how messages name it.

        Raises:
            DataError: no tokenizer, one without an end-of-document token, or one that loses text.
        """
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{place} is no tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._definition = definition
        self._eod_token = self._find_eod(eod_token, place=place)
        _check_lossless(self, place=place)

    @classmethod
    def read(cls, path: Path) -> "HuggingFaceTokenizer":
        """Read a `tokenizer.json`, or a folder that holds one and a `tokenizer_config.json`."""
        file = path / "tokenizer.json" if path.is_dir() else path
        config = file.with_name("tokenizer_config.json")
        named: Any = None
        if config.is_file():
            try:
                named = json.loads(config.read_bytes()).get("eos_token")
            except (ValueError, AttributeError) as error:
                raise DataError(f"{config} is no JSON object: {error}") from None
        eod_token = named.get("content") if isinstance(named, dict) else named
        return cls(file.read_bytes(), eod_token=eod_token, place=str(file))

    @property
    def vocab_size(self) -> int:
        """The highest token id plus 1: vocabularies may have holes."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def eod_id(self) -> int:
        """Token that ends every document."""
        token_id = self._tokenizer.token_to_id(self._eod_token)
        assert token_id is not None, "`_find_eod` has found it"
        return token_id

    @property
    def eod_token(self) -> str:
        """What the tokenizer calls it."""
        return self._eod_token

    @property
    def sha256(self) -> str:
        """Hash of `tokenizer.json` and the end-of-document token."""
        return hashlib.sha256(self._definition + b"\0" + self._eod_token.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write a folder that holds `tokenizer.json` as it was read, and `tokenizer_config.json`."""
        path.mkdir()
        (path / "tokenizer.json").write_bytes(self._definition)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self._eod_token}
        (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`, without an end-of-document token."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; special tokens decode to nothing."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, an end-of-document token last: int32 [tokens of the document].

        The library takes its number of threads from RAYON_NUM_THREADS, and `num_threads` 1 means none.
        """
        import numpy as np

        end, texts = [self.eod_id], [document.decode() for document in documents]
        encode_one = self._tokenizer.encode
        encodings = (
            (encode_one(text, add_special_tokens=False) for text in texts)
            if num_threads == 1
            else self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )
        for encoding in encodings:
            yield np.array(encoding.ids + end, dtype=np.int32)

    def _find_eod(self, named: str | None, *, place: str) -> str:
        candidates = (EOD_PIECE, *_OTHER_EOD_PIECES) if named is None else (named,)
        special = {token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special}
        for token in candidates:
            if token in special:
                return token
        raise DataError(
            f"{place} has no token that ends documents: none of its special tokens is {' or '.join(candidates)}"
            f"{'; name one as eos_token in a tokenizer_config.json beside it' if named is None else ''}"
        )


def _sentencepiece_in(folder: Path) -> Path:
    """Return the SentencePiece model in a folder that holds no `tokenizer.json`."""
    if (model := folder / "tokenizer.model").is_file():
        return model
    raise DataError(
        f"{folder} holds neither tokenizer.json nor tokenizer.model; a slow Hugging Face tokenizer is converted by"
        " AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _check_lossless(tokenizer: Tokenizer, *, place: str) -> None:
    pairs = ((text, tokenizer.decode(tokenizer.encode(text))) for text in _PROBES)
    if lost := [f"{place} loses text: {text!r} comes back as {found!r}" for text, found in pairs if found != text]:
        raise DataError(lost)


def train_tokenizer(
    documents: Sequence[bytes], *, vocab_size: int, model_type: ModelType = ModelType.BPE
) -> SentencePieceTokenizer:
    """Train a SentencePiece model of at most `vocab_size` pieces; the same documents give the same bytes.

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
            model_type=model_type.value,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,  # of the sentences, which hold nothing else
            required_chars=_SPACE_MARK,  # as bytes it would decode to the mark, not to a space
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
    return SentencePieceTokenizer(model.getvalue())


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
