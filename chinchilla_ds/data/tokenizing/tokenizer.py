"""Lossless tokenizers: `decode(encode(text))` is `text`.

There are three kinds: a SentencePiece model trained here, one that is supplied, and a Hugging Face `tokenizer.json`.
Those trained here keep white space, split digits, normalise nothing, and encode a character outside the vocabulary as
its UTF-8 bytes, so there are no unknown tokens. Their one exception is SentencePiece's own marker U+2581, which decodes
to a space. A supplied tokenizer that loses or changes ordinary text is refused.

If a tokenizer begins every text with a token (BOS), so does every document and every prompt here.
"""

import functools
import hashlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.tokenizing.child import check_in_child
from chinchilla_ds.data.tokenizing.files import CONFIG_NAME, JSON_NAME, MODEL_NAME, TokenizerFiles
from chinchilla_ds.data.tokenizing.remembered_words import RememberedWords
from chinchilla_ds.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EOD_PIECE = "<|endoftext|>"
"""Ends every document; never produced by encoding text."""

MIN_VOCAB_SIZE = 320
"""The fixed pieces, and room for a small alphabet."""

_OTHER_EOD_PIECES = ("</s>", "<|end_of_text|>", "<eos>", "<|eos|>")
"""Usual end-of-document tokens, tried if a tokenizer does not name one."""

_PROBES = (
    "  def f(x):\n\treturn x  # 1234",
    "Gr\u00fc\u00dfe, caf\u00e9",
    "\u4e16\u754c\uff0c\u4f60\u597d",
    "\U0001f642",
    "\u0627\u0644\u0639\u0631\u0628",
)
"""Code, Latin, Chinese, emoji, Arabic: a supplied tokenizer must not lose any of it."""

MAX_VOCAB_SIZE = 1 << 22
"""Largest number of tokens that is accepted, sixteen times that of the largest known vocabularies."""

_NUM_FIXED_PIECES = 258
"""256 bytes, the unknown piece, which never occurs, and `EOD_PIECE`."""

_CHARACTER_COVERAGE = 0.9995
"""Share of the text whose characters get their own pieces, SentencePiece's default."""

_RESERVED_CHARACTERS = "\0\u2581\u2585"
"""SentencePiece's terminator, space and unknown marks: never pieces, always bytes (U+2581: a space)."""

_SENTENCE_CHARACTERS = 1000
"""Longest training sentence: at 4 bytes a character it stays below SentencePiece's limit of 4192 bytes."""

_TRAINING_THREADS = 4
"""Constant, because SentencePiece writes it into the model, whose bytes must not depend on the machine."""

_SPACE_MARK = "\u2581"


class ModelType(StrEnum):
    """How SentencePiece chooses pieces."""

    BPE = "bpe"
    """Byte-pair encoding, Sennrich et al. 2016 (arXiv:1508.07909)."""
    UNIGRAM = "unigram"
    """Kudo 2018 (arXiv:1804.10959)."""


