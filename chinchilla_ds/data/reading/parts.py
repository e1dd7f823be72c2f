"""Input and output of readers: parts of files in, documents and problems out."""

from collections.abc import Iterator
from dataclasses import dataclass

from chinchilla_ds.data.reading.sources import SourceFile
from chinchilla_ds.errors import did_you_mean
from chinchilla_ds.units import format_bytes

MAX_RECORD_BYTES = 32 * 1024 * 1024
"""Longest JSONL line or CSV row; a longer one is a problem, since several copies of a record must fit into memory."""

NOT_UTF8 = "not UTF-8"
TOO_LONG = "too long"
BROKEN_ARCHIVE = "truncated or broken archive"
UNREADABLE = "unreadable file"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A range of a file: bytes of JSONL, row groups of Parquet, rows of Arrow, shards of a hub data set, or all."""

    file: SourceFile
    text_field: str
    start: int = 0
    stop: int | None = None
    """End of the range, exclusive; None: the end of the file."""
    num_bytes: int
    """Approximate bytes on disk, for progress and for grouping."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record, or the rest of a file, that cannot be read."""

    kind: str
    """A short name under which skipped records are counted."""
    message: str
    """Names file, line and reason."""
    is_skipped: bool = False
    """Skipped even in strict reading: a file of the standard library that is deliberately not UTF-8."""
    of_file: str | None = None
    """The file, if the problem concerns all of it, such as its encoding; such a problem is reported only once."""


class Mended(bytes):
    """A document in which invalid characters were replaced by U+FFFD."""


Documents = Iterator[bytes | Problem]


def too_long(where: str, what: str) -> Problem:
    """Return the problem of a record longer than `MAX_RECORD_BYTES`."""
    message = f"{where} is a {what} of more than {format_bytes(MAX_RECORD_BYTES)}; split it into documents"
    return Problem(kind=TOO_LONG, message=message)


def endless(where: str, *, searched_bytes: int) -> Problem:
    """Return the problem of a line without an end within reach; the rest of the file is skipped."""
    searched = format_bytes(searched_bytes)
    message = f"{where} is a line that does not end within {searched}; the rest is not read: split it into documents"
    return Problem(kind=TOO_LONG, message=message)


def broken(where: str, error: Exception) -> Problem:
    """Return the problem of an archive that cannot be unpacked beyond this point."""
    return Problem(kind=BROKEN_ARCHIVE, message=f"{where} cannot be read: {error}")


def no_text_field(where: str, text_field: str, columns: list[str]) -> str:
    """Return the message about a missing field of a record or file, with the nearest name.

    Args:
        where: start of the message.
        text_field: the field that is missing.
        columns: the fields that exist.
    """
    near = did_you_mean(text_field, columns)
    return f"{where} has no field {text_field!r}{near}; it has {', '.join(map(repr, columns)) or 'none'}"


def text_of(value: object, *, where: str, text_field: str) -> bytes | Problem:
    """Return the UTF-8 bytes of a text field, with U+FFFD for each lone surrogate.

    Args:
        value: the field's value.
        where: start of a problem's message.
        text_field: the field's name.
    """
    if not isinstance(value, str):
        message = f"{where}: field {text_field!r} is of type {type(value).__name__}, not a string"
        return Problem(kind="not a string", message=message)
    try:
        return value.encode()
    except UnicodeEncodeError:
        whole = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return Mended(whole.encode())
