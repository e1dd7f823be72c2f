"""SentencePiece itself against `tokenizers` that loads our tokenizer.json, for many ways to train a model."""

import argparse
import functools
import inspect
import io
import random

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from chinchilla_ds.data.tokenizing.sentencepiece_json import check_exportable, to_tokenizers
from chinchilla_ds.data.tokenizing.tokenizer import ModelType, SentencePieceTokenizer, train_tokenizer
from chinchilla_ds.errors import DataError
from tests.unit.data.conftest import make_documents
from tests.unit.data.tokenizing.test_tokenizer import fuzzed_texts

SENTENCES = [
    *(line for line in inspect.getsource(argparse).splitlines() if line.strip()),
    *["世界你好 机器学习", "héllo wörld 12345", "🙂🙂 👩‍👩‍👧", "a\u00a0b ===="] * 20,
]
PARTS = [
    " ", "  ", "\n", "\t", "\r\n", "a", "ab", "def f(self):", "return ", "0", "12", "---", "###", "世界", "你好",
    "🙂", "é", "e\u0301", "\u00a0", "\u200b", "ﬁ", "<0x0A>", "\u2581", "\u2585", "\x00", "\x07", "<sep>", "<sep>>",
    "\n\n", "█",
]  # fmt: skip
LLAMA = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
BARE = {"add_dummy_prefix": False}
EXACT = {
    "as Llama": {},
    "without a space in front": BARE,
    "pieces of white space": {"allow_whitespace_only_pieces": True},
    "pieces of white space, bare": {"allow_whitespace_only_pieces": True, **BARE},
    "split digits": {"split_digits": True},
    "pieces across words": {"split_by_whitespace": False},
    "pieces across scripts": {"split_by_unicode_script": False},
    "digits and line ends are pieces": {"user_defined_symbols": ["0", "1", "\n", "\t"]},
    "pieces of the user": {"user_defined_symbols": ["<sep>", "\n\n", "\u2581\u2581", "---"], **BARE},
    "pieces of the user within each other": {
        "user_defined_symbols": ["<sep>", "<sep>>", "a", "ab", "\u2581\u2581\u2581\u2581", "\u2581\u2581"],
        **BARE,
    },
    "no BOS, other ids": {"bos_id": -1, "eos_id": 0, "unk_id": 1},
    "padding": {"pad_id": 3},
    "control pieces": {"control_symbols": ["<|user|>"]},
    "few characters": {"character_coverage": 0.98},
    "long pieces": {"vocab_size": 2000, "split_by_whitespace": False, "max_sentencepiece_length": 32},
}
REFUSED = {
    "spaces after words": ({"treat_whitespace_as_suffix": True}, "writes spaces after words"),
    "no byte fallback": ({"byte_fallback": False}, "has no byte fallback"),
    "extra spaces": ({"remove_extra_whitespaces": True}, "removes extra spaces"),
    "nmt_nfkc": ({"normalization_rule_name": "nmt_nfkc"}, "normalises text (nmt_nfkc)"),
    "nfkc_cf": ({"normalization_rule_name": "nfkc_cf"}, "normalises text (nfkc_cf)"),
    "unigram": ({"model_type": "unigram"}, "is a unigram model"),
    "word": ({"model_type": "word"}, "is a word model"),
    "character": ({"model_type": "char"}, "is a character model"),
    "pieces of the user behind a space": ({"user_defined_symbols": ["<sep>"]}, "'<sep>', and adds a space in front"),
    "a space in a piece": ({"user_defined_symbols": ["a b"], **BARE}, "piece with a space in it, 'a b'"),
}


def train(**options):
    model = io.BytesIO()
    settings = {"vocab_size": 600, "hard_vocab_limit": False, "minloglevel": 2, "byte_fallback": True, **LLAMA}
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=iter(SENTENCES), model_writer=model, **settings | options)
    return model.getvalue()


@functools.cache
def texts():
    """Runs and mixtures of parts, code points of all planes, and code with its indentation."""
    generator = random.Random(5)
    lines = inspect.getsource(argparse)
    starts = [generator.randrange(len(lines)) for _ in range(100)]
    mixed = [
        "".join(
            generator.choice(PARTS) * generator.choice([1, 1, 1, 2, 3, 7, 20]) for _ in range(generator.randint(0, 25))
        )
        for _ in range(400)
    ]
    return [*mixed, *fuzzed_texts(200), *(lines[start : start + 400] for start in starts), " " * 100, "a" + " " * 77]


def differences(model):
    """Texts whose ids, or whose text from them, are not those of SentencePiece."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    written = to_tokenizers(model, place="model").to_str()
    theirs = tokenizers.Tokenizer.from_str(written)
    theirs.encode_special_tokens = True
    found = []
    for text in texts():
        wanted = processor.encode(text)
        ids = theirs.encode(text, add_special_tokens=False).ids
        if ids != wanted or theirs.decode(wanted) != processor.decode(wanted):
            found.append(text)
    return found


@pytest.mark.parametrize("options", EXACT.values(), ids=EXACT)
def test_ids_are_those_of_sentencepiece(options):
    assert differences(train(**options)) == []


def test_ids_of_our_own_models_are_those_of_sentencepiece():
    documents = [*(text.encode() for text in make_documents(number=100)), inspect.getsource(argparse).encode()]
    for vocab_size in (400, 3000):
        assert differences(train_tokenizer(documents, vocab_size=vocab_size)._model) == []


def with_tied_runs(model):
    """As Llama 2 and Mistral have it: every run of spaces has the lowest score."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    runs = {piece.piece: piece for piece in proto.pieces if set(piece.piece) == {"\u2581"}}
    assert len(runs) > 4
    for piece in runs.values():
        piece.score = -1e9
    return proto.SerializeToString()


@pytest.mark.parametrize("options", [{}, BARE], ids=["as Llama", "bare"])
def test_runs_of_spaces_with_one_score(options):
    assert differences(with_tied_runs(train(allow_whitespace_only_pieces=True, **options))) == []


@pytest.mark.parametrize(("options", "text"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_exact_counterpart_is_refused_in_one_line(options, text):
    with pytest.raises(DataError) as caught:
        to_tokenizers(train(**options), place="their.model")
    [problem] = caught.value.problems
    assert problem.startswith("their.model cannot be written as a tokenizer.json")
    assert text in problem


def test_pieces_of_one_score_that_compete_are_refused():
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(train())
    for piece in proto.pieces:
        if piece.type == 1 and len(piece.piece) > 1:
            piece.score = 0.0
    with pytest.raises(DataError, match="compete, and SentencePiece decides by their position alone"):
        to_tokenizers(proto.SerializeToString(), place="their.model")


def test_only_a_model_that_stands_alone_must_be_written():
    unigram = train_tokenizer(
        [text.encode() for text in make_documents(number=80)], vocab_size=400, model_type=ModelType.UNIGRAM
    )
    with pytest.raises(DataError, match="is a unigram model"):
        check_exportable(unigram)
    check_exportable(SentencePieceTokenizer(train()))
