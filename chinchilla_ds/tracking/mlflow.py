"""MLflow: the only module that imports it. Training writes through a process of its own (see `tracking.process`).

To plot loss against compute in MLflow's UI, set a line chart's x axis to "Metric" and pick `flops`, which is logged at
every step beside the loss.
"""

import dataclasses
import logging
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import DataError, did_you_mean
from chinchilla_ds.tracking.background import BackgroundTracker
from chinchilla_ds.tracking.jsonl import METRICS_FILE, read_metrics
from chinchilla_ds.tracking.process import ProcessBackend, serve_backend
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

DEFAULT_EXPERIMENT = "chinchilla-ds"
RUN_ID_FILE = "mlflow_run_id"

_ONE_OF_EACH_MOMENT = ("train/loss", "held_out/loss")
"""Every step that was taken logs the one, every evaluation the other."""
_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
"""Limits of MLflow's log-batch request (REST API reference, "Request Limits")."""

_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Seven retries, MLflow's default, take four minutes to find out that no server is there.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}
"""What MLflow is told before its import, where the user has not set it."""

_PASSWORD = re.compile(r"//[^/@]*@")
"""The `user:password@` of a URI."""

_CHATTY_LOGGERS = ("mlflow.store.db.utils", "alembic")
"""They report every table of the first migration at level INFO; warnings and errors still pass."""


@dataclass(frozen=True, kw_only=True)
class MlflowDestination:
    """Where a run is kept. Needs no MLflow to be made or printed."""

    tracking_uri: str
    run_name: str
    experiment: str = DEFAULT_EXPERIMENT
    artifact_location: str | None = None
    """URI of a new experiment's artifacts; None leaves it to the tracking server."""
    run_id_file: str | None = None
    """Keeps the run's id, so that a run that is continued goes on in the same MLflow run."""

    @classmethod
    def resolve(cls, *, output: Path, run_name: str, run_folder: Path | None = None) -> "MlflowDestination":
        """Return what MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say, or an SQLite file in the output folder."""
        run_id_file = None if run_folder is None else str(run_folder.resolve() / RUN_ID_FILE)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri:
            return cls(tracking_uri=uri, run_name=run_name, experiment=experiment, run_id_file=run_id_file)
        folder = output.resolve()
        return cls(
            tracking_uri=f"sqlite:///{folder / 'mlflow.db'}",
            run_name=run_name,
            experiment=experiment,
            artifact_location=(folder / "mlartifacts").as_uri(),
            run_id_file=run_id_file,
        )

    @property
    def ui_command(self) -> str:
        """The shell command that opens the UI, or the address to open where a server runs already."""
        if self.tracking_uri.startswith(("http://", "https://")):
            return f"open {self.short_uri} in a browser"
        if _PASSWORD.search(self.tracking_uri):
            return 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
        return f"mlflow ui --backend-store-uri {shlex.quote(self.short_uri)}"

    @property
    def short_uri(self) -> str:
        """The tracking URI to print: without a password, an SQLite path under the working directory made relative."""
        path = Path(self.tracking_uri.removeprefix("sqlite:///"))
        if self.tracking_uri.startswith("sqlite:///") and path.is_relative_to(Path.cwd()):
            return f"sqlite:///{path.relative_to(Path.cwd())}"
        return _PASSWORD.sub("//***@", self.tracking_uri)


