"""Synchronises MLflow with a run's folder: during the run, at its end, or afterwards.

To plot loss against compute in MLflow's UI, set a line chart's x axis to "Metric" and pick `flops`, which is logged at
every step beside the loss.
"""

import dataclasses
import itertools
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import ChinchillaError, ConfigError, TrackingError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.structured import read_bytes
from chinchilla_ds.tracking.destination import MlflowDestination, check_uri
from chinchilla_ds.tracking.metrics_file import METRICS_FILE, MetricsReader
from chinchilla_ds.tracking.mlflow_database import ensure_database
from chinchilla_ds.tracking.mlflow_run import RunFinder
from chinchilla_ds.tracking.mlflow_session import describe, environment, mlflow_session
from chinchilla_ds.tracking.points import Columns, Point, ValuesByStep, check_same_run, gather, same_value
from chinchilla_ds.tracking.process import Endings, FollowingProcess, follow, serve
from chinchilla_ds.tracking.record import RunRecord
from chinchilla_ds.tracking.tracker import RunStatus

if TYPE_CHECKING:
    from mlflow.entities import Run

_BRANCH_METRICS = ("train/loss", "held_out/loss")
"""If MLflow has a value of these that metrics.jsonl lacks at that step, the run went back and diverged."""
_METRICS_PER_REQUEST = 1000
_PARAMS_PER_REQUEST = 100
"""Limits of MLflow's log-batch request (REST API reference, "Request Limits")."""


class MlflowMirror:
    """Synchronises one MLflow run with a run's folder; what MLflow already has is not sent again.

    MLflow keeps every point that it has received. A run that has gone back to a checkpoint and diverged
    therefore gets a new MLflow run, and the old one is moved to MLflow's trash.
    """

    def __init__(self, *, run_folder: Path, destination: MlflowDestination) -> None:
        self.run_id: str | None = None
        """MLflow's id of the run, once known."""
        self.status = ""
        """MLflow's status of the run."""
        self.experiment = ""
        """The run's experiment, which may differ from the destination's: a run stays where it started."""
        self.num_sent = 0
        """Number of points sent."""
        self.notes: list[str] = []
        """Messages for the user."""
        self._folder = run_folder.resolve()
        self._destination = destination
        self._reader = MetricsReader(self._folder / METRICS_FILE)
        self._record: RunRecord | None = None

    @property
    def skipped(self) -> list[str]:
        """Lines of metrics.jsonl that could not be read."""
        return self._reader.skipped

    def bring_up(self, status: RunStatus | None) -> None:
        """Send what MLflow lacks. Does nothing before the run has a record.

        Args:
            status: The run's status; None: it has ended in an unknown way.

        Raises:
            Exception: whatever MLflow raises; the next call then compares everything again.
        """
        record = RunRecord.load(self._folder)
        if record is None:
            return
        try:
            if self.run_id is None:
                record = self._open(record)
            self._send_metrics(record, is_ended=status is not RunStatus.RUNNING)
            is_new, self._record = record != self._record, record
            if is_new:
                self._send_settings(record)
            self._set_status(status)
            if is_new:
                self._copy_artifacts(record)
        except BaseException:
            self.run_id = self._record = None
            raise

    def _open(self, record: RunRecord) -> RunRecord:
        from mlflow.tracking import MlflowClient

        uri = self._destination.tracking_uri
        check_uri(uri)
        ensure_database(uri, make_tables=_make_tables)
        self._client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._finder = RunFinder(
            self._client, destination=self._destination, folder=self._folder, say=self.notes.append
        )
        run, record = self._finder.find_or_make(record)
        self._take(run)
        return record

    def _take(self, run: "Run") -> None:
        """Record what MLflow has of the run; everything else will be sent."""
        self.run_id, self.status = run.info.run_id, run.info.status
        self.experiment = self._client.get_experiment(run.info.experiment_id).name
        self._params, self._tags, self._logged = dict(run.data.params), dict(run.data.tags), set(run.data.metrics)
        self._copied: set[str] = set()
        self._ahead: defaultdict[str, ValuesByStep] = defaultdict(dict)
        """MLflow's values at steps that are not in metrics.jsonl yet: the run went back, and repeats them."""
        self._reader = MetricsReader(self._folder / METRICS_FILE)
        self._record = None

    def _send_metrics(self, record: RunRecord, *, is_ended: bool) -> None:
        """Send the new lines of metrics.jsonl; if it is read from the beginning, only what MLflow lacks."""
        columns = gather(self._reader.records(is_ended=is_ended))
        known = self._ahead.__getitem__
        if self._reader.begins_anew:
            self._check_same_run(columns)
            known = self._history
        if any(_went_another_way(known(key), columns.values_by_step(key)) for key in _BRANCH_METRICS):
            assert self.run_id is not None
            self._take(self._finder.make_anew(self.run_id, record=record))
            columns, known = gather(self._reader.records(is_ended=is_ended)), self._history
        self._send(columns, known=known)

    def _check_same_run(self, columns: Columns) -> None:
        try:
            content = read_bytes(self._folder / "plan.json", what="plan")
            plan = RunPlan.from_json(content.decode("utf-8", "replace"))
        except ConfigError:  # no plan to compare with
            return
        check_same_run(columns, plan=plan)

    def _history(self, key: str) -> ValuesByStep:
        """Return MLflow's values of a metric."""
        values: ValuesByStep = {}
        for metric in self._client.get_metric_history(self.run_id, key) if key in self._logged else ():
            values.setdefault(metric.step, set()).add(same_value(metric.value))
        return values

    def _send(self, columns: Columns, *, known: Callable[[str], ValuesByStep]) -> None:
        """Send the points that are not known."""
        from mlflow.entities import Metric

        for chunk in _chunks(self._missing(columns, known=known), _METRICS_PER_REQUEST):
            metrics = [Metric(key, value, time_ms, step) for key, (step, value, time_ms) in chunk]
            self._client.log_batch(self.run_id, metrics=metrics)
            self.num_sent += len(metrics)
        self._logged |= set(columns)

    def _missing(self, columns: Columns, *, known: Callable[[str], ValuesByStep]) -> Iterator[tuple[str, Point]]:
        """Yield the points that are not known, metric by metric, since a long run's history is large."""
        for key in {**dict.fromkeys(columns), **dict.fromkeys(_BRANCH_METRICS)}:
            values = known(key)
            for point in columns.points(key):
                if same_value(point[1]) not in values.get(point[0], ()):
                    yield key, point
            here = {step for step, _, _ in columns.points(key)}
            self._ahead[key] = {step: value for step, value in values.items() if step not in here}

    def _send_settings(self, record: RunRecord) -> None:
        """Send parameters that MLflow lacks; a later value becomes a tag, since MLflow keeps the first."""
        from mlflow.entities import Param

        new = [Param(key, text) for key, text in record.params.items() if key not in self._params]
        for chunk in _chunks(new, _PARAMS_PER_REQUEST):
            self._client.log_batch(self.run_id, params=chunk)
        self._params |= {param.key: param.value for param in new}
        for key, text in {**record.params, **record.continued}.items():
            tag, is_first = f"continued.{key}", text == self._params.get(key) and key not in record.continued
            if not is_first and self._tags.get(tag) != text:
                self._client.set_tag(self.run_id, tag, text)
                self._tags[tag] = text

    def _set_status(self, status: RunStatus | None) -> None:
        wanted = RunStatus.FAILED if status is None and self.status == RunStatus.RUNNING else status
        if wanted is None or wanted == self.status:
            return
        if wanted is RunStatus.RUNNING:
            self._client.update_run(self.run_id, status=wanted.value)
        else:
            metrics = self._folder / METRICS_FILE
            ended_s = metrics.stat().st_mtime if metrics.is_file() else time.time()
            self._client.set_terminated(self.run_id, status=wanted.value, end_time=round(ended_s * 1000))
        self.status = wanted.value

    def _copy_artifacts(self, record: RunRecord) -> None:
        """Copy the files that the record names, once each; a folder under its own name."""
        for name in record.artifacts:
            path = self._folder / name
            if name in self._copied:
                continue
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
            elif path.is_file():
                self._client.log_artifact(self.run_id, str(path))
            elif path.name not in {item.path for item in self._client.list_artifacts(self.run_id)}:
                self.notes.append(f"{path} is gone, and MLflow has no copy of it")
            self._copied.add(name)