class Tokenizer(ABC):
    """Text to tokens and back."""

    files: TokenizerFiles
    """The files it was loaded from, including accompanying ones."""

    @staticmethod
    def load(path: Path, *, home: Path | None = None, trusted: bool = False) -> "Tokenizer":
        """Read a SentencePiece model, a `tokenizer.json`, or the folder of a Hugging Face tokenizer.

        Args:
            path: A file or a folder.
            home: The folder that links must not leave; None: the folder itself.
            trusted: Whether this process or its parent has loaded it before; otherwise a child tries it first, since
                the libraries for these formats crash on some inputs.

        Raises:
            DataError: it cannot be read, has no end-of-document token, or loses text.
        """
        files = TokenizerFiles.read(path, home=home)
        if not trusted:
            check_in_child(files)
        return Tokenizer.of(files)

    @staticmethod
    def of(files: TokenizerFiles, /) -> "Tokenizer":
        """Return the tokenizer of files already read; raises as `load` does."""
        kind = SentencePieceTokenizer if files.is_sentencepiece else HuggingFaceTokenizer
        content = files.contents[MODEL_NAME if files.is_sentencepiece else JSON_NAME]
        return kind(content, place=files.place, files=files)

    @property
    def saved_as(self) -> str:
        """Name to pass to `save` within a folder of prepared data."""
        return MODEL_NAME if self.files.is_one_file else "tokenizer"

    def save(self, path: Path) -> None:
        """Write what `load` reads: all files unchanged."""
        self.files.save(path)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Actual number of tokens."""

    @property
    @abstractmethod
    def eod_id(self) -> int:
        """Token that ends every document."""

    @property
    @abstractmethod
    def bos_id(self) -> int | None:
        """Token that begins every document and every prompt; None: there is none."""

    @property
    @abstractmethod
    def text_sha256(self) -> str:
        """Hash of everything that turns text into tokens."""

    @property
    def sha256(self) -> str:
        """Hash of everything that decides how documents are encoded; stored with the data."""
        if self.bos_id is None:
            return self.text_sha256
        return hashlib.sha256(f"{self.text_sha256} bos {self.bos_id}".encode()).hexdigest()

    @abstractmethod
    def token(self, token_id: int) -> str:
        """Return the tokenizer's name of a token."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` alone, without the tokens that begin and end a document."""

    @abstractmethod
    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; end-of-document tokens decode to nothing."""

    @abstractmethod
    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, BOS and end-of-document included: int32 [tokens of it]."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model."""

    def __init__(
        self, model: bytes, *, place: str = "this SentencePiece model", files: TokenizerFiles | None = None
    ) -> None:
        """Load a model from its bytes.

        Args:
            model: the bytes of the model.
            place: the model's name in messages.
            files: the model's files, including accompanying ones; None: only the model.

        Raises:
            DataError: not a SentencePiece model, one without an end-of-document token, or one that loses text.
        """
        import sentencepiece

        self.files = files or TokenizerFiles(contents={MODEL_NAME: model}, place=place)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise DataError(f"{place} is not a SentencePiece model") from None
        self._model = model
        self._eod_id = self._find_eod(place)
        self._bos_id = self._find_bos(place)
        self._memory = RememberedWords(self._processor)
        _check_lossless(self, place=place)

    @property
    def vocab_size(self) -> int:
        """Actual number of pieces; a small corpus gives fewer than requested."""
        return int(self._processor.vocab_size())

    @property
    def eod_id(self) -> int:
        """Token that ends every document."""
        return self._eod_id

    @property
    def bos_id(self) -> int | None:
        """Token that begins every document and every prompt; None: there is none."""
        return self._bos_id

    @property
    def text_sha256(self) -> str:
        """Hash of the model."""
        return hashlib.sha256(self._model).hexdigest()

    def token(self, token_id: int) -> str:
        """Return a piece."""
        return str(self._processor.id_to_piece(token_id))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` alone, without the tokens that begin and end a document."""
        return list(self._processor.encode(text))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; end-of-document tokens decode to nothing."""
        return str(self._processor.decode([token for token in token_ids if token != self._eod_id]))

    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, BOS and end-of-document included: int32 [tokens of it].

        Words encoded before are cached, which saves half of the time on prose, less on code.
        """
        import numpy as np

        begin = np.array([] if self._bos_id is None else [self._bos_id], dtype=np.int32).tobytes()
        end = np.array([self._eod_id], dtype=np.int32).tobytes()
        for tokens in self._memory.encode(documents, num_threads=num_threads):
            yield np.frombuffer(begin + tokens + end, dtype=np.int32)

    def _find_bos(self, place: str) -> int | None:
        """Return the token that the accompanying files put in front of text; a model alone has none."""
        if self.files.is_model_alone or not self.files.adds_bos:
            return None
        named = self.files.special_token("bos_token")
        token_id = int(self._processor.bos_id() if named is None else self._processor.piece_to_id(named))
        if token_id < 0 or not self._processor.is_control(token_id):
            raise DataError(
                f"{place} must begin texts with {named or 'a bos_token'}, which is not one of its control pieces"
            )
        return token_id

    def _find_eod(self, place: str) -> int:
        named = self.files.special_token("eos_token")
        if named is None and (token_id := int(self._processor.eos_id())) >= 0:
            return token_id
        for piece in (EOD_PIECE, *_OTHER_EOD_PIECES) if named is None else (named,):
            token_id = int(self._processor.piece_to_id(piece))
            if self._processor.is_control(token_id) and self._processor.id_to_piece(token_id) == piece:
                return token_id
        if named is not None:
            raise DataError(f"{place} has no control piece {named!r}, which a file beside it names as eos_token")
        raise DataError(f"{place} has no end-of-sentence piece to end documents with; train it with an eos_id")


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json`, read by the `tokenizers` library; special tokens in the text are text."""

    def __init__(
        self,
        definition: bytes,
        *,
        eod_token: str | None = None,
        place: str = "this tokenizer.json",
        files: TokenizerFiles | None = None,
    ) -> None:
        """Load a `tokenizer.json` from its bytes.

        Args:
            definition: Its content.
            eod_token: The token that ends documents; None: the one that the files name, or a usual one.
            place: Its name in messages.
            files: It and its accompanying files.

        Raises:
            DataError: not a tokenizer, one without an end-of-document token, or one that loses text.
        """
        import tokenizers

        self.files = files or _files_of(definition, eod_token=eod_token, place=place)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(definition)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{place} is not a tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self._definition = definition
        self._eod_token = self._find_eod(eod_token or self.files.special_token("eos_token"), place=place)
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise DataError(f"{place} has a token of id {self.vocab_size - 1}; ids below {MAX_VOCAB_SIZE} are read")
        self._bos_id = self._find_bos(place)
        _check_lossless(self, place=place)

    @property
    def vocab_size(self) -> int:
        """The highest token id plus 1: vocabularies may have gaps."""
        return self._vocab_size

    @functools.cached_property
    def _vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def eod_id(self) -> int:
        """Token that ends every document."""
        token_id = self._tokenizer.token_to_id(self._eod_token)
        assert token_id is not None, "`_find_eod` has found it"
        return token_id

    @property
    def bos_id(self) -> int | None:
        """Token that begins every document and every prompt; None: there is none."""
        return self._bos_id

    @property
    def text_sha256(self) -> str:
        """Hash of `tokenizer.json` and the end-of-document token."""
        return hashlib.sha256(self._definition + b"\0" + self._eod_token.encode()).hexdigest()

    def token(self, token_id: int) -> str:
        """Return a token as in the vocabulary."""
        return str(self._tokenizer.id_to_token(token_id))

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text` alone, without the tokens that begin and end a document."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids`; special tokens decode to nothing."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def encode_documents(self, documents: Sequence[bytes], *, num_threads: int) -> "Iterator[npt.NDArray[np.int32]]":
        """Yield the token ids of each UTF-8 document, BOS and end-of-document included: int32 [tokens of it].

        The library reads its number of threads from RAYON_NUM_THREADS; `num_threads` 1 disables threads.
        """
        import numpy as np

        begin = [] if self._bos_id is None else [self._bos_id]
        end, texts = [self.eod_id], [document.decode() for document in documents]
        encode_one = self._tokenizer.encode
        encodings = (
            (encode_one(text, add_special_tokens=False) for text in texts)
            if num_threads == 1
            else self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        )
        for encoding in encodings:
            yield np.array(begin + encoding.ids + end, dtype=np.int32)

    def _find_bos(self, place: str) -> int | None:
        """Return the token that the tokenizer's template, or its settings, put in front of a text."""
        if self.files.was_saved_without_bos:
            return None
        text = _PROBES[0]
        plain, whole = self.encode(text), list(self._tokenizer.encode(text, add_special_tokens=True).ids)
        start = len(whole) - len(plain) - (whole[-1:] == [self.eod_id])
        if start not in (0, 1) or whole[start : start + len(plain)] != plain:
            extra = [self.token(token) for token in whole if token not in plain]
            raise DataError(
                f"{place} adds {' '.join(extra)} to texts; here a document begins with at most one token, and ends "
                f"with {self._eod_token}"
            )
        named = self.files.special_token("bos_token") if self.files.adds_bos else None
        if start == 0 and named is not None:
            return self._id_of_bos(named, place=place)
        return whole[0] if start else None

    def _id_of_bos(self, named: str, *, place: str) -> int:
        token_id = self._tokenizer.token_to_id(named)
        if token_id is None:
            raise DataError(f"{place} must begin texts with {named!r}, which is not one of its tokens")
        return int(token_id)

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


