"""Rows of tables: Parquet, folders written by `datasets`, and data sets on the hub."""

from collections.abc import Callable
from typing import Any

from chinchilla_ds.data.reading.hub import hub_texts, saved_texts
from chinchilla_ds.data.reading.kinds import FileKind
from chinchilla_ds.data.reading.parts import BROKEN_ARCHIVE, NOT_UTF8, Documents, Part, Problem, no_text_field, text_of
from chinchilla_ds.data.reading.sources import SourceFile
from chinchilla_ds.errors import DataError, reason
from chinchilla_ds.structured import open_regular

_ROWS = 1024


def open_parquet(file: SourceFile) -> Any:
    """Return the open Parquet file.

    Raises:
        DataError: it is not a Parquet file, or its footer is damaged.
        OSError: it cannot be opened, or is not a regular file.
    """
    import pyarrow
    import pyarrow.parquet

    open_regular(file.path).close()
    try:
        return pyarrow.parquet.ParquetFile(file.path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} is not a readable Parquet file: {_first_line(error)}") from None


def read_parquet(part: Part) -> Documents:
    """Yield the text column of row groups."""
    import pyarrow

    parquet = open_parquet(part.file)
    columns = parquet.schema_arrow.names
    if part.text_field not in columns:
        raise DataError(no_text_field(str(part.file.path), part.text_field, columns))
    stop = parquet.num_row_groups if part.stop is None else min(part.stop, parquet.num_row_groups)
    row = sum(parquet.metadata.row_group(group).num_rows for group in range(part.start))
    try:
        groups = list(range(part.start, stop))
        for batch in parquet.iter_batches(batch_size=_ROWS, row_groups=groups, columns=[part.text_field]):
            for value in batch.column(part.text_field):
                row += 1
                yield _cell(value.as_py, part, row=row)
    except (pyarrow.ArrowException, OSError) as error:
        message = f"{part.file.path} is not a readable Parquet file beyond row {row}: {_first_line(error)}"
        yield Problem(kind=BROKEN_ARCHIVE, message=message)


def _first_line(error: Exception) -> str:
    text = reason(error) if isinstance(error, OSError) else str(error)
    return text.partition("\n")[0]


def _cell(value: Callable[[], object], part: Part, *, row: int) -> bytes | Problem:
    where = f"{part.file.place} row {row}"
    try:
        return text_of(value(), where=where, text_field=part.text_field)
    except UnicodeDecodeError as error:
        return Problem(kind=NOT_UTF8, message=f"{where} is not UTF-8: {error.reason}")


def read_rows(part: Part) -> Documents:
    """Yield the rows of an Arrow folder or a hub shard."""
    read = saved_texts if part.file.kind is FileKind.ARROW else hub_texts
    for row, value in read(part.file, text_field=part.text_field, start=part.start, stop=part.stop):
        yield _cell(lambda value=value: value, part, row=row)  # type: ignore[misc]
