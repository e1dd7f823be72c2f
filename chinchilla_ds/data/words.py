"""Words, where scripts have spaces and where they have none: what two texts are compared by, and how long one is.

A unit is what white space and punctuation leave between them. Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and
others put no space between words; there a unit is one character with the marks that belong to it. Decontamination,
shingles of words and the shortest length all count these units.

Texts are compared in a form that no document is ever given: Unicode's NFKC (full width is half width, composed is
decomposed), lower case, and without characters that are not seen.
"""

import re
import string
import unicodedata
from collections.abc import Callable
from functools import lru_cache

UNIT_CHARACTERS = 4
"""Characters that a unit of a script without spaces counts for in a length.

The first article of the Universal Declaration of Human Rights has 4.4 times as many characters in English as in Chinese.
"""

_IDEOGRAPHS = (
    (0x3400, 0x4DBF),  # extension A
    (0x4E00, 0x9FFF),
    (0x17000, 0x18D7F),  # Tangut
    (0x1AFF0, 0x1B2FF),  # kana extensions, Nushu
    (0x20000, 0x3FFFD),  # planes of ideographs
)
"""Blocks of scripts without spaces that hold letters alone."""

_MIXED_BLOCKS = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # radicals
    (0x3005, 0x312F),  # ideographic numbers and iteration marks, Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31BF),  # Bopomofo extended
    (0x31F0, 0x31FF),  # Katakana extensions
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar extended B
    (0xAA60, 0xAADF),  # Myanmar extended A, Tai Viet
    (0xF900, 0xFAFF),  # compatibility ideographs
    (0xFF66, 0xFF9F),  # half-width Katakana
    (0x11700, 0x1174F),  # Ahom
)
"""Blocks of scripts without spaces that hold letters beside marks, digits and punctuation. Korean has spaces."""

_SELECTORS = "\u0300-\u036f\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Marks of no script of their own, joiners, and selectors of variants."""

_ASCII_PUNCTUATION = frozenset(string.punctuation)


@lru_cache(maxsize=1)
def _unspaced() -> re.Pattern[str]:
    """Return the pattern of a unit of a script without spaces."""
    mixed = [chr(code) for first, last in _MIXED_BLOCKS for code in range(first, last + 1)]
    letters = "".join(one for one in mixed if unicodedata.category(one) in ("Lo", "Lm", "Nl"))
    marks = "".join(one for one in mixed if unicodedata.category(one).startswith("M"))
    ideographs = "".join(f"{chr(first)}-{chr(last)}" for first, last in _IDEOGRAPHS)
    return re.compile(f"[{letters}{ideographs}][{marks}{_SELECTORS}]*")


@lru_cache(maxsize=1)
def _beside_unspaced() -> re.Pattern[str]:
    """Return the pattern of a unit of a script without spaces with a space on either side or both."""
    unit = _unspaced().pattern
    return re.compile(f" ?({unit}) ?")


def comparable(text: str, /) -> str:
    """Return the form of a text in which it is compared: NFKC, lower case, no invisible characters."""
    if text.isascii():
        return text.lower()
    lowered = unicodedata.normalize("NFKC", text).lower()
    return replace_kind(lowered, _is_invisible, "")


def without_punctuation(text: str, /) -> str:
    """Return the text without punctuation: ASCII's 32 marks, and Unicode's categories P."""
    return replace_kind(text, _is_punctuation, "")


def without_separators(text: str, /) -> str:
    """Return the text with a space for each mark of punctuation and control character."""
    return replace_kind(text, _is_separator, " ")


def words(text: str, /) -> list[str]:
    """Return the units of a text, in the form in which they are compared."""
    return space_out(without_separators(comparable(text))).split()


def space_out(text: str, /) -> str:
    """Return the text with a space on both sides of each unit of a script without spaces."""
    return text if text.isascii() else _unspaced().sub(r" \g<0> ", text)


def close_up(text: str, /) -> str:
    """Return the text without the single spaces beside units of scripts without spaces, which mean little there."""
    return text if text.isascii() else _beside_unspaced().sub(r"\1", text)


def length(text: str, /) -> int:
    """Return the length of a text in characters, punctuation and repeated white space left out.

    A unit of a script without spaces counts for UNIT_CHARACTERS, and the space beside it for nothing. A text is
    measured in NFC, so that it is as long in each Unicode form, and without invisible characters.
    """
    if not text.isascii():
        text = replace_kind(unicodedata.normalize("NFC", text), _is_invisible, "")
    plain = without_punctuation(text.lower())
    rest, num_units = (plain, 0) if plain.isascii() else _unspaced().subn("", plain)
    return len(" ".join(rest.split())) + UNIT_CHARACTERS * num_units


def replace_kind(text: str, condition: Callable[[str], bool], by: str, /) -> str:
    """Replace the characters of a kind, one `str.replace` for each distinct one: faster than any table."""
    for character in filter(condition, set(text)):
        text = text.replace(character, by)
    return text


def _is_punctuation(character: str) -> bool:
    return unicodedata.category(character).startswith("P") or character in _ASCII_PUNCTUATION


def _is_separator(character: str) -> bool:
    return _is_punctuation(character) or unicodedata.category(character) == "Cc"


def _is_invisible(character: str) -> bool:
    """Return whether a character is only for layout: soft hyphen, joiners, marks of direction, zero-width space."""
    return unicodedata.category(character) == "Cf"
