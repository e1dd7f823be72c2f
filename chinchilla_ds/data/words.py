"""Words in scripts with and without spaces: the units by which texts are compared and measured.

A unit is delimited by white space and punctuation. Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan and other
scripts have no spaces between words; there a unit is one character with the marks that belong to it. Decontamination,
shingles of words and the minimum length all count these units.

Texts are compared in a normalised form that is never written to a document: Unicode's NFKC (full width equals half
width, composed equals decomposed), lower case, and without invisible characters.
"""

import re
import string
import unicodedata
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import NamedTuple

UNIT_CHARACTERS = 4
"""Characters that a unit of a script without spaces counts as in a length.

The first article of the Universal Declaration of Human Rights has 4.4 times as many characters in English as in
Chinese.
"""

_IDEOGRAPHS = (
    (0x3400, 0x4DBF),  # extension A
    (0x4E00, 0x9FFF),
    (0x17000, 0x18D7F),  # Tangut
    (0x1AFF0, 0x1B2FF),  # kana extensions, Nushu
    (0x20000, 0x3FFFD),  # planes of ideographs
)
"""Blocks of scripts without spaces that contain only letters."""

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
    (0x16FE0, 0x16FFF),  # marks of Tangut, Nushu and Khitan
)
"""Blocks of scripts without spaces that contain letters, marks, digits and punctuation. Korean has spaces."""

_SELECTORS = "\u0300-\u036f\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Marks without a script of their own, and variation selectors."""

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


class _Kind(StrEnum):
    """The role of a character in a comparison."""

    PUNCTUATION = "ASCII's 32 marks, and Unicode's categories P"
    CONTROL = "a control character"
    INVISIBLE = "layout only: soft hyphen, joiner, mark of direction, zero-width space"
    UNSPACED = "a letter of a script without spaces"
    OTHER = "a letter, digit or symbol, or white space"


def comparable(text: str, /) -> str:
    """Return a text in NFKC and lower case."""
    if text.isascii():
        return text.lower()
    for character in set(text):  # a few replacements, after which `normalize` has nothing left to do
        if (plain := _nfkc(character)) != character:
            text = text.replace(character, plain)
    return unicodedata.normalize("NFKC", text).lower()


def characters(text: str, /) -> str:
    """Return a text for comparison by characters: no punctuation, single spaces, none beside unspaced scripts."""
    plain, has_unspaced = _replaced(comparable(text), {_Kind.PUNCTUATION: "", _Kind.INVISIBLE: ""})
    plain = " ".join(plain.split())
    return _patterns().gap.sub("", plain) if has_unspaced else plain


def words(comparable_text: str, /) -> list[str]:
    """Return the units of a text from `comparable`; punctuation and control characters separate them."""
    by = {_Kind.PUNCTUATION: " ", _Kind.CONTROL: " ", _Kind.INVISIBLE: ""}
    plain, has_unspaced = _replaced(comparable_text, by)
    return _patterns().word.findall(plain) if has_unspaced else plain.split()


def length(text: str, /) -> int:
    """Return the length of a text in characters, punctuation and repeated white space left out.

    A unit of a script without spaces counts as UNIT_CHARACTERS, and the space beside it as nothing. A text is
    measured in NFC, so that its length does not depend on the Unicode form, and without invisible characters.
    """
    lowered = text.lower() if text.isascii() else unicodedata.normalize("NFC", text).lower()
    plain, has_unspaced = _replaced(lowered, {_Kind.PUNCTUATION: "", _Kind.INVISIBLE: ""})
    spaced, num_units = _patterns().unit.subn("", plain) if has_unspaced else (plain, 0)
    return len(" ".join(spaced.split())) + UNIT_CHARACTERS * num_units


def _replaced(text: str, by: Mapping[_Kind, str], /) -> tuple[str, bool]:
    """Return the text with its kinds of characters replaced, and whether it has letters of scripts without spaces.

    One `str.replace` for each distinct character is faster than any table.
    """
    if text.isascii() and not by[_Kind.PUNCTUATION]:
        return text.translate(_ASCII_PUNCTUATION), False
    has_unspaced = False
    for character in set(text):
        kind = _kind(character)
        has_unspaced |= kind is _Kind.UNSPACED
        if kind in by:
            text = text.replace(character, by[kind])
    return text, has_unspaced


@cache
def _nfkc(character: str) -> str:
    return unicodedata.normalize("NFKC", character)


@cache
def _kind(character: str) -> _Kind:
    category = unicodedata.category(character)
    if category.startswith("P") or character in string.punctuation:
        return _Kind.PUNCTUATION
    if category == "Cc":
        return _Kind.CONTROL
    if category == "Cf":
        return _Kind.INVISIBLE
    return _Kind.UNSPACED if _patterns().unit.match(character) else _Kind.OTHER


class _Patterns(NamedTuple):
    unit: re.Pattern[str]
    """A unit of a script without spaces."""
    word: re.Pattern[str]
    """A unit of any script."""
    gap: re.Pattern[str]
    """A space beside a unit of a script without spaces; it starts with the space, which is fast to search for."""


@cache
def _patterns() -> _Patterns:
    mixed = [chr(code) for first, last in _MIXED_BLOCKS for code in range(first, last + 1)]
    letters = "".join(character for character in mixed if unicodedata.category(character) in ("Lo", "Lm", "Nl"))
    letters += "".join(f"{chr(first)}-{chr(last)}" for first, last in _IDEOGRAPHS)
    marks = "".join(character for character in mixed if unicodedata.category(character).startswith("M"))
    unit = f"[{letters}][{marks}{_SELECTORS}]*"
    return _Patterns(
        unit=re.compile(unit),
        word=re.compile(rf"{unit}|[^\s{letters}]+"),
        gap=re.compile(f" (?:(?=[{letters}])|(?<=[{letters}{marks}] ))"),
    )
