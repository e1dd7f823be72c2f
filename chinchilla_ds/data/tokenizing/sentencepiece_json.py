"""A SentencePiece model as a Hugging Face `tokenizer.json` that gives the same ids for every text, or a refusal.

transformers' own converter is not used: it strips spaces at the end, joins several into one, turns the literal text
`<0x0A>` or `<|endoftext|>` into the piece of that name, and orders merges differently from SentencePiece.

Byte-pair models are converted exactly (`data.tokenizing.merge_order`). Unigram models are not: if two segmentations of
a text are equally good, or nearly so, SentencePiece decides by the rounding of 32-bit sums and `tokenizers` by that of
64-bit ones.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from chinchilla_ds.data.tokenizing.files import MODEL_NAME
from chinchilla_ds.data.tokenizing.merge_order import TiedScoresError, merges_of
from chinchilla_ds.data.tokenizing.tokenizer import SentencePieceTokenizer, Tokenizer
from chinchilla_ds.errors import DataError

if TYPE_CHECKING:
    import tokenizers

_SPACE_MARK = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""SentencePiece's types of pieces (sentencepiece_model.proto)."""
_BPE = 2
_MODEL_TYPES = {1: "unigram", 3: "word", 4: "character"}
_MAX_WORK = 50_000_000
"""Largest sum of the squared lengths of pieces; 256,000 pieces of natural text have a quarter of it and take 4 s."""
_PROBES = (
    "",
    " a  b   c\n\n\td ",
    "def f(x):\n    return x  # 1234567890\n",
    *(f"if x:\n{' ' * width}y" for width in range(1, 40)),
    "\u4e16\u754c\uff0c\u4f60\u597d\u3002\u673a\u5668\u5b66\u4e60",
    "\U0001f642\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "Gr\u00fc\u00dfe, cafe\u0301, \u0627\u0644\u0639\u0631\u0628",
    "<|endoftext|><unk><0x0A>",
)


def check_exportable(tokenizer: Tokenizer, /) -> None:
    """Check that the tokenizer can be exported: one with its own files is copied, a SentencePiece model converted.

    Raises:
        DataError: no `tokenizer.json` gives the same ids.
    """
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.files.is_model_alone:
        as_tokenizers(tokenizer)


def as_tokenizers(tokenizer: SentencePieceTokenizer, /) -> "tokenizers.Tokenizer":
    """Return the converted tokenizer of a SentencePiece model, compared with it on some texts and on all pieces.

    Raises:
        DataError: it cannot be converted with the same ids.
    """
    place = tokenizer.files.place
    converted = to_tokenizers(tokenizer.files.contents[MODEL_NAME], place=place)
    for text in (*_PROBES, *(tokenizer.decode([token]) for token in range(tokenizer.vocab_size))):
        ids = converted.encode(text, add_special_tokens=False).ids
        if (wanted := tokenizer.encode(text)) != ids:
            raise DataError(
                f"{place} cannot be written as a tokenizer.json: {text!r} is {wanted} by SentencePiece and {ids} by "
                "tokenizers"
            )
    return converted


def to_tokenizers(model: bytes, /, *, place: str) -> "tokenizers.Tokenizer":
    """Return the converted tokenizer of a SentencePiece model; control pieces become special tokens.

    Args:
        model: The bytes of a `tokenizer.model` that SentencePiece can read.
        place: The tokenizer's name in messages.

    Raises:
        DataError: it is of a kind that cannot be written as a `tokenizer.json`.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, normalizers

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    if problems := list(_unsupported(proto)):
        raise DataError(
            f"{place} cannot be written as a tokenizer.json, without which no model is exported: it "
            f"{', and it '.join(problems)}; give a Hugging Face folder with a tokenizer.json, or let one be trained"
        )
    tokenizer = tokenizers.Tokenizer(_bpe(proto, place=place))
    steps: list[Any] = [normalizers.Replace(" ", _SPACE_MARK)]
    undo: list[Any] = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(_SPACE_MARK))
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(undo)
    control = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in control])
    whole = [tokenizers.AddedToken(name, special=False, normalized=True) for name in _whole_pieces(proto)]
    tokenizer.add_tokens(whole)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _whole_pieces(proto: Any) -> list[str]:
    """Return the user-defined pieces of several characters, which are matched before any merging."""
    return [piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED and len(piece.piece) > 1]


def _unsupported(proto: Any) -> Iterator[str]:
    """Yield the features of the model that no `tokenizer.json` can express."""
    kind, normalizer = proto.trainer_spec.model_type, proto.normalizer_spec
    if kind != _BPE:
        yield f"is a {_MODEL_TYPES.get(kind, 'strange')} model, and only byte-pair models have an exact counterpart"
    if not proto.trainer_spec.byte_fallback:
        yield "has no byte fallback"
    if normalizer.precompiled_charsmap or proto.denormalizer_spec.precompiled_charsmap:
        yield f"normalises text ({normalizer.name or 'by its own rules'}), which loses the original"
    if normalizer.remove_extra_whitespaces:
        yield "removes extra spaces"
    if not normalizer.escape_whitespaces:
        yield f"does not write spaces as {_SPACE_MARK}"
    if proto.trainer_spec.treat_whitespace_as_suffix:
        yield "writes spaces after words"
    yield from _unsupported_pieces(proto)


def _unsupported_pieces(proto: Any) -> Iterator[str]:
    names: dict[int, list[str]] = {kind: [] for kind in range(1, 7)}
    for piece in proto.pieces:
        names[piece.type].append(piece.piece)
    if names[_UNUSED]:
        yield f"has unused pieces, such as {names[_UNUSED][0]!r}"
    if short := [name for name in names[_CONTROL] if len(name) == 1]:
        yield f"has a control piece of one character, {short[0]!r}"
    whole = _whole_pieces(proto)
    if whole and proto.normalizer_spec.add_dummy_prefix:
        yield f"has user-defined pieces, such as {whole[0]!r}, and adds a space in front of text"
    if spaced := [name for name in names[_USER_DEFINED] if " " in name]:
        yield f"has a user-defined piece with a space in it, {spaced[0]!r}"
    characters = {name for name in names[_NORMAL] + names[_USER_DEFINED] if len(name) == 1}
    if sum(len(name) ** 2 for name in names[_NORMAL]) > _MAX_WORK:
        yield f"has pieces of up to {max(map(len, names[_NORMAL]))} characters, too long to compare"
    if lost := [name for name in names[_NORMAL] if not characters.issuperset(name)]:
        yield f"has a piece, {lost[0]!r}, of characters that are not pieces"


def _bpe(proto: Any, *, place: str) -> Any:
    """Return the byte-pair model; user-defined pieces of one character are never merged with others."""
    from tokenizers import models

    frozen = {piece.piece for piece in proto.pieces if piece.type == _USER_DEFINED and len(piece.piece) == 1}
    scores = {
        piece.piece: piece.score
        for piece in proto.pieces
        if piece.type == _NORMAL and len(piece.piece) > 1 and frozen.isdisjoint(piece.piece)
    }
    try:
        merges = merges_of(scores)
    except TiedScoresError as error:
        raise DataError(f"{place} cannot be written as a tokenizer.json: {error}") from None
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(proto.pieces)},
        merges=merges,
        unk_token=proto.trainer_spec.unk_piece,
        byte_fallback=True,
    )