class MlflowBackend:
    """One MLflow run, written through MlflowClient; imports MLflow and migrates the database, which takes seconds."""

    def __init__(self, *, destination: MlflowDestination, started_s: float) -> None:
        """Make a run that began at `started_s`, seconds since the epoch."""
        from mlflow.tracking import MlflowClient

        for name in _CHATTY_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=destination.tracking_uri)
        experiment_id = _experiment_id(self._client, destination=destination)
        run = _known_run(self._client, destination=destination)
        self._known_params = {} if run is None else dict(run.data.params)
        if run is None:
            start_ms = round(started_s * 1000)
            run = self._client.create_run(experiment_id, run_name=destination.run_name, start_time=start_ms)
            if destination.run_id_file is not None:
                Path(destination.run_id_file).write_text(run.info.run_id + "\n", encoding="utf-8")
        self.run_id: str = run.info.run_id
        if destination.run_id_file is not None:
            self._take_up(Path(destination.run_id_file).with_name(METRICS_FILE), before_s=started_s)

    def _take_up(self, path: Path, *, before_s: float) -> None:
        """Write what stands in the run's metrics.jsonl and not here: a process that was killed, or a lost server.

        What is not from before `before_s` is this process's own, and comes through `write`.
        """
        if not path.is_file():
            return
        steps = {name: self._steps_of(name) for name in _ONE_OF_EACH_MOMENT}
        self.write(
            [
                record
                for record in read_metrics(path)
                if record.time_s < before_s
                and any(name in record.metrics and record.step not in known for name, known in steps.items())
            ]
        )

    def _steps_of(self, name: str) -> set[int]:
        return {metric.step for metric in self._client.get_metric_history(self.run_id, name)}

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Write metrics with as few requests as MLflow admits."""
        from mlflow.entities import Metric

        metrics = [
            Metric(key, value, round(record.time_s * 1000), record.step)
            for record in records
            for key, value in record.metrics.items()
        ]
        for start in range(0, len(metrics), _METRICS_PER_REQUEST):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _METRICS_PER_REQUEST])

    def log_params(self, params: Mapping[str, object]) -> None:
        """Write settings as text; one that a continued run changes becomes a tag, for MLflow keeps the first value."""
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in params.items() if key not in self._known_params]
        for key, value in params.items():
            if self._known_params.get(key, str(value)) != str(value):
                self._client.set_tag(self.run_id, f"continued.{key}", str(value))
        for start in range(0, len(entries), _PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=entries[start : start + _PARAMS_PER_REQUEST])

    def log_artifact(self, path: Path) -> None:
        """Copy a file, or a folder under its own name."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def close(self, status: RunStatus) -> None:
        """Mark the run finished or failed."""
        self._client.set_terminated(self.run_id, status=status.value, end_time=round(time.time() * 1000))


def _known_run(client: "MlflowClient", *, destination: MlflowDestination) -> "Run | None":
    """Return the run that is continued, set running again; None where there is none, or the server has lost it."""
    from mlflow.exceptions import MlflowException

    file = None if destination.run_id_file is None else Path(destination.run_id_file)
    if file is None or not file.is_file():
        return None
    run_id = file.read_text(encoding="utf-8").strip()
    try:
        client.update_run(run_id, status="RUNNING")
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def mlflow_tracker(*, destination: MlflowDestination, close_timeout_s: float = 60.0) -> BackgroundTracker:
    """Return a tracker that keeps the run in MLflow; import, database migration and writing cost no training time."""
    settings = {"destination": dataclasses.asdict(destination), "started_s": time.time()}
    return BackgroundTracker(
        lambda: ProcessBackend(module=__name__, settings=settings, environment=_ENVIRONMENT),
        name="MLflow",
        close_timeout_s=close_timeout_s,
    )


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a finished run has logged of itself; None where it has not."""

    run_id: str
    name: str
    num_params: float | None
    num_tokens: float | None
    held_out_loss: float | None
    """The last one, nats per token."""
    flops: float | None
    """Model FLOPs spent, by the exact count of its decoder."""


def finished_runs(*, tracking_uri: str, experiment: str) -> tuple[LoggedRun, ...]:
    """Return the runs of an experiment that reached their end, oldest first; imports MLflow, which takes seconds.

    Raises:
        DataError: no such experiment, or MLflow cannot read the place.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    where = _PASSWORD.sub("//***@", tracking_uri)
    if tracking_uri.startswith("sqlite:///") and not Path(tracking_uri.removeprefix("sqlite:///")).is_file():
        raise DataError(f"MLflow at {where} cannot be read: there is no such file")  # MLflow would make it
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = [entry.name for entry in client.search_experiments()]
            raise DataError(
                f"MLflow at {where} has no experiment {experiment!r}; it has {', '.join(names) or 'none'}"
                f"{did_you_mean(experiment, names)}"
            )
        return tuple(_logged_run(run) for run in _search(client, experiment_id=found.experiment_id))
    except MlflowException as error:
        raise DataError(
            f"MLflow at {where} cannot be read: {_PASSWORD.sub('//***@', str(error)).splitlines()[0]}"
        ) from None


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


def _experiment_id(client: "MlflowClient", *, destination: MlflowDestination) -> str:
    """Return the experiment's id, made where it does not exist; another run may make it at the same moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(destination.experiment)
    if found is None:
        try:
            return str(
                client.create_experiment(destination.experiment, artifact_location=destination.artifact_location)
            )
        except MlflowException as error:
            found = client.get_experiment_by_name(destination.experiment)
            if found is None:
                raise error
    return str(found.experiment_id)


def _open(settings: dict[str, Any]) -> MlflowBackend:
    return MlflowBackend(destination=MlflowDestination(**settings["destination"]), started_s=settings["started_s"])


if __name__ == "__main__":
    serve_backend(_open)
