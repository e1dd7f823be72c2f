"""A SentencePiece model as a Hugging Face `tokenizer.json` that gives the same ids.

transformers' own converter is not used: it strips spaces at the end, joins several into one, and lets text that reads
`<0x0A>` or `<|endoftext|>` become that piece. Here a byte-pair model becomes the merges that SentencePiece would make:
it joins the neighbours whose union has the best score, the leftmost first, and so does `tokenizers` by the merges'
order.

Of a unigram model the scores are kept. Where two ways to cut a text are equally good ("----" as 1 + 3 or 3 + 1 marks),
SentencePiece decides by the rounding of its 32-bit sums and `tokenizers` by that of 64-bit ones, so ids can differ
there; the text is the same.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import DataError

if TYPE_CHECKING:
    import tokenizers

_SPACE_MARK = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""SentencePiece's types of pieces (sentencepiece_model.proto)."""
_UNIGRAM, _BPE = 1, 2


def to_tokenizers(model: bytes, /, *, place: str) -> "tokenizers.Tokenizer":
    """Return the tokenizer of a SentencePiece model; control pieces are special tokens.

    Args:
        model: The bytes of a `tokenizer.model`.
        place: How messages name it.

    Raises:
        DataError: it is of a kind that cannot be written as a `tokenizer.json`.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import decoders, normalizers

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    if problems := [f"{place} {problem}, which tokenizer.json cannot say" for problem in _unsupported(proto)]:
        raise DataError(problems)
    make = _bpe if proto.trainer_spec.model_type == _BPE else _unigram
    tokenizer = tokenizers.Tokenizer(make(proto))
    if make is _unigram:
        tokenizer.pre_tokenizer = _names_apart(proto)
    steps: list[Any] = [normalizers.Replace(" ", _SPACE_MARK)]
    undo: list[Any] = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.add_dummy_prefix:
        steps.insert(0, normalizers.Prepend(_SPACE_MARK))
        undo.append(decoders.Strip(" ", 1, 0))
    if proto.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(undo)
    control = [piece.piece for piece in proto.pieces if piece.type == _CONTROL]
    tokenizer.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in control])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _unsupported(proto: Any) -> Iterator[str]:
    if proto.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        yield "is neither a unigram nor a byte-pair model"
    if not proto.trainer_spec.byte_fallback:
        yield "has no byte fallback"
    if proto.normalizer_spec.remove_extra_whitespaces:
        yield "removes extra spaces"
    if proto.trainer_spec.treat_whitespace_as_suffix:
        yield "writes spaces behind words"
    if any(piece.type == _USER_DEFINED for piece in proto.pieces):
        yield "has user-defined pieces"


def _bpe(proto: Any) -> Any:
    from tokenizers import models

    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type == _NORMAL}
    merges = [
        (-score, cut, piece)
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(proto.pieces)},
        merges=[(piece[:cut], piece[cut:]) for _, cut, piece in sorted(merges)],
        unk_token=proto.trainer_spec.unk_piece,
        byte_fallback=True,
    )


def _unigram(proto: Any) -> Any:
    from tokenizers import models

    worst = min(piece.score for piece in proto.pieces if piece.type == _NORMAL)
    scores = [(piece.piece, piece.score if piece.type == _NORMAL else worst) for piece in proto.pieces]
    return models.Unigram(scores, unk_id=proto.trainer_spec.unk_id, byte_fallback=True)


def _names_apart(proto: Any) -> Any:
    """Return what cuts text behind the first character of what reads like a piece that text never becomes.

    `tokenizers` would take it for that piece, since it looks for all pieces of a unigram model in the text.
    """
    from tokenizers import Regex, pre_tokenizers

    names = [piece.piece for piece in proto.pieces if piece.type in (_UNKNOWN, _CONTROL)]
    apart = [f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names]
    return pre_tokenizers.Split(Regex("|".join([*apart, "<(?=0x[0-9A-F]{2}>)"])), behavior="merged_with_previous")
