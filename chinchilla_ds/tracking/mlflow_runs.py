"""Runs read back from MLflow: the input of `chinchilla-ds fit mlflow:EXPERIMENT`, and what that logs beside them.

The names of the parameters and metrics that are read are in docs/tracking.md.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import ChinchillaError, DataError, OutputError, did_you_mean
from chinchilla_ds.tracking.destination import check_uri
from chinchilla_ds.tracking.mlflow_database import sqlite_path
from chinchilla_ds.tracking.mlflow_session import describe, mlflow_session
from chinchilla_ds.tracking.redaction import public_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """The values that a finished run has logged; None if missing."""

    run_id: str
    name: str
    num_params: float | None
    num_tokens: float | None
    held_out_loss: float | None
    """The last held-out loss, nats per token."""
    flops: float | None
    """Model FLOPs spent, by the exact count of its decoder."""
    tokenizer_hash: str
    held_out_hash: str
    """Both empty if missing, as in runs of earlier versions."""
    bytes_per_token: float | None
    """UTF-8 bytes per token of the held-out text; of runs of earlier versions, from their loss in bits per byte."""
    train_bytes_per_token: float | None


def finished_runs(*, tracking_uri: str, experiment: str) -> tuple[LoggedRun, ...]:
    """Return the runs of an experiment that reached their end, oldest first; imports MLflow, which takes seconds.

    Raises:
        DataError: no such experiment, or MLflow cannot read the store.
    """
    where = public_uri(tracking_uri)
    database = sqlite_path(tracking_uri)
    if database is not None and not database.is_file():
        raise DataError(f"MLflow at {where} cannot be read: there is no such file")  # MLflow would create it
    with mlflow_session(tracking_uri):
        try:
            return _finished_runs(tracking_uri, experiment=experiment)
        except ChinchillaError:
            raise
        except Exception as error:  # the boundary to an unknown store
            raise DataError(f"MLflow at {where} cannot be read: {describe(error, tracking_uri)}") from None


def _finished_runs(tracking_uri: str, *, experiment: str) -> tuple[LoggedRun, ...]:
    from mlflow.tracking import MlflowClient

    check_uri(tracking_uri)
    client = MlflowClient(tracking_uri=tracking_uri)
    logged_experiment = client.get_experiment_by_name(experiment)
    if logged_experiment is None:
        names = [entry.name for entry in client.search_experiments()]
        raise DataError(
            f"MLflow at {public_uri(tracking_uri)} has no experiment {experiment!r}; it has "
            f"{', '.join(names) or 'none'}{did_you_mean(experiment, names)}"
        )
    return tuple(_logged_run(run) for run in _search(client, experiment_id=logged_experiment.experiment_id))


FIT_TAG = "chinchilla_ds.fit"
"""Tag that marks the hold-out of a fit among training runs, so that no fit reads it."""


def log_hold_out(*, tracking_uri: str, experiment: str, metrics: Mapping[str, float], table: Mapping[str, Any]) -> None:
    """Log the hold-out of a fit into the experiment of its runs, as a run of its own named `fit`.

    Args:
        tracking_uri: the store.
        experiment: its experiment, which exists.
        metrics: numbers by name.
        table: what becomes the run's artifact hold_out.json.

    Raises:
        OutputError: MLflow cannot write to the store.
    """
    with mlflow_session(tracking_uri):
        try:
            _log_hold_out(tracking_uri, experiment, metrics, table)
        except Exception as error:  # the boundary to an unknown store
            where = public_uri(tracking_uri)
            raise OutputError(f"MLflow at {where} cannot be written: {describe(error, tracking_uri)}") from None


def _log_hold_out(tracking_uri: str, experiment: str, metrics: Mapping[str, float], table: Mapping[str, Any]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    run_id = client.create_run(experiment_id, run_name="fit", tags={FIT_TAG: "hold-out"}).info.run_id
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    client.log_dict(run_id, dict(table), "hold_out.json")
    client.set_terminated(run_id)


def _search(client: "MlflowClient", *, experiment_id: str) -> "Iterator[Run]":
    """Yield the finished training runs, page by page."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from (run for run in page if FIT_TAG not in run.data.tags)
        token = page.token
        if not token:
            return


def _logged_run(run: "Run") -> LoggedRun:
    params, metrics = run.data.params, run.data.metrics
    return LoggedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        num_params=_number(params.get("num_params")),
        num_tokens=_number(params.get("num_tokens")),
        held_out_loss=metrics.get("held_out/loss"),
        flops=metrics.get("flops"),
        tokenizer_hash=params.get("tokenizer_hash", ""),
        held_out_hash=params.get("held_out_hash", ""),
        bytes_per_token=_number(params.get("bytes_per_token")) or _bytes_per_token(metrics),
        train_bytes_per_token=_number(params.get("train_bytes_per_token")),
    )


def _bytes_per_token(metrics: Mapping[str, float]) -> float | None:
    """Return the loss per token over the loss per byte of the held-out text; None if either is missing."""
    per_token, bits_per_byte = metrics.get("held_out/loss"), metrics.get("held_out/bits_per_byte")
    if per_token is None or not bits_per_byte or not math.isfinite(bits_per_byte) or not math.isfinite(per_token):
        return None
    return per_token / (bits_per_byte * math.log(2))


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
