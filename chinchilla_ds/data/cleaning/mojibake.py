# ruff: noqa: RUF001 (characters that look alike are the subject of this module)
"""Mojibake: text decoded with the wrong encoding is decoded again, if the whole document proves it.

UTF-8 checks itself: beyond ASCII, a first byte says how many bytes of another kind must follow. If every character of a
document is a byte of the same old encoding, and these bytes together are UTF-8, then the document was UTF-8.
Clean text fails this at its first ordinary accent, quotation mark or foreign letter. A chance match of a capital
and a character that may follow one in clean text (`MANHÃ”`, which is Ô in UTF-8) proves nothing; `_is_proof` decides
what does.

`repair_lines`, a rule that is off by default, lets ftfy guess at each line separately. ftfy reads 1 to
4 MB/s, nearly all of it spent on its test for unlikely character sequences (`BADNESS_RE`). Each such sequence contains
two neighbouring characters, or one character, from two small sets. `suspects` derives these pairs of sets from ftfy's
own pattern and searches for them with two table look-ups per character. A line without such a pair cannot match the
pattern, and ftfy returns it unchanged.

Only `cleaning` imports this module, and only if one of its rules is on: numpy and ftfy are loaded with it.
"""

import itertools
import re
import unicodedata
from functools import lru_cache

import ftfy
import numpy as np
import numpy.typing as npt
from ftfy import fixes
from ftfy.badness import BADNESS_RE
from ftfy.chardata import CHARMAP_ENCODINGS

FTFY_CONFIG = ftfy.TextFixerConfig(
    fix_encoding=True,
    restore_byte_a0=True,
    replace_lossy_sequences=True,
    decode_inconsistent_utf8=True,
    fix_c1_controls=True,
    fix_surrogates=True,
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    remove_control_chars=False,
    normalization=None,
    explain=True,
)
"""The repairs that ftfy may make to a line: decoding it again if it was decoded wrongly. docs/cleaning.md explains
every field.

`explain` is on because ftfy 6.3.1 otherwise ignores the four settings that follow `fix_encoding`.
"""

_SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
"""One character beyond ASCII in UTF-8."""

_AFTER_LETTERS = frozenset("\xa0\xad‚„…†‡‰‹›‘’“”•–—™«®°²³´·¹»")
"""Characters that may directly follow a letter in clean text: spaces, closing marks, dashes, footnote marks, signs,
apostrophes."""

_MIN_SEQUENCES = 5
"""Number of different sequences that together are proof, if none is on its own."""

_LOST_QUOTE = b"\xe2\x80 "
"""A closing quotation mark that has lost its last byte: ftfy would turn it into a dagger."""

