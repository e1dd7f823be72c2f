import io
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import sentencepiece
import tokenizers

from chinchilla_ds.data.tokenizing.remembered_words import _STRETCHES
from chinchilla_ds.data.tokenizing.tokenizer import (
    EOD_PIECE,
    HuggingFaceTokenizer,
    ModelType,
    SentencePieceTokenizer,
    Tokenizer,
    train_tokenizer,
)
from chinchilla_ds.errors import DataError
from tests.unit.data.conftest import make_documents

ALPHABETS = [
    "abc xyz",
    "\n\t\r ",
    "(){}[]<>=+-*/%#@!&|^~;:_,.?\"'`\\",
    "0123456789",
    "éßñ",
    "世界你好",
    "🙂👩‍👩‍👧🏽",
    "العربية",
    "\x00\x01\x7f\ufeff\u2585",
]


ENGLISH = [text.encode() for text in make_documents(number=200)]


def train_byte_level() -> tokenizers.Tokenizer:
    """Return a byte-level BPE as GPT-2 and Llama 3 have it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", EOD_PIECE],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text.decode() for text in ENGLISH], trainer)
    return made


@pytest.fixture(scope="module", params=["bpe", "unigram", "hugging face"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "hugging face":
        return HuggingFaceTokenizer(train_byte_level().to_str().encode())
    return train_tokenizer(ENGLISH, vocab_size=512, model_type=ModelType(request.param))


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
    return train_tokenizer(ENGLISH, vocab_size=512)


def fuzzed_texts(number: int) -> list[str]:
    """Mixtures of scripts, and of code points of all planes without surrogates and U+2581."""
    generator = random.Random(7)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000 and point != 0x2581]
    texts = []
    for _ in range(number):
        parts = [
            generator.choices(generator.choice(ALPHABETS), k=generator.randint(1, 6))
            if generator.random() < 0.7
            else map(chr, generator.choices(points, k=generator.randint(1, 6)))
            for _ in range(generator.randint(0, 20))
        ]
        texts.append("".join("".join(part) for part in parts))
    return texts


def test_round_trip_on_fuzzed_text_of_all_planes(tokenizer: Tokenizer) -> None:
    texts = fuzzed_texts(4000)
    encoded = tokenizer.encode_documents([text.encode() for text in texts], num_threads=1)
    for text, ids in zip(texts, encoded, strict=True):
        assert ids[-1] == tokenizer.eod_id
        assert ids[:-1].tolist() == tokenizer.encode(text)
        assert tokenizer.decode(ids.tolist()) == text
        assert 0 not in ids, "an unknown token, or padding"
        assert ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("model_type", list(ModelType))
@pytest.mark.parametrize("num_threads", [1, 2])
def test_remembered_words_give_what_sentencepiece_gives(model_type: ModelType, num_threads: int) -> None:
    """Twice, so that the second time all is remembered."""
    made = train_tokenizer(ENGLISH, vocab_size=512, model_type=model_type)
    assert made._memory.stretches is _STRETCHES[0]
    texts = [*fuzzed_texts(1000), *(text.decode() for text in ENGLISH), "a\u2581b \u2581 c", "   ", "a   b ", ""]
    for _ in range(2):
        found = made.encode_documents([text.encode() for text in texts], num_threads=num_threads)
        assert [ids[:-1].tolist() for ids in found] == [made.encode(text) for text in texts]


def test_memory_is_bounded(trained: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chinchilla_ds.data.tokenizing.remembered_words._MAX_REMEMBERED", 50)
    for number in range(0, 200, 20):
        list(trained.encode_documents([b"x" * 1000, " ".join(map(str, range(number))).encode()], num_threads=1))
        assert len(trained._memory._known) <= 50
        assert b"x" * 1000 not in trained._memory._known


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "   leading",
        "trailing   ",
        "\n",
        "\n\n\n",
        "a\r\nb",
        "\tif x:\n\t\treturn",
        "<0x0A>",
        "<unk>",
        EOD_PIECE,
    ],
)
def test_round_trip_of_awkward_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eod_id not in ids
    assert 0 not in ids, "an unknown token"


def test_the_one_loss_is_the_marker_of_sentencepiece(trained: Tokenizer) -> None:
    tokenizer = trained
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_digits_are_single_pieces(trained: Tokenizer) -> None:
    assert len(trained.encode("1234567890")) == 10


def test_documents_end_with_one_end_of_document_token(tokenizer: Tokenizer) -> None:
    texts = ["one", "two\n", "世界"]
    encoded = list(tokenizer.encode_documents([text.encode() for text in texts], num_threads=2))
    assert [ids.tolist() for ids in encoded] == [[*tokenizer.encode(text), tokenizer.eod_id] for text in texts]
    assert tokenizer.decode(encoded[0].tolist()) == "one"


def test_same_text_gives_the_same_model(trained: Tokenizer) -> None:
    again = train_tokenizer([text.encode() for text in make_documents(number=200)], vocab_size=512)
    other = train_tokenizer([text.encode() for text in make_documents(number=200, seed=1)], vocab_size=512)
    assert again.sha256 == trained.sha256
    assert other.sha256 != trained.sha256


def test_a_tiny_corpus_gives_fewer_pieces() -> None:
    tokenizer = train_tokenizer([b"ab ab ab\n"], vocab_size=4096)
    assert 258 <= tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("ab\n ba 世")) == "ab\n ba 世"


def test_more_characters_than_pieces_fall_back_to_bytes() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    tokenizer = train_tokenizer([text.encode()], vocab_size=512)
    assert tokenizer.vocab_size <= 512
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(" a  b ")) == " a  b ", "there was no space to learn from"


def test_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="there is no text to train a tokenizer on"):
        train_tokenizer([], vocab_size=512)


# ---- tokenizers that are brought ------------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / tokenizer.saved_as
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert type(again) is type(tokenizer)
    assert (again.sha256, again.eod_id, again.vocab_size) == (tokenizer.sha256, tokenizer.eod_id, tokenizer.vocab_size)
    assert again.encode("the loss") == tokenizer.encode("the loss")


CODE = [f"self.x{n % 7}=f(a[{n % 11}], self.y) + z_{n % 5}; return (x2)\n".encode() for n in range(300)]


def train_foreign(texts: Sequence[bytes] = ENGLISH, /, **options: object) -> bytes:
    """Return a SentencePiece model with SentencePiece's own defaults, a byte for what is unknown apart."""
    model = io.BytesIO()
    settings = {"byte_fallback": True, "vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentences = iter(text.decode() for text in texts)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **settings)
    return model.getvalue()


LLAMA_LIKE = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "model_type": "bpe"}


