"""Runs read back from MLflow: the input of `chinchilla-ds fit mlflow:EXPERIMENT`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chinchilla_ds.errors import ChinchillaError, DataError, did_you_mean
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


def _search(client: "MlflowClient", *, experiment_id: str) -> "Iterator[Run]":
    """Yield the finished runs, page by page."""
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            filter_string="attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
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
    )


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
