import random

import pytest

from chinchilla_ds.data.tokenizer import EOD_PIECE, Tokenizer, train_tokenizer
from chinchilla_ds.errors import DataError
from tests.unit.data.conftest import make_documents

ALPHABETS = ["abc xyz", "\n\t\r ", "0123456789", "éßñ", "世界你好", "🙂👩‍👩‍👧🏽", "العربية", "\x00\x01\x7f\ufeff\u2585"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([text.encode() for text in make_documents(number=200)], vocab_size=512)


def test_round_trip_on_fuzzed_text(tokenizer: Tokenizer) -> None:
    generator = random.Random(7)
    for _ in range(300):
        text = "".join(
            "".join(generator.choices(generator.choice(ALPHABETS), k=generator.randint(1, 6)))
            for _ in range(generator.randint(0, 30))
        )
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_over_all_planes(tokenizer: Tokenizer) -> None:
    generator = random.Random(8)
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000 and point != 0x2581]
    text = "".join(map(chr, generator.sample(points, 5000)))
    assert tokenizer.decode(tokenizer.encode(text)) == text


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


def test_the_one_loss_is_the_marker_of_sentencepiece(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\u2581b")) == "a b"


def test_digits_are_single_pieces(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("1234567890")) == 10


def test_documents_end_with_one_end_of_document_token(tokenizer: Tokenizer) -> None:
    texts = ["one", "two\n", "世界"]
    encoded = list(tokenizer.encode_documents([text.encode() for text in texts], num_threads=2))
    assert [ids.tolist() for ids in encoded] == [[*tokenizer.encode(text), tokenizer.eod_id] for text in texts]
    assert tokenizer.decode(encoded[0].tolist()) == "one"


def test_same_text_gives_the_same_model(tokenizer: Tokenizer) -> None:
    again = train_tokenizer([text.encode() for text in make_documents(number=200)], vocab_size=512)
    other = train_tokenizer([text.encode() for text in make_documents(number=200, seed=1)], vocab_size=512)
    assert again.sha256 == tokenizer.sha256
    assert other.sha256 != tokenizer.sha256


def test_a_tiny_corpus_gives_fewer_pieces() -> None:
    tokenizer = train_tokenizer([b"ab ab ab\n"], vocab_size=4096)
    assert 258 <= tokenizer.vocab_size < 300
    assert tokenizer.decode(tokenizer.encode("ab\n ba 世")) == "ab\n ba 世"


def test_more_characters_than_pieces_fall_back_to_bytes() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    tokenizer = train_tokenizer([text.encode()], vocab_size=512)
    assert tokenizer.vocab_size <= 512
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="there is no text to train a tokenizer on"):
        train_tokenizer([], vocab_size=512)
