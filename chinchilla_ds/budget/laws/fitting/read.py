"""Tables of finished runs, checked before anything is fitted to them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chinchilla_ds.budget.laws.fitting.columns import TableColumns, find_columns
from chinchilla_ds.budget.laws.fitting.comparable import Origin, mixture_problems, unknown_notes
from chinchilla_ds.budget.laws.fitting.row_checks import flops_problems, loss_notes, unit_problems
from chinchilla_ds.budget.laws.fitting.runs import RunTable, run_table
from chinchilla_ds.budget.laws.fitting.table_file import RawRow, read_table
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.units import parse_quantity

MAX_PROBLEMS = 10
"""Problems that are listed; the rest are counted. The same for rows that are left out."""
_NO_VALUE = frozenset({"", "nan", "inf", "+inf", "-inf", "infinity", "none", "null", "na", "n/a", "-"})
"""What a run without a result has for its loss."""
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")


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
    tokenizer_hash: str = ""
    held_out_hash: str = ""
    """Both empty if they are not recorded."""
    bytes_per_token: float | None = None
    """UTF-8 bytes per token of the text that the loss was measured on."""
    train_bytes_per_token: float | None = None
    """UTF-8 bytes per token of the training text; None: as `bytes_per_token`."""
    others: tuple[str, ...] = ()
    """Everything else in the row, which tells a rerun from the same row twice."""

    @property
    def name(self) -> str:
        """The run's name with its place."""
        return f"{self.run} ({self.where})" if self.run and self.run not in self.where else self.where


@dataclass(frozen=True, kw_only=True)
class ReadRuns:
    """A checked table."""

    table: RunTable
    notes: tuple[str, ...] = ()
    """What was left out, derived or assumed."""


def read_runs(
    path: Path,
    *,
    min_rows: int,
    columns: Mapping[str, str] | None = None,
    unit: LossUnit = LossUnit.TOKEN,
    bytes_per_token: float | None = None,
) -> ReadRuns:
    """Return the runs in a file: CSV or TSV with a header, JSON, JSONL or Parquet.

    Columns are found by their usual names (`columns.USUAL_NAMES`). Counts may carry a decimal suffix (`70M`, `1.5T`) or
    commas between thousands. Rows without a finite loss are left out, and named in the notes. Row numbers in messages
    count the header as row 1.

    Args:
        path: The file.
        min_rows: Rows that the fit needs: its number of constants.
        columns: The table's column for each of our names that the usual names do not find.
        unit: What the losses are read as, and fitted in. For bytes, every row needs `bytes_per_token`.
        bytes_per_token: With bytes, the tokenizer for which the law is to hold: losses and D are then per token of it.

    Raises:
        ConfigError: `columns` names a column that the table does not have; `bytes_per_token` without bytes.
        DataError: unreadable, or at least one row breaks a rule; every problem is named, up to MAX_PROBLEMS.
    """
    raw = read_table(path)
    try:
        known = find_columns(raw.header, named=columns or {}, is_perplexity=unit is LossUnit.PERPLEXITY)
    except (ConfigError, DataError) as error:
        raise type(error)([f"{path}: {problem}" for problem in error.problems]) from None
    rows, left_out, problems = [], [], list(raw.problems)
    for raw_row in raw.rows:
        row = _row(raw_row, known, is_perplexity=unit is LossUnit.PERPLEXITY)
        if isinstance(row, Row):
            rows.append(row)
        elif isinstance(row, str):
            left_out.append(row)
        else:
            problems += row
    if not raw.rows and not raw.problems:
        problems = ["has a header and no rows"]
    read = _checked(
        rows,
        problems=problems,
        check_flops=True,
        left_out=left_out,
        source=str(path),
        min_rows=min_rows,
        unit=unit,
        bytes_per_token=bytes_per_token,
    )
    notes = [f"ignored columns: {', '.join(known.ignored)}"] if known.ignored else []
    if "num_tokens" not in known.places:
        notes.append(f"there is no column of tokens: D = C / (6 N), with C from {raw.header[known.places['flops']]!r}")
    return replace(read, notes=(*notes, *read.notes))


