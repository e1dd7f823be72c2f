"""Records of JSON: the lines of JSONL, or the objects of a `.json` file, which may be one array, one object, or lines.

An array is read record by record, so its size does not matter. A bad record does not affect the others: reading
continues after it, even if a quote is missing and the following records do not end where they seem to.
"""

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from chinchilla_ds.data.reading import parts
from chinchilla_ds.data.reading.encodings import open_text, utf8_problem
from chinchilla_ds.data.reading.parts import Documents, Part, Problem, broken, endless, no_text_field, text_of, too_long
from chinchilla_ds.data.reading.streams import MAX_SKIPPED_BYTES, ArchiveError, EndlessLineError, lines, open_bytes
from chinchilla_ds.structured import parse_record

NOT_JSON = "not JSON"


def read_jsonl(part: Part) -> Documents:
    """Yield the text field of every line."""
    path, number = part.file.path, 0
    with open_bytes(path) if part.start else open_text(path) as stream:
        numbered = lines(stream, start=part.start, stop=part.stop, max_bytes=parts.MAX_RECORD_BYTES)
        try:
            for number, line in numbered:
                if line is None:
                    yield too_long(_line_place(part, number), "line")
                    continue
                result = _record(line, part)
                yield result if isinstance(result, bytes) else _at(_line_place(part, number), result)
        except EndlessLineError:
            yield endless(_line_place(part, number + 1), searched_bytes=MAX_SKIPPED_BYTES)
        except ArchiveError as error:
            yield broken(_line_place(part, number + 1), error)


def _at(where: str, problem: Problem) -> Problem:
    """Return the problem with its place, which is determined only when a message needs it."""
    return Problem(kind=problem.kind, message=f"{where}{problem.message}", of_file=problem.of_file)


def _line_place(part: Part, number: int) -> str:
    return f"{part.file.path}:{_lines_before(part) + number}"


def _lines_before(part: Part) -> int:
    """Return the number of lines that start before the part."""
    if part.start == 0:
        return 0
    with part.file.path.open("rb") as stream:
        left, count = part.start - 1, 0
        while left and (chunk := stream.read(min(left, 2**20))):
            count += chunk.count(b"\n")
            left -= len(chunk)
    return count + 1


def _record(content: bytes, part: Part) -> bytes | Problem:
    """Return the text of one record; a problem's message lacks its place."""
    try:
        record = parse_record(content.decode())
    except UnicodeDecodeError:
        problem = utf8_problem(content, where="", path=part.file.path)
        assert problem is not None
        return problem
    except ValueError as error:
        return Problem(kind=NOT_JSON, message=f" is not JSON: {error}")
    if not isinstance(record, dict):
        return Problem(kind=NOT_JSON, message=f" is a JSON {type(record).__name__}, not an object")
    if part.text_field not in record:
        return Problem(kind="no text field", message=no_text_field("", part.text_field, list(record)))
    return text_of(record[part.text_field], where="", text_field=part.text_field)


# ---- .json -----------------------------------------------------------------------------------------------------------


def read_json_file(part: Part) -> Documents:
    """Yield the text field of every record of a `.json` file."""
    path = part.file.path
    if holds_lines(path):
        yield from read_jsonl(part)
        return
    with open_text(path) as stream:
        scanner = JsonScanner(stream, text_field=part.text_field)
        try:
            for record in scanner:
                if record is None:
                    yield too_long(f"{path}:{scanner.line}", "record")
                    continue
                result = _record(record, part)
                yield result if isinstance(result, bytes) else _at(f"{path}:{scanner.line}", result)
                if isinstance(result, Problem) and result.kind == NOT_JSON and (start := scanner.next_within(record)):
                    scanner.put_back(record, start)
        except EndlessLineError:
            yield endless(f"{path}:{scanner.line}", searched_bytes=MAX_SKIPPED_BYTES)
        except ArchiveError as error:
            yield broken(f"{path}:{scanner.line}", error)
    if scanner.num_open_arrays:
        yield Problem(kind=NOT_JSON, message=f"{path} is not JSON: its array does not end; it may be truncated")


def holds_lines(path: Path, /) -> bool:
    """Return whether a `.json` file holds one object per line, judged by its first two lines.

    Raises:
        ArchiveError: its first lines cannot be unpacked.
        OSError: it cannot be read.
    """
    with open_text(path) as stream:
        try:
            first = [line for _, line in itertools.islice(lines(stream, max_bytes=parts.MAX_RECORD_BYTES), 2)]
        except EndlessLineError:
            return False
    texts = [line.strip() for line in first if line is not None]
    return bool(texts) and not texts[0].startswith(b"[") and any(_is_object(text) for text in texts)


