"""The runs that `chinchilla-ds fit` reads: a table in a file, or an MLflow experiment."""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.budget.laws.fitting.columns import parse_columns
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.cli.arguments import choice, flag, quantity
from chinchilla_ds.errors import ConfigError

if TYPE_CHECKING:
    from chinchilla_ds.budget.laws.fitting.read import ReadRuns, Row
    from chinchilla_ds.tracking.mlflow_runs import LoggedRun

MLFLOW_PREFIX = "mlflow:"
DEFAULT_DATABASE = Path("runs/mlflow.db")
"""Where training keeps its runs by default."""
_PER_TOKEN_ONLY = ("flops", "approach", "picture")
"""Flags about compute, 6 N D with D in tokens."""


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs are read, and how."""
    text = (
        "table of runs (CSV, TSV, JSON, JSONL, Parquet) with the columns num_params (or N), num_tokens (or D), loss, "
        "[flops (or C)], [run], or names like these; or mlflow:EXPERIMENT"
    )
    parser.add_argument("runs", metavar="RUNS", help=text)
    text = "columns under other names, such as loss=Loss,params=N_total,tokens=D"
    flag(parser, "columns", _columns, text, metavar="NAME=COLUMN,...")
    text = "what losses are given in; byte converts and fits per byte, of runs whose bytes_per_token is known"
    flag(parser, "unit", choice(LossUnit), f"{text} (default token)", metavar="|".join(LossUnit))
    text = "with --unit byte: fit per token of a tokenizer with so many bytes per token, for a law to plan with"
    flag(parser, "bytes-per-token", quantity(None), text, metavar="BYTES")
    flag(parser, "tracking-uri", str, "MLflow's place (default: MLFLOW_TRACKING_URI, or runs/mlflow.db)", metavar="URI")


def _columns(text: str) -> dict[str, str]:
    try:
        return parse_columns(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run_flag_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the flags about runs that have no effect beside the others."""
    is_mlflow = _is_mlflow(str(values["runs"]))
    unit = values.get("unit", LossUnit.TOKEN)
    if "tracking_uri" in values and not is_mlflow:
        yield f"--tracking-uri has no effect on a file: drop it, or give {MLFLOW_PREFIX}EXPERIMENT"
    if "columns" in values and is_mlflow:
        yield f"--columns belongs to tables and has no effect on {MLFLOW_PREFIX}EXPERIMENT: drop it"
    if unit is LossUnit.PERPLEXITY and is_mlflow:
        yield "--unit perplexity belongs to tables: runs in MLflow have logged nats per token"
    if "bytes_per_token" in values and unit is not LossUnit.BYTE:
        yield "--bytes-per-token has no effect without --unit byte: drop it, or add that"
    if unit is LossUnit.BYTE and "bytes_per_token" not in values:
        yield from (
            f"--{name} is about compute, 6 N D with D in tokens, and --unit byte counts D in bytes: drop it, or say by "
            "--bytes-per-token for which tokenizer"
            for name in _PER_TOKEN_ONLY
            if name in values and values[name] != "3"
        )


def _is_mlflow(source: str) -> bool:
    return source.startswith(MLFLOW_PREFIX)


def source_name(source: str, /) -> str:
    """Return how results name the runs: the file without its folder, or the experiment."""
    return source if _is_mlflow(source) else Path(source).name


def read_fit_runs(values: Mapping[str, Any], /, *, min_rows: int) -> "ReadRuns":
    """Return the runs that the flags name.

    Raises:
        ConfigError: there is no MLflow store, or a column that was named.
        DataError: runs that cannot be read, or compared.
    """
    from chinchilla_ds.budget.laws.fitting.read import read_runs, table_of

    source = str(values["runs"])
    unit, bytes_per_token = values.get("unit", LossUnit.TOKEN), values.get("bytes_per_token")
    if not _is_mlflow(source):
        return read_runs(
            Path(source),
            min_rows=min_rows,
            columns=values.get("columns"),
            unit=unit,
            bytes_per_token=bytes_per_token,
        )
    rows, notes = _mlflow_rows(source, tracking_uri=values.get("tracking_uri"))
    read = table_of(rows, source=source, min_rows=min_rows, unit=unit, bytes_per_token=bytes_per_token)
    return replace(read, notes=(*notes, *read.notes))


def _mlflow_rows(source: str, *, tracking_uri: str | None) -> "tuple[list[Row], list[str]]":
    """Return the finished runs of an experiment that have logged their size, tokens and loss; and how many have not."""
    from chinchilla_ds.tracking.mlflow_runs import finished_runs

    finished = finished_runs(tracking_uri=_store(source, tracking_uri), experiment=_experiment(source))
    names = Counter(run.name for run in finished)
    rows = [row for run in finished if (row := _row(run, is_only=names[run.name] == 1)) is not None]
    without = len(finished) - len(rows)
    note = (
        f"{without} of {len(finished)} finished runs have not logged num_params, num_tokens and held_out/loss: left out"
    )
    return rows, [note] if without else []


def _experiment(source: str) -> str:
    from chinchilla_ds.tracking.destination import DEFAULT_EXPERIMENT

    return source.removeprefix(MLFLOW_PREFIX) or DEFAULT_EXPERIMENT


def _store(source: str, tracking_uri: str | None) -> str:
    """Return the MLflow store.

    Raises:
        ConfigError: none is given, and training has not made one here.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is not None:
        return uri
    if not DEFAULT_DATABASE.is_file():
        raise ConfigError(f"{source}: set MLFLOW_TRACKING_URI or --tracking-uri; there is no {DEFAULT_DATABASE}")
    return f"sqlite:///{DEFAULT_DATABASE.resolve()}"


def log_hold_out(values: Mapping[str, Any], held_out: Mapping[str, Any], /) -> None:
    """Log a hold-out, as the JSON has it, where the runs come from MLflow; otherwise nothing.

    Raises:
        OutputError: MLflow cannot be written.
    """
    source = str(values["runs"])
    if not _is_mlflow(source):
        return
    from chinchilla_ds.tracking import mlflow_runs

    names = ("median_error", "worst_error", "coverage", "times")
    mlflow_runs.log_hold_out(
        tracking_uri=_store(source, values.get("tracking_uri")),
        experiment=_experiment(source),
        metrics={f"hold_out/{name}": held_out[name] for name in names},
        table=held_out,
    )


def _row(run: "LoggedRun", *, is_only: bool) -> "Row | None":
    from chinchilla_ds.budget.laws.fitting.read import Row

    if run.num_params is None or run.num_tokens is None or run.held_out_loss is None:
        return None
    name = run.name if is_only else f"{run.name} {run.run_id}"
    return Row(
        where=f"run {name}",
        num_params=run.num_params,
        num_tokens=run.num_tokens,
        loss=run.held_out_loss,
        flops=run.flops,
        run=name,
        tokenizer_hash=run.tokenizer_hash,
        held_out_hash=run.held_out_hash,
        bytes_per_token=run.bytes_per_token,
        train_bytes_per_token=run.train_bytes_per_token,
    )
