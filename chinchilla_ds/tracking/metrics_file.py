"""Reads metrics.jsonl despite power cuts, full disks, edits, and a run that is still writing.

A line that cannot be read is skipped and named; the following lines count.
"""

import itertools
import math
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chinchilla_ds.errors import TrackingError, reason
from chinchilla_ds.structured import open_regular, parse_json
from chinchilla_ds.tracking.record import MAX_TIME_S
from chinchilla_ds.tracking.tracker import MetricRecord

METRICS_FILE = "metrics.jsonl"
NOTES = "notes"
"""Key of what was said about a step, a list of texts; every other value of a line is a number."""

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""Numbers that JSON lacks, written as strings as in the protobuf JSON mapping, which MLflow also uses."""
_BARE_NON_FINITE = re.compile(rb"(:\s*)(NaN|-?Infinity)(?=\s*[,}])")
"""The same as written by Python's json module, which is not JSON."""
_MAX_LINE_BYTES = 1 << 20
_MAX_STEP = 2**53
_NAME = re.compile(r"[/\w.\- :]{1,250}")
"""Names that MLflow accepts (mlflow.utils.validation)."""
_NAMED_LINES = 3


class MetricsReader:
    """Reads metrics.jsonl from where it stopped, or from the beginning if the file was truncated or replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.skipped: list[str] = []
        """Unreadable lines, such as `line 5 holds 4,096 NUL bytes`."""
        self.begins_anew = True
        """Whether the last call of `lines` started at the first line."""
        self._place = (0, 0)
        self._offset = 0
        self._number = 0

    def lines(self, *, is_ended: bool) -> Iterator[tuple[bytes, MetricRecord]]:
        """Yield the new lines, without their line ends, and their records.

        Args:
            is_ended: whether writing has ended: a last line without a line end is then complete.

        Raises:
            TrackingError: the file cannot be read, or is not a regular one.
        """
        try:
            stream = open_regular(self._path)
        except FileNotFoundError:
            self.begins_anew = True
            self._offset = 0
            return
        except OSError as error:
            raise TrackingError(f"{self._path} cannot be read: {reason(error)}") from None
        with stream:
            self._find_place(stream)
            stream.seek(self._offset)
            while line := stream.readline(_MAX_LINE_BYTES):
                if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES and not is_ended:
                    return
                length = len(line)  # of an overlong line only the beginning and the end are kept
                while not line.endswith(b"\n") and (rest := stream.readline(_MAX_LINE_BYTES)):
                    length += len(rest)
                    line = line[:_MAX_LINE_BYTES] + rest[-1:]
                self._offset += length
                self._number += 1
                yield from self._read(line, length=length)

    def records(self, *, is_ended: bool = True) -> Iterator[MetricRecord]:
        """Yield the records of the new lines; see `lines`."""
        return (record for _, record in self.lines(is_ended=is_ended))

    def _find_place(self, stream: Any) -> None:
        status = os.fstat(stream.fileno())
        place = (status.st_dev, status.st_ino)
        self.begins_anew = self._offset == 0 or place != self._place or status.st_size < self._offset
        self._place = place
        if self.begins_anew:
            self._offset = self._number = 0
            self.skipped.clear()

    def _read(self, line: bytes, *, length: int) -> Iterator[tuple[bytes, MetricRecord]]:
        content = line.strip(b"\0\r\n\t ")
        where = f"line {self._number}"
        if length > _MAX_LINE_BYTES:
            self.skipped.append(f"{where} is {length:,} bytes long")
        elif content:
            try:
                yield content, _record(content, where=where)
            except TrackingError as error:
                self.skipped.append(error.problems[0])
        elif b"\0" in line:
            self.skipped.append(f"{where} holds {line.count(0):,} NUL bytes")


def read_metrics(path: Path, /, *, skipped: list[str] | None = None) -> Iterator[MetricRecord]:
    """Yield the records that a run has written so far; unreadable lines are added to `skipped`."""
    reader = MetricsReader(path)
    yield from reader.records()
    if skipped is not None:
        skipped += reader.skipped


def describe_skipped(path: Path, skipped: Sequence[str], /) -> str:
    """Return one line about lines that could not be read."""
    named = "; ".join(itertools.islice(skipped, _NAMED_LINES))
    more = f"; and {len(skipped) - _NAMED_LINES} more" if len(skipped) > _NAMED_LINES else ""
    count = "1 line" if len(skipped) == 1 else f"{len(skipped)} lines"
    return f"{path}: {count} cannot be read and {'is' if len(skipped) == 1 else 'are'} skipped: {named}{more}"


def _record(content: bytes, *, where: str) -> MetricRecord:
    """Return the record of a line.

    Raises:
        TrackingError: it is not a line of metrics.
    """
    if b"NaN" in content or b"Infinity" in content:
        content = _BARE_NON_FINITE.sub(rb'\1"\2"', content)
    moment = parse_json(content, where=where, error=TrackingError)
    if not isinstance(moment, dict):
        raise TrackingError(f"{where} is not an object")
    step, time_s = moment.pop("step", None), moment.pop("time", 0)  # a value matters more than its time
    notes = moment.pop(NOTES, [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise TrackingError(f"{where} has the notes {_shown(notes)}, which are not a list of texts")
    if type(step) is not int or not 0 <= step < _MAX_STEP:
        raise TrackingError(f"{where} has the step {_shown(step)}, which is not a number of steps")
    if type(time_s) not in (int, float) or not 0 <= time_s <= MAX_TIME_S:
        raise TrackingError(f"{where} has the time {_shown(time_s)}, which is not in seconds since 1970")
    if unknown := [name for name in moment if not _is_name(name)]:
        raise TrackingError(f"{where} has a metric {_shown(unknown[0])}, which is not a name that MLflow accepts")
    metrics = {name: _value(name, value, where=where) for name, value in moment.items()}
    return MetricRecord(metrics=metrics, step=step, time_s=float(time_s), notes=tuple(notes))


def _value(name: str, value: Any, *, where: str) -> float:
    """Return a metric's number; earlier versions wrote null for every non-finite one."""
    if type(value) in (int, float):
        return float(value)
    if value is None:
        return math.nan
    if isinstance(value, str) and value in NON_FINITE:
        return NON_FINITE[value]
    raise TrackingError(f"{where} has the value {_shown(value)} for {name}, which is not a number")


def _is_name(name: str) -> bool:
    plain = posixpath.normpath(name) if name else "."
    return bool(_NAME.fullmatch(name)) and name == plain and name != "." and not name.startswith(("..", "/"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
