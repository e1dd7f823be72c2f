"""Mojibake: lines that were decoded with the wrong encoding are repaired by ftfy, which is shown only suspect lines.

ftfy reads 1 to 4 MB/s, nearly all of it spent on its test for unlikely character sequences (`BADNESS_RE`). Each such
sequence holds two neighbouring characters, or one character, out of two small sets. `suspects` reads these pairs of
sets off ftfy's own pattern and looks for them with two table look-ups per character. A line without such a pair cannot
match the pattern, and ftfy returns it as it is.

Only `cleaning` imports this module, when the rule is on: numpy and ftfy are loaded with it.
"""

import itertools
import re
from functools import lru_cache

import ftfy
import numpy as np
import numpy.typing as npt
from ftfy.badness import BADNESS_RE

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
"""What ftfy may do: decode again what was decoded wrongly. docs/cleaning.md gives the reason for every field.

`explain` is on because ftfy 6.3.1 otherwise ignores the four settings that follow `fix_encoding`.
"""

_BMP_SIZE = 0x10000
_CHUNK_CHARACTERS = 1 << 15
_TOKEN = re.compile(r"#[^\n]*|\[(?:\\.|[^\]\\])*\]\??|\\[sw]\??|[^\s\\\[\](){}*+?.]|\.|(?P<unknown>\S)")
_SURROGATES = "[\ud800-\udfff]"
_ANYTHING = r"[\s\S]"


def repair(text: str) -> tuple[str, int]:
    """Return `ftfy.fix_text(text, FTFY_CONFIG)` and how many lines it changed."""
    if text.isascii():
        return text, 0
    pieces: list[str] = []
    num_lines = end = 0
    for position in suspects(text):
        if position < end:
            continue
        kept = end
        start, end = _segment(text, position=position)
        fixed = ftfy.fix_text(text[start:end], FTFY_CONFIG)
        num_lines += fixed != text[start:end]
        pieces += (text[kept:start], fixed)
    return ("".join((*pieces, text[end:])), num_lines) if num_lines else (text, 0)


def _segment(text: str, *, position: int) -> tuple[int, int]:
    """Return start and end of what ftfy reads at once: a line, or a million characters of a longer one."""
    size = FTFY_CONFIG.max_decode_length
    line_start, line_end = text.rfind("\n", 0, position) + 1, text.find("\n", position) + 1 or len(text)
    start = position - (position - line_start) % size
    return start, min(start + size, line_end)


def suspects(text: str) -> list[int]:
    """Return where in `text` a pair of characters stands that ftfy could take offence at, in rising order.

    Every match of ftfy's `BADNESS_RE`, and every lone surrogate, has such a pair inside it.
    """
    first, second = _pair_tables()
    found: list[int] = []
    for start in range(0, len(text), _CHUNK_CHARACTERS):
        chunk = text[start : start + _CHUNK_CHARACTERS + 1]
        if chunk.isascii():
            continue
        last = chunk if len(chunk) > _CHUNK_CHARACTERS else chunk + "\n"
        codes = np.frombuffer(last.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        codes = np.minimum(codes, _BMP_SIZE - 1)
        hits = np.flatnonzero(first[codes[:-1]] & second[codes[1:]])
        found.extend(start + int(hit) for hit in hits)
    return found


@lru_cache(maxsize=1)
def _pair_tables() -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return, for every character, the pairs that it can be first in and second in: one bit per pair, [65536] each.

    Characters above U+FFFF share the entry of U+FFFF: ftfy's sets name none of them.
    """
    pairs = [*_necessary_pairs(BADNESS_RE.pattern), (_SURROGATES, _ANYTHING)]
    assert len(pairs) <= 64, f"ftfy {ftfy.__version__} has more kinds of mojibake than a mask has bits"
    first, second = (np.zeros(_BMP_SIZE, dtype=np.uint64) for _ in range(2))
    for bit, pair in enumerate(pairs):
        for table, members in zip((first, second), pair, strict=True):
            table[_members(members)] |= np.uint64(1 << bit)
    return first, second


def _necessary_pairs(pattern: str) -> list[tuple[str, str]]:
    """Return for each alternative of a verbose pattern the rarest two neighbouring character sets it asks for."""
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