def _files_of(definition: bytes, *, eod_token: str | None, place: str) -> TokenizerFiles:
    """Return the files of a definition that has no others: they must record the token that was named."""
    named = {} if eod_token is None else {CONFIG_NAME: (json.dumps({"eos_token": eod_token}) + "\n").encode()}
    return TokenizerFiles(contents={JSON_NAME: definition, **named}, place=place)


def _check_lossless(tokenizer: Tokenizer, *, place: str) -> None:
    pairs = ((text, tokenizer.decode(tokenizer.encode(text))) for text in _PROBES)
    if lost := [f"{place} loses text: {text!r} decodes to {decoded!r}" for text, decoded in pairs if decoded != text]:
        raise DataError(lost)


def train_tokenizer(
    documents: Sequence[bytes], *, vocab_size: int, model_type: ModelType = ModelType.BPE
) -> SentencePieceTokenizer:
    """Train a SentencePiece model of at most `vocab_size` pieces; the same documents give the same bytes.

    Line ends are ordinary characters here, so that frequent line ends become pieces.

    Args:
        documents: UTF-8 texts.
        vocab_size: largest number of pieces.
        model_type: how SentencePiece chooses pieces.

    Raises:
        DataError: `vocab_size` is below `MIN_VOCAB_SIZE`, or there is no text to train on.
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
            character_coverage=1.0,  # of the sentences, which contain only the alphabet
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
    """Return the characters that get their own pieces: the most frequent, up to 99.95 % of the text.

    Done here because SentencePiece refuses a character coverage below 0.98, which a small vocabulary for a large script
    needs; other characters become bytes.
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
