"""Reading documents out of parts of files; a part is what one worker reads at a time.

A document is one UTF-8 byte string:

- a JSONL line, a CSV, Parquet or Arrow row, a row of a Hugging Face data set: its text column;
- a text file of the user: the whole file, or, above `TEXT_DOCUMENT_BYTES`, blocks of at most that size which end at a
  blank line where there is one, so that a corpus of one file can be split into train and held-out too;
- a file of the standard library: always the whole file.

What cannot be read is yielded as a `Problem` with file and line, and reading goes on behind it where that is possible.
Documents are streamed; nothing here holds a corpus in memory.
"""

import csv
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from chinchilla_ds.data.hub import hub_texts, num_hub_shards, saved_rows, saved_texts
from chinchilla_ds.data.sources import Kind, SourceFile
from chinchilla_ds.data.streams import COMPRESSED, lines, open_bytes
from chinchilla_ds.errors import DataError, did_you_mean, reason
from chinchilla_ds.units import format_bytes

TEXT_DOCUMENT_BYTES = 32 * 1024
"""Largest document that a user's text file gives; a larger file is cut into blocks of at most this size."""

MAX_RECORD_BYTES = 32 * 1024 * 1024
"""Longest JSONL line or CSV field; a longer one is a problem, for one record must fit into memory many times."""

_ROWS = 1024
_SKIPPED = "not UTF-8 (standard library)"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A range of a file: bytes of JSONL, row groups of Parquet, rows of Arrow, shards of a hub data set, or all."""

    file: SourceFile
    text_field: str
    start: int = 0
    stop: int | None = None
    """End of the range, exclusive; None is the end of the file."""
    num_bytes: int
    """Bytes on disk, about, for progress and for grouping."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A record, or the rest of a file, that cannot be read."""

    kind: str
    """A few words; what skipped records are counted by."""
    message: str
    """Names file, line and reason."""
    is_skipped: bool = False
    """Left out in strict reading too: a file of the standard library that is deliberately not UTF-8."""


Documents = Iterator[bytes | Problem]


def parts_of(file: SourceFile, /, *, text_field: str, part_bytes: int) -> Iterator[Part]:
    """Yield the parts of a file, each of about `part_bytes` where the format can be entered in the middle.

    Raises:
        DataError: the file cannot be opened.
    """
    if _is_empty(file):
        bounds = range(1)
    elif file.kind is Kind.JSONL and file.path.suffix.lower() not in COMPRESSED:
        bounds = range(0, file.num_bytes, part_bytes)
    elif file.kind is Kind.PARQUET:
        bounds = _steps(_parquet(file).num_row_groups, num_bytes=file.num_bytes, part_bytes=part_bytes)
    elif file.kind is Kind.ARROW:
        bounds = _steps(saved_rows(file), num_bytes=file.num_bytes, part_bytes=part_bytes)
    elif file.kind is Kind.HUB:
        bounds = range(num_hub_shards(file))
    else:
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


def _is_empty(file: SourceFile) -> bool:
    return file.num_bytes == 0 and file.kind is not Kind.HUB


