"""Streaming: what is shown adds up to the text, is whole, and stops in time."""

import random

import pytest

from chinchilla_ds.inference.text_stream import TextStream
from tests.unit.inference.models import small_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def pieces_of(tokenizer, tokens, *, prompt=(), stop=()):
    """Return what the stream shows after each token, the end last, and the stream."""
    stream = TextStream(tokenizer, prompt=prompt, stop=stop)
    shown = []
    for token in tokens:
        shown.append(stream.add(token))
        if stream.is_stopped:
            break
    return [*shown, stream.finish()], stream


def test_characters_of_several_bytes_are_shown_whole(tokenizer):
    text = "def \u4e16\u754c \U0001f642 \u00e9!"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text), "characters outside the vocabulary are bytes"
    shown, _ = pieces_of(tokenizer, tokens)
    assert "".join(shown) == text
    assert "\ufffd" not in "".join(shown)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_add_up_to_the_text_of_all_tokens_also_where_bytes_are_no_utf8(tokenizer, seed):
    generator = random.Random(seed)
    bytes_only = seed % 2
    tokens = [generator.randrange(2, 258 if bytes_only else tokenizer.vocab_size) for _ in range(80)]
    prompt = tokenizer.encode("def f(x):\n")
    shown, _ = pieces_of(tokenizer, tokens, prompt=prompt)
    assert "".join(shown) == tokenizer.decode([*prompt, *tokens]).removeprefix("def f(x):\n")


def test_the_end_of_half_a_character_is_shown_at_the_end_alone(tokenizer):
    half = tokenizer.encode("a\u4e16")[:-1]
    shown, _ = pieces_of(tokenizer, half)
    assert shown[-1] == "\ufffd\ufffd"
    assert "\ufffd" not in "".join(shown[:-1])


def test_a_stop_string_across_tokens_ends_the_text_and_nothing_of_it_is_shown(tokenizer):
    text = "return name_list(x) = 3\nclass value"
    tokens = tokenizer.encode(text)
    stop = "= 3\ncla"
    assert not any(stop in tokenizer.decode([token]) for token in tokens), "no token holds it alone"
    shown, stream = pieces_of(tokenizer, tokens, stop=[stop, "never"])
    assert stream.is_stopped
    assert "".join(shown) == "return name_list(x) "
    assert stream.finish() == ""


def test_the_beginning_of_a_stop_string_that_does_not_come_is_shown(tokenizer):
    text = "return = 3\nreturn = 4\n"
    shown, stream = pieces_of(tokenizer, tokenizer.encode(text), stop=["= 3\nclass", "\n\n"])
    assert not stream.is_stopped
    assert "".join(shown) == text
    assert shown[-1].endswith("\n"), "the last line end may have become a stop string and was held back"


def test_the_first_of_several_stop_strings_counts(tokenizer):
    text = "for value in list"
    shown, _ = pieces_of(tokenizer, tokenizer.encode(text), stop=["in", "value"])
    assert "".join(shown) == "for "


def test_a_tokenizer_that_drops_the_first_space_keeps_it_behind_a_prompt():
    """Llama's tokenizer writes a space in front of a text and drops it again, so ' b' alone decodes to 'b'."""

    class Llama:
        pieces = ("<s>", "\u2581a", "\u2581b")

        def decode(self, tokens):
            return "".join(self.pieces[token] for token in tokens).replace("\u2581", " ").removeprefix(" ")

    shown, _ = pieces_of(Llama(), [2, 1], prompt=[1])
    assert "".join(shown) == " b a"
