"""Tables of finished runs, checked before anything is fitted to them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.budget.laws.fitting.csv_lines import csv_lines
from chinchilla_ds.budget.laws.fitting.runs import RunTable, run_table
from chinchilla_ds.budget.laws.forms import LARGEST_LOSS
from chinchilla_ds.errors import DataError, did_you_mean
from chinchilla_ds.units import parse_quantity

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "num_params": ("num_params", "N"),
    "num_tokens": ("num_tokens", "D"),
    "loss": ("loss",),
    "flops": ("flops", "C"),
    "run": ("run",),
}
"""The columns of a table, and the names that its header may use, case-sensitive."""
REQUIRED = ("num_params", "num_tokens", "loss")
MAX_PROBLEMS = 10
"""Problems that are listed; the rest are counted."""
FLOPS_FACTOR = 3.0
"""Largest factor between `flops` and 6 N D: attention over long contexts and untied tables stay well within it."""
SMALLEST_COUNT = 1e3
"""Parameters or tokens below this are assumed to be in millions or billions."""
LARGEST_COUNT = 1e18
"""Parameters or tokens above this are in another unit, or another column; FLOPs, if given, show which."""
SMALLEST_LOSS = 0.01


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run as it was recorded."""

    where: str
    """Its place, such as `row 7`."""
    num_params: float
    num_tokens: float
    loss: float
    """Nats per token."""
    flops: float | None = None
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class ReadRuns:
    """A checked table."""

    table: RunTable
    notes: tuple[str, ...] = ()
    """What was ignored."""


def read_runs(path: Path, *, min_rows: int) -> ReadRuns:
    """Return the runs in a CSV file with the columns num_params (or N), num_tokens (or D), loss, [flops (or C)], [run].

    Counts may carry a decimal suffix (`70M`, `1.5T`). Row numbers in messages count the header as row 1.

    Args:
        path: CSV with commas and one header row, UTF-8.
        min_rows: Rows that the fit needs: its number of constants.

    Raises:
        DataError: unreadable, or at least one row breaks a rule; every problem is named, up to MAX_PROBLEMS.
    """
    lines = list(csv_lines(path))
    if not lines:
        raise DataError(f"{path} is empty; its first line must name the columns num_params, num_tokens, loss")
    columns, ignored = _columns(lines[0][1], path=path)
    rows, problems = [], []
    for number, fields in lines[1:]:
        if len(fields) != len(lines[0][1]):
            problems.append(f"row {number} has {len(fields)} fields; the header has {len(lines[0][1])}")
            continue
        found = _row(number, {name: fields[index] for name, index in columns.items()})
        problems += found if isinstance(found, list) else []
        rows += [found] if isinstance(found, Row) else []
    if not problems and not rows:
        problems = ["has a header and no rows"]
    table = _checked(rows, problems=problems, source=str(path), min_rows=min_rows, check_flops=True)
    notes = (f"ignored columns: {', '.join(ignored)}",) if ignored else ()
    return ReadRuns(table=table, notes=notes)


def table_of(rows: Sequence[Row], *, source: str, min_rows: int) -> RunTable:
    """Return a table of runs recorded by another program, checked like a file's rows.

    Their `flops` are not compared with 6 N D: a tracker's count is exact, and 6 N D is not at toy sizes.

    Args:
        rows: the runs as recorded.
        source: where they come from, for messages.
        min_rows: rows that the fit needs: its number of constants.

    Raises:
        DataError: as `read_runs`.
    """
    problems = [
        f"{row.where}: {name} is {value!r}; it must be a positive finite number"
        for row in rows
        for name in ("num_params", "num_tokens", "loss", "flops")
        if (value := getattr(row, name)) is not None and not (math.isfinite(value) and value > 0)
    ]
    return _checked(rows, problems=problems, source=source, min_rows=min_rows, check_flops=False)


def _columns(header: Sequence[str], *, path: Path) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return each column's index, and the names that are ignored."""
    problems = []
    columns: dict[str, int] = {}
    known = [name for names in COLUMNS.values() for name in names]
    for column, names in COLUMNS.items():
        found = [index for index, field in enumerate(header) if field in names]
        if len(found) > 1:
            problems.append(f"{' and '.join(header[index] for index in found)} are the same column; keep one")
        elif found:
            columns[column] = found[0]
        elif column in REQUIRED:
            alias = f" (or {names[1]})" if len(names) > 1 else ""
            problems.append(f"column {names[0]}{alias} is missing{_meant(names, header, known=known)}")
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        problems = [f"the header is separated by {separator!r}; use commas"]
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    return columns, tuple(field for field in header if field not in known)


def _meant(names: Sequence[str], header: Sequence[str], *, known: Sequence[str]) -> str:
    """Return a hint at the header's field that was probably meant: names are case-sensitive."""
    for field in header:
        if field not in known and any(did_you_mean(field.lower(), [name.lower()]) for name in names):
            return f"; is it {field!r}? Names are case-sensitive"
    return f"; the header has {', '.join(repr(field) for field in header)}"


