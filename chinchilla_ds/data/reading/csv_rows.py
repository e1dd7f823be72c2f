"""Rows of CSV: a bad row does not affect the others.

Python's reader stops at a misplaced quote, and a quote that is never closed swallows all following rows. So the lines
of the current row are kept, and if the row is invalid, reading restarts at its second line.
"""

import csv
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.data.reading import parts
from chinchilla_ds.data.reading.encodings import open_text, utf8_problem
from chinchilla_ds.data.reading.parts import Documents, Part, Problem, broken, endless, no_text_field, text_of, too_long
from chinchilla_ds.data.reading.streams import MAX_SKIPPED_BYTES, ArchiveError, EndlessLineError, skip_blank, skip_line
from chinchilla_ds.errors import DataError
from chinchilla_ds.units import format_bytes


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str
    problem: Problem | None


class _TooLongError(Exception):
    """The current row exceeds the size limit of a record."""


class _Lines:
    """The lines of a file for `csv.reader`; those of the current row can be read again."""

    def __init__(self, stream: io.BufferedReader, *, path: Path) -> None:
        self._stream = stream
        self._path = path
        self.number = 0
        """Number of lines read."""
        self.torn_until = 0
        """The last line of a row that was invalid; lines up to it may be remainders of rows."""
        self._again: deque[_Line] = deque()
        self.row: list[_Line] = []
        """Lines of the current row read so far."""
        self._row_bytes = 0

    def begin_row(self) -> None:
        """Forget the previous row."""
        self.row, self._row_bytes = [], 0

    def read_again(self) -> None:
        """Go back to the second line of the current row."""
        self.torn_until = max(self.torn_until, self.row[-1].number)
        self._again.extendleft(reversed(self.row[1:]))

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else self._read()
        self.row.append(line)
        self._row_bytes += len(line.text)
        if self._row_bytes > parts.MAX_RECORD_BYTES:
            raise _TooLongError
        return line.text

    def _read(self) -> _Line:
        content = self._stream.readline(parts.MAX_RECORD_BYTES + 1)
        if not content:
            raise StopIteration
        self.number += 1
        number, where = self.number, f"{self._path}:{self.number}"
        if len(content) > parts.MAX_RECORD_BYTES:
            if not content.endswith(b"\n"):
                skip_line(self._stream)
            return _Line(number, "", too_long(where, "line"))
        if not self.row and content.isspace():
            self.number += skip_blank(self._stream)[1]
        problem = utf8_problem(content, where=where, path=self._path)
        return _Line(number, content.decode(errors="replace"), problem)


def read_csv(part: Part) -> Documents:
    """Yield the text column of a CSV file with a header; a field may contain line ends."""
    path = part.file.path
    csv.field_size_limit(parts.MAX_RECORD_BYTES)
    with open_text(path) as stream:
        feed = _Lines(stream, path=path)
        rows = _rows(feed, path)
        header = next(rows, [])
        if isinstance(header, Problem):
            yield header
            return
        column = _column(header, text_field=part.text_field, where=f"{path}:1")
        for row in rows:
            if isinstance(row, Problem):
                yield row
            elif len(row) != len(header):
                message = f"{path}:{feed.row[0].number} has {len(row)} fields; the header has {len(header)}"
                yield Problem(kind="not CSV", message=message)
            else:
                yield text_of(row[column], where=f"{path}:{feed.row[0].number}", text_field=part.text_field)


def _column(header: list[str], *, text_field: str, where: str) -> int:
    if text_field not in header:
        raise DataError(no_text_field(where, text_field, header))
    if header.count(text_field) > 1:
        raise DataError(f"{where} names {header.count(text_field)} columns {text_field!r}; only one can be read")
    return header.index(text_field)


def _rows(feed: _Lines, path: Path) -> Iterator[list[str] | Problem]:
    """Yield the rows that are not blank, and a problem for each bad one."""
    reader = csv.reader(feed, strict=True)
    while True:
        feed.begin_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except EndlessLineError:
            yield endless(f"{path}:{feed.number}", searched_bytes=MAX_SKIPPED_BYTES)
            return
        except ArchiveError as error:
            yield broken(f"{path}:{feed.row[0].number if feed.row else feed.number + 1}", error)
            return
        except (csv.Error, _TooLongError) as error:
            yield _bad_row(feed, error, path=path)
            feed.read_again()
            continue
        problem = next((line.problem for line in feed.row if line.problem is not None), None)
        if problem is None and feed.row[0].number <= feed.torn_until and _is_torn(row, feed.row):
            problem = Problem(
                kind="not CSV", message=f"{path}:{feed.row[0].number} is the remainder of a row that is not CSV"
            )
        if problem is not None or row:
            yield problem or row


def _is_torn(row: list[str], lines: list[_Line]) -> bool:
    """Return whether a row has quotes in an unquoted field, as the remainder of a torn row does."""
    content = "".join(line.text for line in lines)
    quoted = ('"' + field.replace('"', '""') + '"' for field in row if '"' in field)
    return any(field not in content for field in quoted)


def _bad_row(feed: _Lines, error: Exception, *, path: Path) -> Problem:
    first = feed.row[0]
    if first.problem is not None:
        return first.problem
    if isinstance(error, _TooLongError):
        error = csv.Error(f"a quote is not closed within {format_bytes(parts.MAX_RECORD_BYTES)}")
    return Problem(kind="not CSV", message=f"{path}:{first.number} is not CSV: {error}")
