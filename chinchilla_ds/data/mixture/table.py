"""Tables of mixtures: one row per run, a weight for each source, and the losses once the runs are done.

The header is `run,weight:code,weight:web,loss` for sources named code and web; a row `mix-01,0.6134,0.3866,3.375`.
"""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chinchilla_ds.budget.laws.fitting.csv_lines import csv_lines
from chinchilla_ds.budget.laws.fitting.runs import Floats
from chinchilla_ds.errors import DataError, did_you_mean

WEIGHT_PREFIX = "weight:"
LOSS_PREFIX = "loss:"
LOSS = "loss"
RUN = "run"
NATURAL = "natural"
"""Name of the run on the natural mixture."""
SUM_TOLERANCE = 1e-3
"""Tolerance of the sum of a row's weights, for tables rounded by hand; they are then scaled to 1."""
MIN_RUNS = 8
MAX_PROBLEMS = 20
"""Problems that are listed; the rest are counted."""
DECIMALS = 6
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, kw_only=True, eq=False)
class MixtureRuns:
    """Finished runs: r of them on k sources."""

    sources: tuple[str, ...]
    weights: Floats
    """Weights of the sources, [r, k]; rows sum to 1."""
    losses: Floats
    """Mean over the target columns, [r]."""
    targets: tuple[str, ...]
    """The columns whose mean is `losses`."""
    natural: Floats | None
    """Weights of the row named `natural`, [k]."""
    notes: tuple[str, ...] = ()
    """Messages about rows and columns that were ignored."""


@dataclass(frozen=True, kw_only=True)
class DesignedRun:
    """One run of a table, done or not."""

    name: str
    weights: dict[str, float]
    """Weights by source; they sum to 1."""
    loss: float | None
    repeat: int
    """Number of earlier rows with the same mixture."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    number: int
    run: str
    weights: tuple[float, ...]
    losses: tuple[float, ...] | None
    """None if the run is not done."""


def rounded_weights(weights: Floats, /, *, upper: Floats | None = None) -> Floats:
    """Return a mixture in steps of 10^-DECIMALS that sums to 1: rounded down, the largest remainders up.

    Weights that would then exceed `upper` are rounded up last.
    """
    scale = 10**DECIMALS
    counts = np.floor(weights * scale + 1e-6)
    remainders = weights * scale - counts
    if upper is not None:
        remainders -= 2 * (counts + 1 > upper * scale)
    short = round(scale - counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:short]] += 1
    out: Floats = counts / scale
    return out


def design_csv(*, sources: Sequence[str], mixtures: Floats) -> str:
    """Return the table of a design, whose first mixture is the natural one."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([RUN, *(WEIGHT_PREFIX + source for source in sources)])
    digits = len(str(len(mixtures) - 1))
    for index, weights in enumerate(mixtures):
        name = f"mix-{index:0{digits}d}" if index else NATURAL
        writer.writerow([name, *(f"{weight:.{DECIMALS}f}" for weight in rounded_weights(weights))])
    return out.getvalue()


def read_mixture_runs(path: Path, *, targets: Sequence[str], known_sources: Sequence[str] | None) -> MixtureRuns:
    """Return the finished runs of a table.

    Args:
        path: CSV with commas and one header row, UTF-8. Row numbers in messages count the header as row 1.
        targets: columns whose mean is the loss; empty: `loss`, or all `loss:...` columns if there is no `loss`.
        known_sources: the corpus's sources; None if unknown.

    Raises:
        DataError: the table is unreadable or invalid; every problem is listed, up to MAX_PROBLEMS.
    """
    lines = list(csv_lines(path))
    if not lines:
        raise DataError(f"{path} is empty; its first row must name {WEIGHT_PREFIX}SOURCE columns and {LOSS}")
    header = lines[0][1]
    sources = tuple(name.removeprefix(WEIGHT_PREFIX) for name in header if name.startswith(WEIGHT_PREFIX))
    columns = tuple(targets) or _default_targets(header)
    problems = list(_header_problems(header, sources=sources, targets=columns, known_sources=known_sources))
    if not columns:
        named = ", ".join(repr(name) for name in header)
        problems.append(f"column {LOSS} (or {LOSS_PREFIX}NAME) is missing; the header has {named}")
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    rows: list[_Row] = []
    for number, fields in lines[1:]:
        outcome = _row(number, fields, header=header, sources=sources, targets=columns)
        problems += outcome if isinstance(outcome, list) else []
        rows += [outcome] if isinstance(outcome, _Row) else []
    done = [row for row in rows if row.losses is not None]
    problems += _table_problems(rows, done=done, num_sources=len(sources), complete=not problems)
    if problems:
        more = len(problems) - MAX_PROBLEMS
        tail = [f"{path}: and {more} more problems"] if more > 0 else []
        raise DataError([f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS]] + tail)
    natural = next((_scaled(row.weights) for row in rows if row.run == NATURAL), None)
    return MixtureRuns(
        sources=sources,
        weights=np.stack([_scaled(row.weights) for row in done]),
        losses=np.array([np.mean(row.losses) for row in done if row.losses is not None]),
        targets=columns,
        natural=natural,
        notes=tuple(_notes(header, num_left_out=len(rows) - len(done), targets=columns)),
    )


