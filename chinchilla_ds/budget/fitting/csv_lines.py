"""Lines of a CSV file that people write: numbered, stripped, with what is wrong said of the file."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from chinchilla_ds.errors import DataError, did_you_mean, reason


def csv_lines(path: Path, /) -> Iterator[tuple[int, list[str]]]:
    """Yield row numbers and fields of all lines that are not blank.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or not CSV.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        near = did_you_mean(path.name, (file.name for file in path.parent.glob("*"))) if path.parent.is_dir() else ""
        raise DataError(f"{path} cannot be read: {reason(error)}{'' if path.exists() else near}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from ((reader.line_num, [field.strip() for field in fields]) for fields in reader if any(fields))
    except csv.Error as error:
        raise DataError(f"{path} row {reader.line_num} is not CSV: {error}") from None
