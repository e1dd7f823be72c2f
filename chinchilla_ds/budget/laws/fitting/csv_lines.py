"""Lines of a hand-written CSV file: numbered and stripped, with errors that name the file."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from chinchilla_ds.errors import DataError
from chinchilla_ds.structured import read_bytes


def csv_lines(path: Path, /, *, separators: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield row numbers and fields of all lines that are not blank.

    Args:
        path: The file.
        separators: What may separate fields; the header decides, and the first of these wins a tie.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or not CSV.
    """
    text = table_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text, separators))
    try:
        yield from ((reader.line_num, [field.strip() for field in fields]) for fields in reader if any(fields))
    except csv.Error as error:
        raise DataError(f"{path} row {reader.line_num} is not CSV: {error}") from None


def table_text(path: Path, /) -> str:
    """Return the text of a table's file.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    content = read_bytes(path, what="table", error=DataError)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"table {path} is not UTF-8: {error.reason} at byte {error.start}") from None


def _separator(text: str, separators: str) -> str:
    """Return the separator that cuts the header into most fields."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(separators, key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