def test_a_model_as_llama_has_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(train_foreign(**LLAMA_LIKE, allow_whitespace_only_pieces=True))
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        loaded = Tokenizer.load(path)
        assert isinstance(loaded, SentencePieceTokenizer)
        assert loaded.eod_id == 2, "</s>"
        assert loaded._memory.stretches is None, "it adds a space in front of every text"
        texts = ["the loss grows", "  a", "x</s>y", "\u4e16 \U0001f642\n"]
        found = loaded.encode_documents([text.encode() for text in texts], num_threads=1)
        assert [ids.tolist() for ids in found] == [[*loaded.encode(text), 2] for text in texts]
        assert [loaded.decode(loaded.encode(text)) for text in texts] == texts


@pytest.mark.parametrize(
    ("options", "stretches"),
    [
        ({"split_digits": True}, _STRETCHES[0]),
        ({}, _STRETCHES[1]),  # a digit and a mark can be one piece
        ({"split_by_unicode_script": False}, _STRETCHES[1]),
        ({"split_by_whitespace": False}, None),
    ],
    ids=["letters, digits and marks apart", "digits", "scripts", "spaces"],
)
def test_text_is_cut_only_where_no_piece_of_the_model_crosses(
    options: dict[str, object], stretches: re.Pattern[bytes] | None
) -> None:
    made = SentencePieceTokenizer(train_foreign(CODE, **LLAMA_LIKE, add_dummy_prefix=False, **options))
    assert made._memory.stretches is stretches
    texts = [*fuzzed_texts(300), *(text.decode() for text in CODE), "x.y=(1+a2) b_c \u201ca\u201d.b", "caf\xe9(1)"]
    found = made.encode_documents([text.encode() for text in texts], num_threads=1)
    assert [ids[:-1].tolist() for ids in found] == [made.encode(text) for text in texts]


def test_a_model_that_loses_text_is_refused() -> None:
    with pytest.raises(DataError) as raised:
        SentencePieceTokenizer(train_foreign(), place="their.model")
    assert "their.model loses text: '  def f(x):\\n\\treturn x  # 1234' decodes to" in raised.value.problems[0]
    with pytest.raises(DataError, match="loses text"):
        SentencePieceTokenizer(train_foreign(**LLAMA_LIKE | {"byte_fallback": False}))


def test_a_model_without_an_end_is_refused() -> None:
    with pytest.raises(DataError, match="has no end-of-sentence piece to end documents with"):
        SentencePieceTokenizer(train_foreign(**LLAMA_LIKE, eos_id=-1))


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    """As `save_pretrained` writes it; `transformers` is the second implementation."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=train_byte_level(), eos_token=EOD_PIECE).save_pretrained(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eod_id == theirs.eos_token_id == 1
    text = "the loss of training\n \u4e16\u754c \U0001f642"
    assert loaded.encode(text) == theirs.encode(text, add_special_tokens=False)
    texts = [text, f"a{EOD_PIECE}b", ""]
    for num_threads in (1, 2):
        found = loaded.encode_documents([text.encode() for text in texts], num_threads=num_threads)
        assert [ids.tolist() for ids in found] == [[*loaded.encode(text), 1] for text in texts]
    assert 1 not in loaded.encode(texts[1]), "what looks like a special token is text"
    assert loaded.decode(loaded.encode(texts[1])) == texts[1]


def test_hash_covers_the_end_of_document_token(tmp_path: Path) -> None:
    definition = train_byte_level().to_str().encode()
    pad, eod = (HuggingFaceTokenizer(definition, eod_token=token) for token in ("<|pad|>", EOD_PIECE))
    assert pad.sha256 != eod.sha256
    assert (pad.eod_id, eod.eod_id) == (0, 1)


def test_bad_hugging_face_tokenizers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"holds neither tokenizer\.json nor tokenizer\.model; a slow Hugging Face"):
        Tokenizer.load(tmp_path)
    file.write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        Tokenizer.load(file)
    file.write_text(train_byte_level().to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|absent|>"}}))
    with pytest.raises(DataError, match=r"none of its special tokens is <\|absent\|>"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(DataError, match="is not a JSON object"):
        Tokenizer.load(tmp_path)
    lower = train_byte_level()
    lower.normalizer = tokenizers.normalizers.Lowercase()
    with pytest.raises(
        DataError, match="loses text: 'Gr\u00fc\u00dfe, caf\u00e9' decodes to 'gr\u00fc\u00dfe, caf\u00e9'"
    ):
        HuggingFaceTokenizer(lower.to_str().encode())


def test_what_is_no_model_is_refused(tmp_path: Path, trained: SentencePieceTokenizer) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(DataError, match=r"the tokenizer .*tokenizer.model cannot be read: No such file"):
        Tokenizer.load(path)
    trained.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="is not a SentencePiece model"):
        Tokenizer.load(path)
