"""Curves from CSV files, checked before anything is fitted to them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chinchilla_ds.budget.laws.curves.curve import LossCurve, loss_curve
from chinchilla_ds.budget.laws.curves.rates import num_warmup_rows
from chinchilla_ds.budget.laws.fitting.columns import plain
from chinchilla_ds.budget.laws.fitting.csv_lines import csv_lines
from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers
from chinchilla_ds.budget.laws.fitting.table_file import SEPARATORS
from chinchilla_ds.budget.laws.forms import LARGEST_LOSS
from chinchilla_ds.errors import DataError, did_you_mean
from chinchilla_ds.units import parse_quantity

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "step": ("step",),
    "lr": ("lr", "learning_rate"),
    "loss": ("loss",),
    "num_params": ("num_params", "N"),
}
"""The columns, and the names that a header may use; case and punctuation do not count."""
Table = Callable[[Path], Iterable[tuple[int, list[str]]]]
"""From a path to the lines of its table: their numbers and fields, the header first."""
MAX_PROBLEMS = 10
"""Problems of a file that are listed; the rest are counted."""
LAST_STEP = 10_000_000
"""A rate is kept for every step: 80 MB at this one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CurveFile:
    """A file's run."""

    path: Path
    """As it was given, without its size."""
    curve: LossCurve
    """Without the rows of the warm-up, where the laws do not hold; a loss is NaN where the file has none."""
    rate: Floats
    """Learning rates of the curve's points, [point]."""
    has_loss: bool
    num_params: float | None
    num_warmup_rows: int
    """Rows that were left out."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


@dataclass(frozen=True, kw_only=True)
class CurveSource:
    """A file to read, as a command line names it: `FILE`, or `FILE@25e6` with a number of parameters."""

    path: Path
    num_params: float | None = None

    @classmethod
    def named(cls, text: str, /) -> "CurveSource":
        """Return the source that `FILE` or `FILE@N` means; an existing file is always a file."""
        path, mark, size = text.rpartition("@")
        if not mark or not path or Path(text).exists():
            return cls(path=Path(text))
        try:
            return cls(path=Path(path), num_params=parse_quantity(size, unit="parameters"))
        except ValueError as error:
            raise DataError(f"{text}: the number of parameters after @ {error}") from None


def curve_lines(path: Path, /) -> Iterable[tuple[int, list[str]]]:
    """Return the lines of a file: numbers and fields, the header first; the header says what separates them."""
    return csv_lines(path, separators=SEPARATORS)


def read_curves(
    names: Iterable[str], *, warmup_steps: int | None, needs_loss: bool, table: Table = curve_lines
) -> tuple[list[CurveFile], list[str]]:
    """Return the runs of files, and the problems of those that could not be read.

    Args:
        names: The files, each `FILE` or `FILE@N`: columns step, lr, loss and optionally num_params, one row per logged
            step.
        warmup_steps: Over these the rate rises from 0 to the first row's; None: up to the first row.
        needs_loss: Whether a file without the column loss is refused.
        table: Reads a file.
    """
    files: list[CurveFile] = []
    problems: list[str] = []
    for name in names:
        try:
            files.append(_read(CurveSource.named(name), warmup_steps=warmup_steps, needs_loss=needs_loss, table=table))
        except DataError as error:
            problems += error.problems
    return files, problems


def _read(source: CurveSource, *, warmup_steps: int | None, needs_loss: bool, table: Table) -> CurveFile:
    path = source.path
    lines = list(table(path))
    if not lines:
        raise DataError(f"{path} is empty; its first line must name the columns step, lr, loss")
    columns = _columns(lines[0][1], path=path, required=("step", "lr", "loss") if needs_loss else ("step", "lr"))
    values, problems = _values(lines[1:], columns=columns, width=len(lines[0][1]))
    problems = problems or _order_problems(values) or _size_problems(values, source)
    if not problems and warmup_steps is not None and warmup_steps > values["step"][0]:
        problems = [
            f"`warmup={warmup_steps}` steps end after the first row, at step {values['step'][0]:g}: rows of a warm-up "
            "have their own rates; leave it out"
        ]
    if problems:
        more = len(problems) - MAX_PROBLEMS
        shown = [f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS]]
        raise DataError([*shown, f"{path}: and {more} more problems"] if more > 0 else shown)
    return _file(values, source=source, warmup_steps=warmup_steps, has_loss="loss" in columns)


def _file(values: Mapping[str, Floats], *, source: CurveSource, warmup_steps: int | None, has_loss: bool) -> CurveFile:
    step: Integers = values["step"].astype(np.int64)
    warm = num_warmup_rows(values["lr"])
    loss = values["loss"] if has_loss else np.full(len(step), np.nan)
    curve = loss_curve(
        step=step, rate=values["lr"], loss=loss, warmup_steps=int(step[0]) if warmup_steps is None else warmup_steps
    )
    sizes = values.get("num_params")
    return CurveFile(
        path=source.path,
        curve=curve.select(slice(warm, None)),
        rate=values["lr"][warm:],
        has_loss=has_loss,
        num_params=source.num_params if sizes is None else float(sizes[0]),
        num_warmup_rows=warm,
    )


def _columns(header: Sequence[str], *, path: Path, required: Sequence[str]) -> dict[str, int]:
    """Return the place of each column.

    Raises:
        DataError: one is missing, or there twice.
    """
    columns, problems = {}, []
    for name, spellings in COLUMNS.items():
        places = [index for index, title in enumerate(header) if plain(title) in map(plain, spellings)]
        if len(places) > 1:
            problems.append(f"{path}: more than one column is {' or '.join(spellings)}; keep one")
        elif places:
            columns[name] = places[0]
        elif name in required:
            near = did_you_mean(name, [title for title in header if title])
            listed = ", ".join(header)
            problems.append(f"{path}: the column {' or '.join(spellings)} is missing; its header is {listed}{near}")
    if problems:
        raise DataError(problems)
    return columns


def _values(
    lines: Sequence[tuple[int, list[str]]], *, columns: Mapping[str, int], width: int
) -> tuple[dict[str, Floats], list[str]]:
    """Return the numbers of each column, [row], and the problems of single fields."""
    values: dict[str, list[float]] = {name: [] for name in columns}
    problems = []
    for number, fields in lines:
        if len(fields) != width:
            problems.append(f"row {number} has {len(fields)} fields; the header has {width}")
            continue
        for name, index in columns.items():
            try:
                values[name].append(_number(fields[index], name))
            except ValueError as error:
                problems.append(f"row {number}: {name} {error}")
    return {name: np.array(column) for name, column in values.items()}, problems


def _number(text: str, name: str) -> float:
    if name == "num_params":
        return parse_quantity(text, unit="parameters")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"is {text}; it must be finite")
    if name == "step" and (value < 0 or value != int(value)):
        raise ValueError(f"is {text}; it must be a whole number of optimizer steps")
    if name == "step" and value > LAST_STEP:
        raise ValueError(f"is {text}; at most {LAST_STEP:,} optimizer steps are read (are these tokens?)")
    if name == "lr" and value < 0:
        raise ValueError(f"is {text}; it must be at least 0")
    if name == "loss" and not 0 < value <= LARGEST_LOSS:
        raise ValueError(f"is {text}; it must be in nats per token, above 0 and at most {LARGEST_LOSS:g}")
    return value


def _order_problems(values: Mapping[str, Floats]) -> list[str]:
    step, rate = values["step"], values["lr"]
    if len(step) < 2:
        return [f"has {len(step)} rows of a curve; at least 2 are needed"]
    back = np.flatnonzero(np.diff(step) <= 0)
    if len(back):
        first = back[0]
        return [
            f"step {step[first + 1]:g} comes after step {step[first]:g}, as {len(back)} in all: steps must rise; "
            "one file is one run, sorted, and each step once"
        ]
    if not rate.any():
        return ["lr is 0 in every row; the laws need the learning rate of each"]
    if np.all(np.diff(rate) > 0) and len(step) > 2:
        return [f"lr rises from the first row to the last, {rate[0]:g} to {rate[-1]:g}: it is all warm-up"]
    return []


def _size_problems(values: Mapping[str, Floats], source: CurveSource) -> list[str]:
    sizes = values.get("num_params")
    if sizes is None:
        return []
    if len(set(sizes.tolist())) > 1:
        return [f"num_params is {sizes.min():g} to {sizes.max():g}; one file is one run, of one size"]
    if source.num_params is not None and source.num_params != sizes[0]:
        return [f"num_params is {sizes[0]:g}, and @{source.num_params:g} was given; drop one"]
    return []