def table_of(
    rows: Sequence[Row],
    *,
    source: str,
    min_rows: int,
    unit: LossUnit = LossUnit.TOKEN,
    bytes_per_token: float | None = None,
) -> ReadRuns:
    """Return a table of runs recorded by another program, checked like a file's rows.

    Their `flops` are not compared with 6 N D: a tracker's count is exact, and 6 N D is not at toy sizes.

    Args:
        rows: the runs as recorded.
        source: where they come from, for messages.
        min_rows: rows that the fit needs: its number of constants.
        unit: as in `read_runs`.
        bytes_per_token: as in `read_runs`.

    Raises:
        DataError: as `read_runs`.
    """
    rows = [replace(row, loss=_perplexity_log(row.loss)) for row in rows] if unit is LossUnit.PERPLEXITY else rows
    finished = [row for row in rows if math.isfinite(row.loss)]
    left_out = [_no_loss(row.where, f"{row.loss!r}") for row in rows if not math.isfinite(row.loss)]
    problems = [
        f"{row.where}: {name} is {value!r}; it must be a positive finite number"
        for row in finished
        for name in ("num_params", "num_tokens", "loss", "flops")
        if (value := getattr(row, name)) is not None and not (math.isfinite(value) and value > 0)
    ]
    return _checked(
        finished,
        problems=problems,
        check_flops=False,
        left_out=left_out,
        source=source,
        min_rows=min_rows,
        unit=unit,
        bytes_per_token=bytes_per_token,
    )


# ---- one row ---------------------------------------------------------------------------------------------------------


def _row(raw: RawRow, columns: TableColumns, *, is_perplexity: bool) -> Row | str | list[str]:
    """Return the row; why it is left out; or its problems."""
    fields = {name: raw.fields[place] for name, place in columns.places.items()}
    if fields["loss"].lower() in _NO_VALUE:
        return _no_loss(raw.where, fields["loss"] or "empty")
    values: dict[str, float] = {}
    problems = []
    for name, text in fields.items():
        if name in ("run", "tokenizer_hash", "held_out_hash") or (name not in _ALWAYS and not text):
            continue
        try:
            values[name] = _number(text, is_count=name in _COUNTS)
        except ValueError as error:
            problems.append(f"{raw.where}: {name} {error}")
    if is_perplexity and "loss" in values:
        if values["loss"] <= 1:
            problems.append(f"{raw.where}: loss is a perplexity of {values['loss']:g}; it must be above 1")
        values["loss"] = _perplexity_log(values["loss"])
    if "num_tokens" not in fields and not problems:
        if "flops" not in values:
            problems.append(f"{raw.where}: flops is empty, and without a column of tokens D follows from it")
        else:
            values["num_tokens"] = values["flops"] / (6 * values["num_params"])
    if problems:
        return problems
    names = {name: fields.get(name, "") for name in ("run", "tokenizer_hash", "held_out_hash")}
    return Row(where=raw.where, others=raw.fields, **values, **names)  # type: ignore[arg-type]  # by name above


_COUNTS = ("num_params", "num_tokens", "flops")
_ALWAYS = ("num_params", "num_tokens", "loss")


def _no_loss(where: str, value: str) -> str:
    return f"{where}: loss is {value}; it must be a positive finite number"


def _perplexity_log(value: float) -> float:
    """Return the nats per token of a perplexity; of an infinite one, infinity."""
    return math.log(value) if value > 0 else math.nan


def _number(text: str, *, is_count: bool) -> float:
    if not text:
        raise ValueError("is empty")
    if is_count:
        return parse_quantity(text.replace(",", "") if _THOUSANDS.fullmatch(text) else text)
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{text!r} is not a positive finite number")
    return value


# ---- the table -------------------------------------------------------------------------------------------------------


