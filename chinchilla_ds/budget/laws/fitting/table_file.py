"""Files of tables, whatever their format, as one header and rows of text: CSV, TSV, JSON, JSONL and Parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.laws.fitting.csv_lines import csv_lines, table_text
from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import parse_record, read_bytes

SEPARATORS = ",\t;|"
MAX_KEYS = 10_000
"""Different keys of records; each is a column."""
_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class RawRow:
    """One row of a table, before anything is understood."""

    where: str
    """Its place: `row 7` counts a CSV's header as row 1; JSONL has `line 3`, JSON and Parquet `record 3`."""
    fields: tuple[str, ...]
    """One for each column of the header; empty where there is no value."""


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A table as text."""

    header: tuple[str, ...]
    rows: tuple[RawRow, ...]
    problems: tuple[str, ...] = ()
    """Rows whose number of fields is not the header's."""


def read_table(path: Path, /) -> RawTable:
    """Return the table in a file; its suffix says the format, and anything else is CSV.

    The header of a CSV says what separates its fields: commas, tabs, semicolons or bars. Of records in JSON, JSONL and
    Parquet, the columns are all keys, in the order in which they first occur.

    Raises:
        DataError: it cannot be read, is empty, or is not of that format.
    """
    suffix = path.suffix.lower()
    if suffix in _LINES:
        return _of_records(path, _json_lines(path))
    if suffix == ".json":
        return _of_records(path, _json_records(path))
    if suffix == ".parquet":
        return _of_records(path, _parquet_records(path))
    return _of_csv(path)


def _of_csv(path: Path) -> RawTable:
    lines = list(csv_lines(path, separators=SEPARATORS))
    if not lines:
        raise DataError(f"{path} is empty; its first line must name the columns num_params, num_tokens, loss")
    header = tuple(lines[0][1])
    if len(header) == 1:
        raise DataError(
            f"{path} has a single column, {header[0]!r}; commas, tabs, semicolons or bars must separate the fields of "
            "a table"
        )
    rows, problems = [], []
    for number, fields in lines[1:]:
        if len(fields) == len(header):
            rows.append(RawRow(where=f"row {number}", fields=tuple(fields)))
        else:
            problems.append(f"row {number} has {len(fields)} fields; the header has {len(header)}")
    return RawTable(header=header, rows=tuple(rows), problems=tuple(problems))


def _of_records(path: Path, records: Sequence[tuple[str, Mapping[str, Any]]]) -> RawTable:
    header = tuple(dict.fromkeys(name for _, record in records for name in record))
    if not header:
        raise DataError(f"{path} has no records; each run is an object with num_params, num_tokens and loss")
    if len(header) > MAX_KEYS:
        raise DataError(f"{path} has records of {len(header):,} different keys; at most {MAX_KEYS:,} columns are read")
    rows = tuple(
        RawRow(where=where, fields=tuple(_text(record.get(name)) for name in header)) for where, record in records
    )
    return RawTable(header=header, rows=rows)


def _text(value: Any) -> str:
    """Return a value as a CSV would hold it; a float with all its digits."""
    return "" if value is None else value.strip() if isinstance(value, str) else repr(value)


def _json_lines(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    lines = enumerate(table_text(path).split("\n"), start=1)
    return [_record(path, f"line {number}", line) for number, line in lines if line.strip()]


def _json_records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    records = _parsed(path, "", table_text(path))
    if not isinstance(records, list):
        raise DataError(f"{path} must be a list of records, one object for each run")
    return [_checked(path, f"record {number}", record) for number, record in enumerate(records, start=1)]


def _parquet_records(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    content = read_bytes(path, what="table", error=DataError)
    try:
        records = pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:  # OSError: damaged pages
        raise DataError(f"table {path} is not Parquet: {error}") from None
    return [(f"record {number}", record) for number, record in enumerate(records, start=1)]


def _record(path: Path, where: str, text: str) -> tuple[str, Mapping[str, Any]]:
    return _checked(path, where, _parsed(path, f" {where}", text))


def _parsed(path: Path, where: str, text: str) -> Any:
    try:
        return parse_record(text)
    except ValueError as error:
        raise DataError(f"{path}{where} is not JSON: {error}") from None


def _checked(path: Path, where: str, record: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(record, dict):
        raise DataError(f"{path} {where} is not an object of named values")
    return where, record