def _steps(number: int, *, num_bytes: int, part_bytes: int) -> range:
    return range(0, number, max(1, number * part_bytes // max(num_bytes, 1)))


def read_part(part: Part, /) -> Documents:
    """Yield every document of a part, and every problem in its place."""
    place = part.file.place
    if _is_empty(part.file):
        yield Problem(kind="empty file", message=f"{place} is empty")
        return
    try:
        yield from _READERS[part.file.kind](part)
        if part.file.modified_ns and part.file.kind is not Kind.ARROW:
            status = part.file.path.stat()
            if (status.st_size, status.st_mtime_ns) != (part.file.num_bytes, part.file.modified_ns):
                yield Problem(kind="unreadable file", message=f"{place} changed while it was being read")
    except DataError as error:
        yield from (Problem(kind="unreadable file", message=problem) for problem in error.problems)
    except OSError as error:
        yield Problem(kind="unreadable file", message=f"cannot read {place}: {reason(error)}")


def _read_whole_text(part: Part) -> Documents:
    content = part.file.path.read_bytes()
    if (problem := _utf8_problem(content, where=str(part.file.path))) is not None:
        yield Problem(kind=_SKIPPED, message=problem.message, is_skipped=True)
    else:
        yield content


def _read_text(part: Part) -> Documents:
    """Yield the blocks of a text file; a block may end anywhere between two characters if it has no line end."""
    with open_bytes(part.file.path) as stream:
        offset, rest = 0, b""
        while True:
            try:
                chunk = rest + stream.read(TEXT_DOCUMENT_BYTES - len(rest))
            except (EOFError, zlib.error, OSError) as error:
                yield _broken(part, error, where=f" after {format_bytes(offset)} of text")
                return
            if not chunk:
                return
            cut = len(chunk) if len(chunk) < TEXT_DOCUMENT_BYTES else _cut(chunk)
            document, rest = chunk[:cut], chunk[cut:]
            yield _utf8_problem(document, where=str(part.file.path), offset=offset) or document
            offset += cut


def _cut(chunk: bytes) -> int:
    """Return where a block of a larger file ends: in its second half after a blank line or a line, else a character."""
    for separator in (b"\n\n", b"\n"):
        position = chunk.rfind(separator, len(chunk) // 2)
        if position >= 0:
            return position + len(separator)
    start = len(chunk) - 1
    while start > len(chunk) - 4 and chunk[start] & 0xC0 == 0x80:
        start -= 1
    return start


def _utf8_problem(document: bytes, *, where: str, offset: int = 0) -> Problem | None:
    try:
        document.decode()
    except UnicodeDecodeError as error:
        byte, position = document[error.start], offset + error.start
        message = f"{where} is not UTF-8: byte 0x{byte:02x} at offset {position} ({error.reason})"
        return Problem(kind="not UTF-8", message=message)
    return None


def _broken(part: Part, error: Exception, *, where: str) -> Problem:
    text = reason(error) if isinstance(error, OSError) else str(error)
    return Problem(kind="truncated or broken archive", message=f"{part.file.path}{where} cannot be read: {text}")


def _read_jsonl(part: Part) -> Documents:
    number = 0
    with open_bytes(part.file.path) as stream:
        try:
            for line in lines(stream, start=part.start, stop=part.stop, max_bytes=MAX_RECORD_BYTES):
                number += 1
                if line is not None and not line.strip():
                    continue
                result = _json_text(line, part.text_field)
                if isinstance(result, bytes):
                    yield result
                else:
                    where = f"{part.file.path}:{_lines_before(part) + number}"
                    yield Problem(kind=result.kind, message=f"{where}{result.message}")
        except (EOFError, zlib.error, OSError) as error:
            yield _broken(part, error, where=f":{_lines_before(part) + number + 1}")


def _lines_before(part: Part) -> int:
    """Return how many lines begin before the part: counted only when a message needs it."""
    if part.start == 0:
        return 0
    with part.file.path.open("rb") as stream:
        left, count = part.start - 1, 0
        while left and (chunk := stream.read(min(left, 2**20))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count + 1


def _json_text(line: bytes | None, text_field: str) -> bytes | Problem:
    if line is None:
        return _too_long("line")
    if (problem := _utf8_problem(line, where="")) is not None:
        return problem
    try:
        record = json.loads(line.strip())
    except (ValueError, RecursionError) as error:
        return Problem(kind="not JSON", message=f" is not JSON: {error}")
    if not isinstance(record, dict):
        return Problem(kind="not JSON", message=f" is a JSON {type(record).__name__}, not an object")
    if text_field not in record:
        return Problem(kind="no text field", message=_no_text_field(text_field, list(record)))
    return _text(record[text_field], text_field=text_field)


def _too_long(what: str) -> Problem:
    message = f" is a {what} of more than {format_bytes(MAX_RECORD_BYTES)}; cut it into documents"
    return Problem(kind="too long", message=message)


def _no_text_field(text_field: str, columns: list[str]) -> str:
    near = did_you_mean(text_field, columns)
    return f" has no field {text_field!r}{near}; it has {', '.join(map(repr, columns)) or 'none'}"


def _text(value: object, *, text_field: str) -> bytes | Problem:
    if not isinstance(value, str):
        message = f": field {text_field!r} is of type {type(value).__name__}, not a string"
        return Problem(kind="not a string", message=message)
    try:
        return value.encode()
    except UnicodeEncodeError:
        message = f": field {text_field!r} holds half of a surrogate pair, which is not text"
        return Problem(kind="half a surrogate pair", message=message)


def _read_csv(part: Part) -> Documents:
    """Yield the text column of a CSV file with a header; a field may hold line ends."""
    path, bad = part.file.path, dict[int, Problem]()

    def decoded(stream: BinaryIO) -> Iterator[str]:
        for number, line in enumerate(lines(stream, max_bytes=MAX_RECORD_BYTES), start=1):
            problem = _too_long("line") if line is None else _utf8_problem(line, where="")
            if problem is not None:
                bad[number] = problem
            yield (line or b"").decode(errors="replace")

    csv.field_size_limit(MAX_RECORD_BYTES)
    with open_bytes(path) as stream:
        rows, number = csv.reader(decoded(stream), strict=True), 0
        try:
            header = [name.removeprefix("\ufeff") for name in next(rows, [])]
            if part.text_field not in header:
                raise DataError(f"{path}:1{_no_text_field(part.text_field, header)}")
            column, number = header.index(part.text_field), rows.line_num
            for row in rows:
                first, number = number + 1, rows.line_num
                if row or bad:
                    yield _csv_text(row, header, column, where=f"{path}:{first}", bad=bad)
                bad.clear()
        except csv.Error as error:
            yield Problem(kind="not CSV", message=f"{path}:{number + 1} is not CSV: {error}")
        except (EOFError, zlib.error, OSError) as error:
            yield _broken(part, error, where=f":{number + 1}")


def _csv_text(
    row: list[str], header: list[str], column: int, *, where: str, bad: dict[int, Problem]
) -> bytes | Problem:
    if bad:
        number, problem = min(bad.items())
        return Problem(kind=problem.kind, message=f"{where.rpartition(':')[0]}:{number}{problem.message}")
    if len(row) != len(header):
        message = f"{where} has {len(row)} fields and the header {len(header)}"
        return Problem(kind="not CSV", message=message)
    return row[column].encode()


def _parquet(file: SourceFile) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file.path)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} is not a readable Parquet file: {error}") from None


def _read_parquet(part: Part) -> Documents:
    import pyarrow

    parquet = _parquet(part.file)
    columns = parquet.schema_arrow.names
    if part.text_field not in columns:
        raise DataError(f"{part.file.path}{_no_text_field(part.text_field, columns)}")
    stop = parquet.num_row_groups if part.stop is None else min(part.stop, parquet.num_row_groups)
    row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
    try:
        groups = list(range(part.start, stop))
        for batch in parquet.iter_batches(batch_size=_ROWS, row_groups=groups, columns=[part.text_field]):
            for value in batch.column(0):
                row += 1
                yield _arrow_text(value.as_py, part, row=row)
    except pyarrow.ArrowException as error:
        message = f"{part.file.path} is not a readable Parquet file beyond row {row}: {error}"
        yield Problem(kind="truncated or broken archive", message=message)


def _arrow_text(value: Callable[[], object], part: Part, *, row: int) -> bytes | Problem:
    where = f"{part.file.place} row {row}"
    try:
        result = _text(value(), text_field=part.text_field)
    except UnicodeDecodeError as error:
        return Problem(kind="not UTF-8", message=f"{where} is not UTF-8: {error.reason}")
    return result if isinstance(result, bytes) else Problem(kind=result.kind, message=f"{where}{result.message}")


def _read_rows(part: Part) -> Documents:
    """Yield the rows of an Arrow folder or a hub shard."""
    read = saved_texts if part.file.kind is Kind.ARROW else hub_texts
    for row, value in read(part.file, text_field=part.text_field, start=part.start, stop=part.stop):
        yield _arrow_text(lambda value=value: value, part, row=row)  # type: ignore[misc]


_READERS: dict[Kind, Callable[[Part], Documents]] = {
    Kind.TEXT: _read_text,
    Kind.WHOLE_TEXT: _read_whole_text,
    Kind.JSONL: _read_jsonl,
    Kind.CSV: _read_csv,
    Kind.PARQUET: _read_parquet,
    Kind.ARROW: _read_rows,
    Kind.HUB: _read_rows,
}