def _row(number: int, fields: Mapping[str, str]) -> Row | list[str]:
    """Return the row, or its problems."""
    values, problems = {}, []
    for name, text in fields.items():
        if name == "run":
            continue
        if name == "flops" and not text:
            continue
        try:
            values[name] = _number(text, suffixes=name != "loss")
        except ValueError as error:
            problems.append(f"row {number}: {name} {error}")
    if problems:
        return problems
    return Row(where=f"row {number}", run=fields.get("run", ""), **values)


def _number(text: str, *, suffixes: bool) -> float:
    if not text:
        raise ValueError("is empty")
    if suffixes:
        return parse_quantity(text)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{text!r} is not a positive finite number")
    return value


def _checked(rows: Sequence[Row], *, problems: list[str], source: str, min_rows: int, check_flops: bool) -> RunTable:
    """Return the rows as a table.

    Raises:
        DataError: all problems with values, units, duplicates and the number of runs.
    """
    problems = [*problems, *_duplicates(rows), *_unit_problems(rows)]
    if check_flops:
        problems += _flops_problems(rows)
    if not problems and len(rows) < min_rows:
        problems = [f"has {len(rows)} runs, and the fit has {min_rows} constants: at least {min_rows} runs are needed"]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = [f"{source}: {problem}" for problem in problems[:MAX_PROBLEMS]]
        raise DataError([*shown, f"{source}: and {more} more problems"] if more > 0 else shown)
    return run_table(
        num_params=[row.num_params for row in rows],
        num_tokens=[row.num_tokens for row in rows],
        loss=[row.loss for row in rows],
        flops=[row.flops or 6 * row.num_params * row.num_tokens for row in rows],
        labels=[row.run or row.where for row in rows],
    )


def _duplicates(rows: Sequence[Row]) -> Iterator[str]:
    """Yield every duplicate run, which would count twice."""
    seen: dict[tuple[float, float, float], Row] = {}
    for row in rows:
        key = (row.num_params, row.num_tokens, row.loss)
        if key in seen:
            yield f"{seen[key].where} and {row.where} are the same run (N, D and loss are equal); keep one"
        seen.setdefault(key, row)


def _unit_problems(rows: Sequence[Row]) -> Iterator[str]:
    """Yield counts that look like millions or billions, and losses that are not in nats per token."""
    for name in ("num_params", "num_tokens"):
        small = [row for row in rows if getattr(row, name) < SMALLEST_COUNT]
        values = [getattr(row, name) for row in rows]
        if rows and len(small) == len(rows):
            yield (
                f"{name} is {min(values):g} to {max(values):g} in every row, which looks like millions or billions; "
                "give plain numbers (7e9) or a suffix (7B)"
            )
        else:
            for row in small:
                yield (
                    f"{row.where}: {name} is {getattr(row, name):g}, and other rows have up to {max(values):.3g}; is "
                    "it in millions or billions? Give plain numbers (7e9) or a suffix (7B)"
                )
        for row in rows:
            if row.flops is None and getattr(row, name) > LARGEST_COUNT:
                yield f"{row.where}: {name} is {getattr(row, name):.3g}; it must be at most {LARGEST_COUNT:.0e}"
    for row in rows:
        if row.loss > LARGEST_LOSS:
            yield f"{row.where}: loss is {row.loss:g}; it must be in nats per token, at most {LARGEST_LOSS:g}"
    if rows and all(row.loss < SMALLEST_LOSS for row in rows):
        yield (
            f"loss is at most {max(row.loss for row in rows):g} in every row; it must be in nats per token, and "
            f"language models stay above {SMALLEST_LOSS:g}"
        )


def _flops_problems(rows: Sequence[Row]) -> Iterator[str]:
    """Yield every row whose `flops` cannot be those of training N parameters on D tokens."""
    for row in rows:
        if row.flops is None:
            continue
        ratio = row.flops / (6 * row.num_params * row.num_tokens)
        if 1 / FLOPS_FACTOR <= ratio <= FLOPS_FACTOR:
            continue
        swapped = next((name for name in ("num_params", "num_tokens") if _fits_swapped(row, name)), None)
        hint = f"; {swapped} and flops look swapped" if swapped else "; check the units of all three"
        yield (
            f"{row.where}: flops is {row.flops:.3g}, {ratio:.3g} times 6 N D = "
            f"{6 * row.num_params * row.num_tokens:.3g}; it must be within a factor of {FLOPS_FACTOR:g}{hint}"
        )


def _fits_swapped(row: Row, name: str) -> bool:
    """Return whether `flops` and another column make sense with their places exchanged."""
    assert row.flops is not None
    other = row.num_tokens if name == "num_params" else row.num_params
    value: float = getattr(row, name)
    ratio = value / (6 * row.flops * other)
    return 1 / FLOPS_FACTOR <= ratio <= FLOPS_FACTOR
