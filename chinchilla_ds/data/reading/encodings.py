"""Text that is not UTF-8: its likely encoding, and how to convert it."""

import functools
import io
import shlex
from pathlib import Path

from chinchilla_ds.data.reading.parts import NOT_UTF8, Problem
from chinchilla_ds.data.reading.streams import PACKED_SUFFIXES, ArchiveError, open_bytes

_BOM = b"\xef\xbb\xbf"
"""The byte-order mark with which UTF-8 files from Windows may begin; it is not text."""

_BOMS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_HEAD_BYTES = 2**12
_SAMPLE_BYTES = 2**18
_GUESS_BYTES = 2**12
"""Bytes of text that are passed to the detector."""
_MIN_EVIDENCE_BYTES = 8
"""Fewer bytes that are not UTF-8 count as stray."""
_MOST_CHARACTER_BYTES = 4
_MAX_NUL_SHARE = 0.1
_UNICODE = ("utf_8", "utf_7", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le")
"""Never guessed: such files begin with a byte-order mark or contain NUL bytes."""
_COMMON = ("euc_jp",)
"""Preferred to a larger encoding that contains them, which iconv may not support."""


class NotTextError(Exception):
    """A file is UTF-16, UTF-32 or not text; carries the problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(problem.message)


def open_text(path: Path, /) -> io.BufferedReader:
    """Open a file of UTF-8 text for reading, unpacked, positioned after its byte-order mark.

    Raises:
        NotTextError: its first bytes are those of another kind of file.
        ArchiveError, OSError: as `open_bytes`.
    """
    stream = open_bytes(path)
    try:
        head = stream.peek()
    except ArchiveError:  # raised again by the first read, where the position is known
        return stream
    if (problem := _head_problem(head, path=path)) is not None:
        stream.close()
        raise NotTextError(problem)
    if head.startswith(_BOM):
        stream.read(len(_BOM))
    return stream


def _head_problem(head: bytes, *, path: Path) -> Problem | None:
    """Return the problem of a file with this beginning, if it is UTF-16, UTF-32 or not text."""
    head = head[:_HEAD_BYTES]
    encoding = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
    if encoding is None:
        places = [place for place, byte in enumerate(head) if byte == 0]
        if len(places) <= _MAX_NUL_SHARE * len(head):
            return None
        sides = {place % 2 for place in places}
        if len(sides) == 2:
            message = f"{path} holds no text: {len(places)} of its first {len(head)} bytes are NUL"
            return Problem(kind="not text", message=message, of_file=str(path))
        encoding = "UTF-16LE" if sides == {1} else "UTF-16BE"
    message = f"{path} is not UTF-8: it starts like {encoding}; {_conversion(path, encoding)}"
    return Problem(kind=NOT_UTF8, message=message, of_file=str(path))


def utf8_problem(document: bytes, *, where: str, path: Path, offset: int = 0) -> Problem | None:
    """Return the problem of bytes that should be UTF-8, or None.

    A file in another encoding is a single problem; in a file that is otherwise UTF-8, each stray byte is one.

    Args:
        document: The bytes.
        where: The start of the message.
        path: The file that contains them.
        offset: Their offset in the file, bytes, for the message.
    """
    try:
        document.decode()
    except UnicodeDecodeError as error:
        byte, position = document[error.start], offset + error.start
        message = f"{where} is not UTF-8: byte 0x{byte:02x} at offset {position} ({error.reason})"
        advice = _advice(path)
        if advice is None:
            return Problem(kind=NOT_UTF8, message=message)
        return Problem(kind=NOT_UTF8, message=f"{message}{advice}", of_file=str(path))
    return None


@functools.lru_cache(maxsize=4)
def _advice(path: Path) -> str | None:
    """Return advice for a file in another encoding; None for UTF-8 with stray bytes."""
    sample = _sample(path)
    replaced = sample.decode(errors="replace")
    invalid = replaced.count("\ufffd")
    valid = sum(1 for character in replaced if character > "\x7f") - invalid
    if invalid <= valid or invalid < _MIN_EVIDENCE_BYTES:
        return None
    encoding = _guess(sample)
    return f"; it may be {encoding} (a guess); {_conversion(path, encoding)}" if encoding else ""


def _sample(path: Path) -> bytes:
    """Return the first lines of a file that are not ASCII, each once."""
    try:
        with open_bytes(path) as stream:
            head = stream.read(_SAMPLE_BYTES)
    except (ArchiveError, OSError):
        return b""
    return b"\n".join(dict.fromkeys(line for line in head.split(b"\n") if not line.isascii()))


def _guess(sample: bytes) -> str | None:
    """Return the likely encoding, by iconv's name."""
    import charset_normalizer

    tried = (
        sample[: _GUESS_BYTES - cut] for cut in range(_MOST_CHARACTER_BYTES)
    )  # so that one does not end within a character
    matches = (
        charset_normalizer.from_bytes(part, cp_exclusion=list(_UNICODE), enable_fallback=False) for part in tried
    )
    best_match = next((best for match in matches if (best := match.best()) is not None), None)
    if best_match is None:
        return None
    name = next((name for name in _COMMON if name in best_match.could_be_from_charset), best_match.encoding)
    return str(name).upper().replace("_", "-")


def _conversion(path: Path, encoding: str) -> str:
    suffix = path.suffix if path.suffix.lower() in PACKED_SUFFIXES else ""
    name = shlex.quote(str(path))
    if suffix:
        return f"unpack it, and convert it with `iconv -f {encoding} -t UTF-8`"
    return f"convert it: iconv -f {encoding} -t UTF-8 {name} > {shlex.quote(f'{path.stem}.utf8{path.suffix}')}"