def read_design(path: Path, *, known_sources: Sequence[str]) -> tuple[DesignedRun, ...]:
    """Return the runs of a table, with and without a loss, in its order.

    Raises:
        DataError: as `read_mixture_runs`, except that a loss may be missing; or runs without unique names.
    """
    lines = list(csv_lines(path))
    header = lines[0][1] if lines else []
    sources = tuple(name.removeprefix(WEIGHT_PREFIX) for name in header if name.startswith(WEIGHT_PREFIX))
    targets = (LOSS,) if LOSS in header else ()
    problems = list(_header_problems(header, sources=sources, targets=targets, known_sources=known_sources))
    if RUN not in header:
        problems.append(f"column {RUN} is missing: it names each run and its folder")
    rows: list[_Row] = []
    for number, fields in lines[1:] if not problems else ():
        outcome = _row(number, fields, header=header, sources=sources, targets=targets)
        problems += outcome if isinstance(outcome, list) else []
        rows += [outcome] if isinstance(outcome, _Row) else []
    problems += _name_problems(rows)
    if problems or not rows:
        raise DataError([f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS] or ["it holds no runs"]])
    seen: Counter[tuple[float, ...]] = Counter()
    runs = []
    for row in rows:
        weights = dict(zip(sources, rounded_weights(_scaled(row.weights)).tolist(), strict=True))
        loss = None if row.losses is None else row.losses[0]
        runs.append(DesignedRun(name=row.run, weights=weights, loss=loss, repeat=seen[row.weights]))
        seen[row.weights] += 1
    return tuple(runs)