def _went_another_way(known: ValuesByStep, here: ValuesByStep) -> bool:
    """Return whether a step has another value in MLflow than in metrics.jsonl."""
    return any(not known[step] <= here[step] for step in known.keys() & here.keys())


def _make_tables(tracking_uri: str) -> None:
    """Have MLflow create a database, which it does on first access."""
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri=tracking_uri).search_experiments(max_results=1)


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


# ---- entry points ----------------------------------------------------------------------------------------------------


def mlflow_tracker(
    *, destination: MlflowDestination, run_folder: Path, close_timeout_s: float = 60.0
) -> FollowingProcess:
    """Return a tracker that synchronises MLflow with the run's folder, during the run and at its end.

    Args:
        destination: the store, the experiment and the run's name.
        run_folder: the run's folder.
        close_timeout_s: how long closing waits for the store, seconds.
    """
    return FollowingProcess(
        module=__name__,
        settings={"destination": dataclasses.asdict(destination), "run_folder": str(run_folder.resolve())},
        environment=environment(destination.tracking_uri),
        name=_name(destination),
        remedy=_remedy(run_folder),
        close_timeout_s=close_timeout_s,
    )


def track(*, destination: MlflowDestination, run_folder: Path, status: RunStatus | None) -> MlflowMirror:
    """Synchronise MLflow with a run's folder, in this process; imports MLflow, which takes seconds.

    Args:
        destination: the store, the experiment and the run's name.
        run_folder: the run's folder.
        status: the run's status; None: it has ended in an unknown way.

    Raises:
        TrackingError: MLflow cannot be reached, read or written; the next call sends the rest.
    """
    mirror = MlflowMirror(run_folder=run_folder, destination=destination)
    with mlflow_session(destination.tracking_uri):
        try:
            mirror.bring_up(status)
        except ChinchillaError:
            raise
        except Exception as error:  # the boundary to an unknown store
            raise TrackingError(
                f"{_name(destination)} cannot be brought up to date: {describe(error, destination.tracking_uri)}; the "
                "same command continues where this one stopped"
            ) from None
    return mirror


def _name(destination: MlflowDestination) -> str:
    return f"MLflow at {destination.short_uri}"


def _remedy(run_folder: Path) -> str:
    """Return the command that synchronises MLflow with the run's folder."""
    folder = run_folder.resolve()
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return f"`chinchilla-ds track {shlex.quote(str(shown))}`"


def _follow(settings: Any, endings: Endings, say: Callable[[str], None]) -> bool:
    destination = MlflowDestination(**settings["destination"])
    folder = Path(settings["run_folder"])
    mirror = MlflowMirror(run_folder=folder, destination=destination)

    def bring_up(status: RunStatus | None) -> None:
        mirror.bring_up(status)
        while mirror.notes:
            say(mirror.notes.pop(0))

    with mlflow_session(destination.tracking_uri):
        return follow(
            bring_up,
            endings=endings,
            say=say,
            name=_name(destination),
            remedy=_remedy(folder),
            describe=lambda error: describe(error, destination.tracking_uri),
        )


if __name__ == "__main__":
    serve(_follow)
