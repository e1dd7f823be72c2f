"""Reads documents from parts of files; a part is what one worker reads at a time.

A document is one UTF-8 byte string:

- a JSONL line, an object of a `.json` file, a CSV, Parquet or Arrow row, a row of a Hugging Face data set: its text;
- a user's text file: the whole file, or, above `TEXT_DOCUMENT_BYTES`, blocks of at most that size, which end at a blank
  line if there is one, so that even a corpus of one file can be split into train and held-out;
- a file of the standard library: always the whole file.

What cannot be read is yielded as a `Problem` with file and line, and reading continues after it if possible.
Documents are streamed; nothing here holds a corpus in memory.
"""

from collections.abc import Callable, Iterator

from chinchilla_ds.data.reading.columns import open_parquet, read_parquet, read_rows
from chinchilla_ds.data.reading.csv_rows import read_csv
from chinchilla_ds.data.reading.encodings import NotTextError, open_text, utf8_problem
from chinchilla_ds.data.reading.hub import num_hub_shards, saved_rows
from chinchilla_ds.data.reading.json_records import holds_lines, read_json_file, read_jsonl
from chinchilla_ds.data.reading.kinds import FileKind
from chinchilla_ds.data.reading.parts import UNREADABLE, Documents, Part, Problem, broken
from chinchilla_ds.data.reading.sources import SourceFile
from chinchilla_ds.data.reading.streams import ArchiveError, is_packed
from chinchilla_ds.errors import DataError, reason
from chinchilla_ds.units import format_bytes

TEXT_DOCUMENT_BYTES = 32 * 1024
"""Largest document of a user's text file; a larger file is split into blocks of at most this size."""

_SKIPPED = "not UTF-8 (standard library)"


def parts_of(file: SourceFile, /, *, text_field: str, part_bytes: int) -> Iterator[Part]:
    """Yield the parts of a file, each of about `part_bytes` if the format can be read from the middle.

    Args:
        file: the file.
        text_field: name of the field with the text.
        part_bytes: approximate size of a part, bytes.

    Raises:
        DataError: the file cannot be opened.
    """
    try:
        bounds = _bounds(file, part_bytes=part_bytes)
    except (ArchiveError, OSError) as error:
        raise DataError(_cannot_read(file, error)) from None
    if bounds is None:
        yield Part(file=file, text_field=text_field, num_bytes=file.num_bytes)
        return
    for start in bounds:
        yield Part(
            file=file,
            text_field=text_field,
            start=start,
            stop=start + bounds.step,
            num_bytes=file.num_bytes // len(bounds),
        )


def _bounds(file: SourceFile, *, part_bytes: int) -> range | None:
    """Return the starts of the parts of a file; None for a file that is read as a whole."""
    if _is_empty(file):
        return None
    if file.kind in (FileKind.JSONL, FileKind.JSON):
        return range(0, file.num_bytes, part_bytes) if _has_ranges(file, part_bytes=part_bytes) else None
    if file.kind is FileKind.PARQUET:
        return _steps(open_parquet(file).num_row_groups, num_bytes=file.num_bytes, part_bytes=part_bytes)
    if file.kind is FileKind.ARROW:
        return _steps(saved_rows(file), num_bytes=file.num_bytes, part_bytes=part_bytes)
    return range(num_hub_shards(file)) if file.kind is FileKind.HUB else None


def _has_ranges(file: SourceFile, *, part_bytes: int) -> bool:
    """Return whether a file is large and consists of lines of plain UTF-8."""
    if file.num_bytes <= part_bytes or is_packed(file.path):
        return False
    try:
        open_text(file.path).close()
        return file.kind is FileKind.JSONL or holds_lines(file.path)
    except NotTextError:
        return False


def _is_empty(file: SourceFile) -> bool:
    return file.num_bytes == 0 and file.kind is not FileKind.HUB


def _steps(number: int, *, num_bytes: int, part_bytes: int) -> range:
    return range(0, number, max(1, number * part_bytes // max(num_bytes, 1)))


def read_part(part: Part, /) -> Documents:
    """Yield every document of a part, and every problem in its place."""
    file, place = part.file, part.file.place
    if _is_empty(file):
        yield Problem(kind="empty file", message=f"{place} is empty")
        return
    try:
        yield from _READERS[file.kind](part)
        if file.modified_ns and file.kind is not FileKind.ARROW:
            status = file.path.stat()
            if (status.st_size, status.st_mtime_ns) != (file.num_bytes, file.modified_ns):
                yield Problem(kind=UNREADABLE, message=f"{place} changed while it was being read")
    except DataError as error:
        yield from (Problem(kind=UNREADABLE, message=problem) for problem in error.problems)
    except NotTextError as error:
        yield error.problem
    except ArchiveError as error:
        yield broken(place, error)
    except OSError as error:
        yield Problem(kind=UNREADABLE, message=_cannot_read(file, error))


def _cannot_read(file: SourceFile, error: Exception) -> str:
    return f"cannot read {file.place}: {reason(error) if isinstance(error, OSError) else error}"


def _read_whole_text(part: Part) -> Documents:
    path = part.file.path
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        message = f"{path} is not UTF-8: byte 0x{content[error.start]:02x} at offset {error.start} ({error.reason})"
        yield Problem(kind=_SKIPPED, message=message, is_skipped=True)
    else:
        yield content


def _read_text(part: Part) -> Documents:
    """Yield the blocks of a text file; a block without a line end ends between any two characters."""
    path = part.file.path
    with open_text(path) as stream:
        offset, remainder = 0, b""
        while True:
            try:
                chunk = remainder + stream.read(TEXT_DOCUMENT_BYTES - len(remainder))
            except ArchiveError as error:
                yield broken(f"{path} after {format_bytes(offset)} of text", error)
                return
            if not chunk:
                return
            cut = len(chunk) if len(chunk) < TEXT_DOCUMENT_BYTES else _cut(chunk)
            document, remainder = chunk[:cut], chunk[cut:]
            yield utf8_problem(document, where=str(path), path=path, offset=offset) or document
            offset += cut


def _cut(chunk: bytes) -> int:
    """Return the end of a block of a larger file: after a blank line or a line of its second half, or any character."""
    for separator in (b"\n\n", b"\n"):
        position = chunk.rfind(separator, len(chunk) // 2)
        if position >= 0:
            return position + len(separator)
    start = len(chunk) - 1
    while start > len(chunk) - 4 and chunk[start] & 0xC0 == 0x80:
        start -= 1
    return start


_READERS: dict[FileKind, Callable[[Part], Documents]] = {
    FileKind.TEXT: _read_text,
    FileKind.WHOLE_TEXT: _read_whole_text,
    FileKind.JSONL: read_jsonl,
    FileKind.JSON: read_json_file,
    FileKind.CSV: read_csv,
    FileKind.PARQUET: read_parquet,
    FileKind.ARROW: read_rows,
    FileKind.HUB: read_rows,
}
