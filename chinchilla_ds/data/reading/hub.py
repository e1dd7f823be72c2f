"""Rows through Hugging Face `datasets`: folders written by `save_to_disk`, and data sets by name, streamed."""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from chinchilla_ds.data.reading.sources import HUB, SourceFile
from chinchilla_ds.errors import DataError, did_you_mean
from chinchilla_ds.structured import read_json

DEFAULT_SPLIT = "train"

_NAME = re.compile(r"(?P<name>[^:@\s]+)(?::(?P<config>[^:@\s]+))?(?:@(?P<split>[^:@\s]+))?")
_ROWS = 1024


class HubName(NamedTuple):
    """A data set by name."""

    name: str
    """org/name on the hub; or the path of a local folder of data files."""
    config: str | None
    split: str


def parse_hub_name(text: str, /) -> HubName:
    """Parse hf://org/name[:config][@split].

    Raises:
        DataError: it has another form.
    """
    matched = _NAME.fullmatch(text.removeprefix(HUB))
    if matched is None:
        raise DataError(f"{text!r} names no data set; the form is {HUB}org/name[:config][@split]")
    return HubName(name=matched["name"], config=matched["config"], split=matched["split"] or DEFAULT_SPLIT)


def num_hub_shards(file: SourceFile, /) -> int:
    """Return the number of shards in which a streamed data set can be read.

    Raises:
        DataError: it cannot be opened.
    """
    return int(_stream(file.place).num_shards)


def hub_texts(file: SourceFile, /, *, text_field: str, start: int, stop: int | None) -> Iterator[tuple[int, object]]:
    """Yield row number and text of the shards [start, stop); rows are numbered from 1 in their shard.

    Args:
        file: the data set.
        text_field: name of the column with the text.
        start: first shard.
        stop: end of the shards, exclusive; None: the last one.

    Raises:
        DataError: it cannot be opened or read, or has no such column.
    """
    stream = _stream(file.place)
    count = int(stream.num_shards)
    for index in range(start, count if stop is None else min(stop, count)):
        shard = stream.shard(num_shards=count, index=index)
        try:
            for row, record in enumerate(shard, start=1):
                if text_field not in record:
                    raise _no_column(f"{file.place} shard {index} row {row}", text_field, list(record))
                yield row, record[text_field]
        except DataError:
            raise
        except Exception as error:  # datasets raises the errors of all underlying libraries
            raise _unreadable(file.place, error) from None


def saved_rows(file: SourceFile, /) -> int:
    """Return the number of rows of an Arrow folder.

    Raises:
        DataError: it cannot be opened.
    """
    return len(_saved(file.path))


def saved_texts(file: SourceFile, /, *, text_field: str, start: int, stop: int | None) -> Iterator[tuple[int, object]]:
    """Yield row number (from 1) and text of the rows [start, stop) of an Arrow folder.

    Args:
        file: the folder.
        text_field: name of the column with the text.
        start: first row, counted from 0.
        stop: end of the rows, exclusive; None: the last one.

    Raises:
        DataError: it cannot be opened, or has no such column.
    """
    saved = _saved(file.path)
    if text_field not in saved.column_names:
        raise _no_column(str(file.path), text_field, saved.column_names)
    last = len(saved) if stop is None else min(stop, len(saved))
    for first in range(start, last, _ROWS):
        try:
            rows = saved[first : min(first + _ROWS, last)][text_field]
        except Exception as error:  # from any underlying library
            raise _unreadable(f"{file.path} beyond row {first}", error) from None
        yield from enumerate(rows, start=first + 1)


def _no_column(where: str, text_field: str, columns: list[str]) -> DataError:
    near = did_you_mean(text_field, columns)
    return DataError(f"{where} has no field {text_field!r}{near}; it has {', '.join(map(repr, columns))}")


@lru_cache(maxsize=4)
def _stream(place: str) -> Any:
    """Return the streamed data set; datasets itself honours HF_HUB_OFFLINE."""
    import datasets

    name = parse_hub_name(place)
    try:
        return datasets.load_dataset(name.name, name.config, split=name.split, streaming=True)
    except Exception as error:  # of any underlying library
        raise _unreadable(place, error) from None


@lru_cache(maxsize=4)
def _saved(path: Path) -> Any:
    import datasets

    _check_names(path)
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # of any underlying library
        raise _unreadable(str(path), error) from None


def _check_names(path: Path) -> None:
    """Check that the files named by a folder of Arrow files are inside it.

    Raises:
        DataError: its `state.json` is unreadable, or names a file elsewhere.
    """
    state = read_json(path / "state.json", what="the state of Arrow files", error=DataError)
    entries = state.get("_data_files") if isinstance(state, dict) else None
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
    if wrong := [name for name in names if not isinstance(name, str) or name != Path(name).name]:
        raise DataError(f"{path / 'state.json'} names the data file {wrong[0]!r}, which is not in its folder")


def _unreadable(place: str, error: Exception) -> DataError:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    note = " (HF_HUB_OFFLINE is set: only data sets in the local cache can be read)" if offline else ""
    return DataError(f"cannot read {place}{note}: {type(error).__name__}: {' '.join(str(error).split())}")