_C1 = re.compile("[\x80-\x84\x86-\x9f]")
"""C1 controls except NEL, which breaks lines."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_BMP_SIZE = 0x10000
_CHUNK_CHARACTERS = 1 << 15
_TOKEN = re.compile(r"#[^\n]*|\[(?:\\.|[^\]\\])*\]\??|\\[sw]\??|[^\s\\\[\](){}*+?.]|\.|(?P<unknown>\S)")
_ANYTHING = r"[\s\S]"


def repair(text: str) -> tuple[str, int]:
    """Return the document, decoded again if all of it proves that it was decoded wrongly, and how many lines changed.

    Invalid characters are repaired in any document: C1 controls become Windows-1252's characters, as in HTML 5, and
    halves of UTF-16 pairs are joined or become U+FFFD.
    """
    if text.isascii() or not suspects(text):
        return text, 0
    fixed = fixes.fix_surrogates(text) if _SURROGATE.search(text) else text
    while (again := _decoded_again(fixed)) is not None:  # each layer needs its own proof
        fixed = again
    fixed = fixes.fix_c1_controls(fixed) if _C1.search(fixed) else fixed
    if fixed == text:
        return text, 0
    return fixed, sum(left != right for left, right in zip(text.split("\n"), fixed.split("\n"), strict=True))


def _decoded_again(text: str) -> str | None:
    """Return the document in UTF-8 if ftfy's encodings agree on it; None if none proves it, or two differ.

    Mac Roman also explains `Ã©`, as a mark below a letter; a reading of letters and signs takes precedence.
    """
    readings = {decoded for encoding in CHARMAP_ENCODINGS if (decoded := _decoded_from(text, encoding)) is not None}
    if len(readings) > 1:
        readings = {decoded for decoded in readings if not any(map(_is_mark_or_control, set(decoded) - set(text)))}
    return readings.pop() if len(readings) == 1 else None


def _is_mark_or_control(character: str) -> bool:
    return unicodedata.category(character)[0] in "MC"


def _decoded_from(text: str, encoding: str) -> str | None:
    """Return the document in UTF-8 if all of it, read as one old encoding, is valid UTF-8 and proves it."""
    try:
        content = text.encode(encoding)
        if not _is_proof(content, encoding=encoding) or _LOST_QUOTE in content:
            return None
        if encoding != "macroman":  # there it is an en dash before a space
            content = fixes.restore_byte_a0(content)
        if encoding.startswith("sloppy"):
            content = fixes.replace_lossy_sequences(content)
        return content.decode()
    except UnicodeError:
        return None


def _is_proof(content: bytes, *, encoding: str) -> bool:
    """Return whether the UTF-8 sequences in a document cannot be clean text of the old encoding.

    One sequence is enough if it starts with a letter and contains a sign that never follows one in clean text, as in
    `Ã§` and `â€™`. Letters and the characters in _AFTER_LETTERS may follow, as in `Úžas` and `MANHÃ”`.
    """
    sequences = {sequence.decode(encoding) for sequence in _SEQUENCE.findall(content)}
    for first, *others in sequences:
        if first.isalpha() and any(not other.isalpha() and other not in _AFTER_LETTERS for other in others):
            return True
    return len(sequences) >= _MIN_SEQUENCES


def repair_lines(text: str) -> tuple[str, int]:
    """Return `ftfy.fix_text(text, FTFY_CONFIG)` and how many lines it changed."""
    if text.isascii():
        return text, 0
    pieces: list[str] = []
    num_lines = end = 0
    for position in suspects(text):
        if position < end:
            continue
        copied = end
        start, end = _segment(text, position=position)
        fixed = ftfy.fix_text(text[start:end], FTFY_CONFIG)
        num_lines += fixed != text[start:end]
        pieces += (text[copied:start], fixed)
    return ("".join((*pieces, text[end:])), num_lines) if num_lines else (text, 0)


def _segment(text: str, *, position: int) -> tuple[int, int]:
    """Return start and end of the text that ftfy reads at once: a line, or a million characters of a longer one."""
    size = FTFY_CONFIG.max_decode_length
    line_start, line_end = text.rfind("\n", 0, position) + 1, text.find("\n", position) + 1 or len(text)
    start = position - (position - line_start) % size
    return start, min(start + size, line_end)


def suspects(text: str) -> list[int]:
    """Return the positions in `text` of pairs of characters that ftfy could change, in ascending order.

    Every match of ftfy's `BADNESS_RE`, and every lone surrogate, has such a pair inside it.
    """
    first, second = _pair_tables()
    positions: list[int] = []
    for start in range(0, len(text), _CHUNK_CHARACTERS):
        chunk = text[start : start + _CHUNK_CHARACTERS + 1]
        if chunk.isascii():
            continue
        last = chunk if len(chunk) > _CHUNK_CHARACTERS else chunk + "\n"
        codes = np.frombuffer(last.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        codes = np.minimum(codes, _BMP_SIZE - 1)
        hits = np.flatnonzero(first[codes[:-1]] & second[codes[1:]])
        positions.extend(start + int(hit) for hit in hits)
    return positions


@lru_cache(maxsize=1)
def _pair_tables() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return, for every character, the pairs in which it can be first and second: one bit per pair, [65536] each.

    Characters above U+FFFF share the entry of U+FFFF, since ftfy's sets contain none of them.
    """
    pairs = [*_necessary_pairs(BADNESS_RE.pattern), (_SURROGATE.pattern, _ANYTHING)]
    assert len(pairs) <= 64, f"ftfy {ftfy.__version__} has more kinds of mojibake than a mask has bits"
    first, second = (np.zeros(_BMP_SIZE, dtype=np.uint64) for _ in range(2))
    for bit, pair in enumerate(pairs):
        for table, members in zip((first, second), pair, strict=True):
            table[_members(members)] |= np.uint64(1 << bit)
    return first, second


def _necessary_pairs(pattern: str) -> list[tuple[str, str]]:
    """Return the rarest two neighbouring character sets that each alternative of a verbose pattern requires."""
    return [_rarest_pair(tokens) for tokens in _alternatives(pattern)]


def _alternatives(pattern: str) -> list[list[str | None]]:
    """Return the one-character patterns of each alternative of a verbose pattern; None for an optional one."""
    alternatives: list[list[str | None]] = [[]]
    for match in _TOKEN.finditer(pattern):
        token = match[0]
        assert match["unknown"] is None, f"ftfy {ftfy.__version__}: cannot read {token!r} in its pattern for mojibake"
        if token == "|":
            alternatives.append([])
        elif not token.startswith(("#", "^")):
            alternatives[-1].append(None if token.endswith("?") else token)
    return alternatives


def _rarest_pair(tokens: list[str | None]) -> tuple[str, str]:
    if len(tokens) == 1 and tokens[0]:
        return tokens[0], _ANYTHING
    pairs = [(left, right) for left, right in itertools.pairwise(tokens) if left and right]
    return min(pairs, key=lambda pair: len(_members(pair[0])) * len(_members(pair[1])))


@lru_cache(maxsize=256)
def _members(token: str) -> npt.NDArray[np.uint32]:
    """Return the code points below U+10000 that a one-character pattern matches."""
    return np.array([match.start() for match in re.finditer(token, _every_character())], dtype=np.uint32)


@lru_cache(maxsize=1)
def _every_character() -> str:
    return "".join(map(chr, range(_BMP_SIZE)))
