"""Lines of a hand-written CSV file: numbered and stripped, with errors that name the file."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import read_bytes


def csv_lines(path: Path, /) -> Iterator[tuple[int, list[str]]]:
    """Yield row numbers and fields of all lines that are not blank.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or not CSV.
    """
    content = read_bytes(path, what="table", error=DataError)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"table {path} is not UTF-8: {error.reason} at byte {error.start}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from ((reader.line_num, [field.strip() for field in fields]) for fields in reader if any(fields))
    except csv.Error as error:
        raise DataError(f"{path} row {reader.line_num} is not CSV: {error}") from None