def with_loss(text: str, /, *, run: str, loss: float) -> str:
    """Return the text of a table with a run's loss; its column is added if there is none.

    Args:
        text: the table as CSV.
        run: name of the run.
        loss: its loss, nats per token.
    """
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline="")))
    header, *filled = (row for row in rows if any(row))
    header[:] = [name.strip() for name in header]
    if LOSS not in header:
        header.append(LOSS)
        for row in filled:
            row.append("")
    for row in filled:
        if row[header.index(RUN)].strip() == run:
            row[header.index(LOSS)] = f"{loss:.{DECIMALS}f}"
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def _name_problems(rows: Sequence[_Row]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for row in rows:
        if not _RUN_NAME.fullmatch(row.run):
            yield f"row {row.number}: {RUN} is {row.run!r}; it names a folder: letters, digits, '_', '-' and '.'"
        elif row.run in seen:
            yield f"rows {seen[row.run]} and {row.number} are both named {row.run}; name each run once"
        seen.setdefault(row.run, row.number)


def _scaled(weights: Sequence[float]) -> Floats:
    out: Floats = np.array(weights) / math.fsum(weights)
    return out


def _is_loss(name: str) -> bool:
    return name == LOSS or name.startswith(LOSS_PREFIX)


def _default_targets(header: Sequence[str]) -> tuple[str, ...]:
    return (LOSS,) if LOSS in header else tuple(name for name in header if name.startswith(LOSS_PREFIX))


def _header_problems(
    header: Sequence[str], *, sources: Sequence[str], targets: Sequence[str], known_sources: Sequence[str] | None
) -> Iterator[str]:
    named = ", ".join(repr(name) for name in header)
    if len(header) == 1 and (separator := next((mark for mark in ";\t|" if mark in header[0]), None)):
        yield f"the header is separated by {separator!r}; use commas"
        return
    yield from (f"column {name} occurs {count} times; keep one" for name, count in Counter(header).items() if count > 1)
    if not sources:
        yield f"no column {WEIGHT_PREFIX}SOURCE; the header has {named}"
    elif len(sources) == 1:
        yield f"there is one source, {sources[0]!r}; a mixture needs at least 2"
    for target in targets:
        if target == RUN or target.startswith(WEIGHT_PREFIX):
            yield f"`targets={target}` is not a column of losses"
        elif target not in header:
            losses = [name for name in header if _is_loss(name)]
            available = f"the losses are {', '.join(losses)}" if losses else f"the header has {named}"
            yield f"column {target} is missing{did_you_mean(target, header) or f'; {available}'}"
    if known_sources is not None and sources:
        for source in sources:
            if source not in known_sources:
                near = did_you_mean(source, known_sources) or f"; its sources are {', '.join(known_sources)}"
                yield f"{WEIGHT_PREFIX}{source} is not a source of the corpus{near}"
        for source in known_sources:
            if source not in sources:
                yield f"column {WEIGHT_PREFIX}{source} is missing: {source} is a source of the corpus"


def _row(
    number: int, fields: Sequence[str], *, header: Sequence[str], sources: Sequence[str], targets: Sequence[str]
) -> _Row | list[str]:
    """Return the row, or its problems."""
    if len(fields) != len(header):
        return [f"row {number} has {len(fields)} fields; the header has {len(header)}"]
    values: Mapping[str, str] = dict(zip(header, fields, strict=True))
    problems: list[str] = []
    weights = [_number(number, WEIGHT_PREFIX + name, values, problems=problems, at_least=0.0) for name in sources]
    if not problems and abs(math.fsum(weights) - 1) > SUM_TOLERANCE:
        total = math.fsum(weights)
        problems.append(
            f"row {number}: the weights sum to {total:.6g}; they must sum to 1 within {SUM_TOLERANCE:g}"
            + (f"; divide each by {total:.6g}" if total > 0 else "")
        )
    done = any(values[name] for name in targets)
    losses = [_number(number, name, values, problems=problems, at_least=None) for name in targets] if done else None
    if problems:
        return problems
    return _Row(
        number=number,
        run=values.get(RUN, ""),
        weights=tuple(weights),
        losses=None if losses is None else tuple(losses),
    )


def _number(number: int, name: str, values: Mapping[str, str], *, problems: list[str], at_least: float | None) -> float:
    """Return a field as a number; problems are added to `problems`. `at_least` None: above 0."""
    text = values[name]
    try:
        value = float(text)
    except ValueError:
        problems.append(f"row {number}: {name} is {f'{text!r}, which is not a number' if text else 'empty'}")
        return math.nan
    if not math.isfinite(value) or (value <= 0 if at_least is None else value < at_least):
        rule = "a positive finite number" if at_least is None else f"a finite number of at least {at_least:g}"
        problems.append(f"row {number}: {name} is {text}; it must be {rule}")
    return value


def _table_problems(rows: Sequence[_Row], *, done: Sequence[_Row], num_sources: int, complete: bool) -> Iterator[str]:
    seen: dict[tuple[object, ...], int] = {}
    for row in done:
        first = seen.setdefault((row.weights, row.losses), row.number)
        if first != row.number:
            yield (
                f"rows {first} and {row.number} are the same run (weights and losses are equal); keep one. A repeat "
                "with another seed has another loss, and is useful"
            )
    naturals = {row.weights: row.number for row in rows if row.run == NATURAL}
    if len(naturals) > 1:
        yield f"rows {', '.join(map(str, naturals.values()))} are named {NATURAL} and have different weights"
    distinct = len({row.weights for row in done})
    needed = max(MIN_RUNS, num_sources + 2)
    if complete and distinct < needed:
        unfinished = f", and {len(rows) - len(done)} rows have no loss yet" if len(rows) > len(done) else ""
        yield (
            f"{distinct} different mixtures have a loss{unfinished}; a regression on {num_sources} sources has at "
            f"least {num_sources} constants and needs {needed}, and {8 * num_sources} work well"
        )


def _notes(header: Sequence[str], *, num_left_out: int, targets: Sequence[str]) -> Iterator[str]:
    if num_left_out:
        yield f"{num_left_out} rows have no loss yet: left out"
    other = [name for name in header if name != RUN and not name.startswith(WEIGHT_PREFIX) and name not in targets]
    if other:
        yield f"columns not used: {', '.join(other)}"
