"""Reading documents out of the files of a corpus.

A document is one UTF-8 byte string, never empty:

- a JSONL line or a Parquet row: its text column;
- a text file of the user: the whole file, or, above `TEXT_DOCUMENT_BYTES`, blocks of at most that size which end at a
  blank line where there is one, so that a corpus of one file can be split into train and held-out too;
- a file of the standard library: always the whole file.

Documents are streamed; nothing here holds a corpus in memory.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from chinchilla_ds.data.sources import Corpus, Kind, ReadReport, SourceFile
from chinchilla_ds.errors import DataError, did_you_mean

TEXT_DOCUMENT_BYTES = 32 * 1024
"""Largest document that a user's text file gives; a larger file is cut into blocks of at most this size."""


def read_documents(corpus: Corpus, *, report: ReadReport) -> Iterator[bytes]:
    """Yield every document of `corpus`; a file that cannot be read ends there and its problem goes into `report`."""
    done = 0
    for file in corpus.files:
        end = done + file.num_bytes
        try:
            for document in _READERS[file.kind](file, corpus.text_field):
                report.read_bytes = min(end, report.read_bytes + len(document))  # compressed files: at most their size
                yield document
        except _SkippedFileError:
            report.skipped_files += 1
        except DataError as error:
            report.problems.extend(error.problems)
        except (OSError, EOFError, zlib.error) as error:
            report.problems.append(f"cannot read {file.path}: {getattr(error, 'strerror', None) or error}")
        report.read_bytes = done = end


class _SkippedFileError(Exception):
    """A standard-library file that is deliberately not UTF-8."""


def _read_whole_text(file: SourceFile, text_field: str) -> Iterator[bytes]:
    content = file.path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        raise _SkippedFileError from None
    yield content


def _read_text(file: SourceFile, text_field: str) -> Iterator[bytes]:
    """Yield the blocks of a text file; a block may end anywhere between two characters if it has no line end."""
    with file.path.open("rb") as stream:
        offset, rest = 0, b""
        while chunk := rest + stream.read(TEXT_DOCUMENT_BYTES - len(rest)):
            at_end = len(chunk) < TEXT_DOCUMENT_BYTES
            cut = len(chunk) if at_end else _cut(chunk)
            document, rest = chunk[:cut], chunk[cut:]
            _check_utf8(document, where=str(file.path), offset=offset)
            yield document
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


def _check_utf8(document: bytes, *, where: str, offset: int = 0) -> None:
    try:
        document.decode()
    except UnicodeDecodeError as error:
        position = offset + error.start
        raise DataError(
            f"{where} is not UTF-8: byte 0x{document[error.start]:02x} at offset {position} ({error.reason})"
        ) from None


def _read_jsonl(file: SourceFile, text_field: str) -> Iterator[bytes]:
    opener = gzip.open if file.path.suffix.lower() == ".gz" else open
    with opener(file.path, "rb") as stream:
        yield from _json_lines(stream, file.path, text_field)


def _json_lines(stream: "BinaryIO | gzip.GzipFile", path: Path, text_field: str) -> Iterator[bytes]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        _check_utf8(line, where=where)
        try:
            record = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{where} is a JSON {type(record).__name__}, not an object")
        if text_field not in record:
            raise _no_text_field(where, text_field, list(record))
        yield from _text_document(record[text_field], where=where, text_field=text_field)


def _read_parquet(file: SourceFile, text_field: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(file.path)
        columns = parquet.schema_arrow.names
        if text_field not in columns:
            raise _no_text_field(str(file.path), text_field, columns)
        row = 0
        for batch in parquet.iter_batches(batch_size=1024, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                row += 1
                yield from _text_document(text, where=f"{file.path} row {row}", text_field=text_field)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} is not a readable Parquet file: {error}") from None


def _no_text_field(where: str, text_field: str, columns: list[str]) -> DataError:
    near = did_you_mean(text_field, columns)
    return DataError(f"{where} has no field {text_field!r}{near}; it has {', '.join(map(repr, columns)) or 'none'}")


def _text_document(text: object, *, where: str, text_field: str) -> Iterator[bytes]:
    """Yield the text as UTF-8, or nothing where it is empty."""
    if not isinstance(text, str):
        raise DataError(f"{where}: field {text_field!r} is of type {type(text).__name__}, not a string")
    try:
        document = text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: field {text_field!r} holds half of a surrogate pair, which is not text") from None
    if document:
        yield document


_READERS = {
    Kind.TEXT: _read_text,
    Kind.WHOLE_TEXT: _read_whole_text,
    Kind.JSONL: _read_jsonl,
    Kind.PARQUET: _read_parquet,
}