def _checked(
    rows: Sequence[Row],
    *,
    problems: list[str],
    check_flops: bool,
    left_out: Sequence[str],
    source: str,
    min_rows: int,
    unit: LossUnit,
    bytes_per_token: float | None,
) -> ReadRuns:
    """Return the rows as a table in its unit.

    Raises:
        ConfigError: `bytes_per_token` without bytes.
        DataError: all problems with values, units, duplicates, comparability and the number of runs.
    """
    per_byte = unit is LossUnit.BYTE
    if bytes_per_token is not None and not per_byte:
        raise ConfigError(f"`bytes_per_token` has no effect on losses per {unit}: drop it, or add `unit=byte`")
    origins = [
        Origin(name=row.name, tokenizer_hash=row.tokenizer_hash, held_out_hash=row.held_out_hash) for row in rows
    ]
    problems = [*problems, *_duplicates(rows), *unit_problems(rows), *mixture_problems(origins, per_byte=per_byte)]
    if check_flops:
        problems += flops_problems(rows)
    if per_byte:
        problems += _bytes_problems(rows)
    if not problems and len(rows) < min_rows:
        few = f"has {len(rows)} runs, and the fit has {min_rows} constants: at least {min_rows} runs are needed"
        problems = [*left_out, few]
    if problems:
        raise DataError([f"{source}: {problem}" for problem in _shortened(problems, "more problems")])
    notes = [*loss_notes(rows), *unknown_notes(origins, per_byte=per_byte)]
    if left_out:
        notes.append(f"{len(left_out)} rows without a finite loss are left out: {'; '.join(_places(left_out))}")
    if per_byte:
        rows = [_rescaled(row, bytes_per_token or 1.0) for row in rows]
    table = run_table(
        num_params=[row.num_params for row in rows],
        num_tokens=[row.num_tokens for row in rows],
        loss=[row.loss for row in rows],
        flops=[row.flops or 6 * row.num_params * row.num_tokens for row in rows],
        labels=[row.run or row.where for row in rows],
        unit=LossUnit.BYTE if per_byte and bytes_per_token is None else LossUnit.TOKEN,
    )
    return ReadRuns(table=table, notes=tuple(notes))


def _shortened(texts: Sequence[str], rest: str) -> list[str]:
    more = len(texts) - MAX_PROBLEMS
    return [*texts[:MAX_PROBLEMS], f"and {more} {rest}"] if more > 0 else list(texts)


def _places(left_out: Sequence[str]) -> list[str]:
    return _shortened([text.partition(";")[0] for text in left_out], "more")


def _duplicates(rows: Sequence[Row]) -> Iterator[str]:
    """Yield every row that is there twice and would count twice; reruns differ in a name, a seed or a place."""
    seen: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = (row.num_params, row.num_tokens, row.loss, row.run, row.others)
        if key in seen:
            yield (
                f"{seen[key].where} and {row.where} are the same run (N, D and loss are equal); keep one, or add a "
                "column that tells reruns apart, such as seed"
            )
        seen.setdefault(key, row)


def _bytes_problems(rows: Sequence[Row]) -> Iterator[str]:
    """Yield rows whose bytes are unknown."""
    without = [row.where for row in rows if row.bytes_per_token is None]
    if without:
        yield (
            f"bytes_per_token is missing in {len(without)} of {len(rows)} runs ({without[0]} first), and `unit=byte` "
            "needs it: the UTF-8 bytes of the held-out text over its tokens"
        )


def _rescaled(row: Row, bytes_per_token: float) -> Row:
    """Return a run as it would be with a tokenizer of so many bytes per token, 1 for bytes themselves.

    The loss of a text is the same sum of nats however it is cut into tokens, and D the same text.
    """
    own = row.bytes_per_token
    assert own is not None
    return replace(
        row,
        loss=row.loss * bytes_per_token / own,
        num_tokens=row.num_tokens * (row.train_bytes_per_token or own) / bytes_per_token,
        flops=None,
    )