def _is_object(content: bytes) -> bool:
    try:
        return isinstance(parse_record(content.decode()), dict)
    except ValueError:
        return False


_NEXT_OBJECT = re.compile(rb"\}\s*,?\s*(?=\{)")
_BETWEEN = re.compile(rb"[\s,\[\]]*")
_OUTSIDE = re.compile(rb'["\[\]{},]')
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_IN_STRING = re.compile(rb'["\\]')
_CHUNK_BYTES = 2**18


class JsonScanner:
    """Splits a stream into the bytes of its records: the entries of arrays, and top-level objects."""

    def __init__(self, stream: io.BufferedReader, *, text_field: str) -> None:
        self.line = 1
        """Line at which the record returned last starts."""
        self.num_open_arrays = 0
        """Number of open arrays."""
        self._stream = stream
        self._buffer = bytearray()
        """Bytes from the current record on."""
        self._buffer_line = 1
        self._key = re.compile(re.escape(json.dumps(text_field, ensure_ascii=False).encode()) + rb"\s*:")

    def __iter__(self) -> Iterator[bytes | None]:
        """Yield the bytes of every record; None for one above the limit.

        Raises:
            EndlessLineError: an overlong record does not end.
        """
        self._fill()
        while self._to_record():
            self.line = self._buffer_line
            end = self._end()
            if end > parts.MAX_RECORD_BYTES:
                end = self.next_within(self._buffer) or end
            if end > parts.MAX_RECORD_BYTES:
                self._skip_record()
                yield None
            else:
                record = bytes(self._buffer[:end])
                self._drop(end)
                yield record

    def _fill(self) -> bool:
        """Double the buffer, so that rescanning stays linear in the size; return whether there was more."""
        chunk = self._stream.read(max(_CHUNK_BYTES, len(self._buffer)))
        self._buffer += chunk
        return bool(chunk)

    def _drop(self, size: int) -> None:
        self._buffer_line += self._buffer.count(b"\n", 0, size)
        del self._buffer[:size]

    def _to_record(self) -> bool:
        """Advance to the start of the next record; False at the end."""
        while True:
            between = _BETWEEN.match(self._buffer)
            assert between is not None, "it also matches the empty string"
            self.num_open_arrays += between[0].count(b"[") - between[0].count(b"]")
            self._drop(between.end())
            if self._buffer:
                return True
            if not self._fill():
                return False

    def _end(self) -> int:
        """Return the end of the record; beyond the limit if it is longer."""
        position, depth = 0, 0
        while position <= parts.MAX_RECORD_BYTES:
            mark = _OUTSIDE.search(self._buffer, position)
            if mark is not None and mark[0] == b'"':
                position, mark = mark.start(), _STRING.match(self._buffer, mark.start())
                if mark is not None:
                    position = mark.end()
                    continue
            if mark is None:
                if len(self._buffer) <= parts.MAX_RECORD_BYTES and self._fill():
                    continue
                return len(self._buffer)
            if not depth and mark[0] in b",]":
                return mark.start()
            depth += (mark[0] in b"[{") - (mark[0] in b"]}")
            position = mark.end()
            if not depth and mark[0] in b"]}":
                return position
        return position

    def _skip_record(self) -> None:
        """Advance to the end of a record that is skipped."""
        position, depth, skipped, in_string = 0, 0, 0, False
        while True:
            mark = (_IN_STRING if in_string else _OUTSIDE).search(self._buffer, position)
            if mark is None:
                skipped += len(self._buffer)
                position = max(0, position - len(self._buffer))
                self._drop(len(self._buffer))
                if skipped > MAX_SKIPPED_BYTES:
                    raise EndlessLineError
                if not self._fill():
                    return
                continue
            sign, position = mark[0], mark.end()
            if sign == b'"':
                in_string = not in_string
            elif sign == b"\\":
                position += 1
            elif sign != b"," and not in_string:
                depth += (sign in b"[{") - (sign in b"]}")
            if not depth and not in_string and sign in b",]}":
                self._drop(position if sign == b"}" else mark.start())
                return

    def next_within(self, record: bytes | bytearray) -> int | None:
        """Return where the next record starts within a bad one, whose end a misplaced quote hides.

        None if the text field occurs only once, so that it is a single record.
        """
        keys = list(itertools.islice(self._key.finditer(record), 2))
        starts = [boundary.end() for boundary in _NEXT_OBJECT.finditer(record, 0, keys[1].start())] if keys[1:] else []
        return starts[-1] if starts else None

    def put_back(self, record: bytes, start: int, /) -> None:
        """Push back the record returned last, from `start` on, to be read again."""
        self._buffer[:0] = record[start:]
        self._buffer_line = self.line + record.count(b"\n", 0, start)
