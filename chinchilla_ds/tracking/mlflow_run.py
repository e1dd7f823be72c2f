"""The MLflow run of a run: found by its tag, on any server, restored from the trash, or created."""

import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.files import write_durably
from chinchilla_ds.structured import read_bytes
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.record import RunRecord

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

RUN_ID_FILE = "mlflow_run_id"
"""File in the run's folder with the id of its MLflow run where it was tracked last."""
ID_TAG, FOLDER_TAG, REPLACED_TAG = "chinchilla_ds.id", "chinchilla_ds.run_folder", "chinchilla_ds.replaced"
_OWN_TAGS = ("mlflow.", "chinchilla_ds.", "continued.")
_NOTE_TAG = "mlflow.note.content"
"""The user's notes about the run in MLflow's UI."""
_RUN_ID = re.compile(r"[A-Za-z0-9][\w-]{0,255}")


class RunFinder:
    """Finds or creates the MLflow run of a run's folder."""

    def __init__(
        self, client: "MlflowClient", *, destination: MlflowDestination, folder: Path, say: Callable[[str], None]
    ) -> None:
        """Search one store.

        Args:
            client: The store's client.
            destination: Names the experiment and the run.
            folder: The run's folder.
            say: Receives messages for the user.
        """
        self._client, self._destination, self._folder, self._say = client, destination, folder, say

    def find_or_make(self, record: RunRecord) -> "tuple[Run, RunRecord]":
        """Return the run, and the record, which is a new one if the folder is a copy of another run's."""
        with _alone(self._folder):
            experiment_id = self._experiment_id()
            run = self._last_tracked(record) or self._tagged(record, experiment_id=experiment_id)
            if run is not None and self._is_copy_of(run, record=record):
                record = dataclasses.replace(record, id=RunRecord.new().id)
                record.save(self._folder)
                run = None
            if run is None:
                run = self._make(experiment_id, record=record)
            else:
                self._revive(run)
            self._mark(run, record=record)
            return run, record

    def make_anew(self, run_id: str, *, record: RunRecord) -> "Run":
        """Move a run to MLflow's trash and return a replacement with the user's notes."""
        old = self._client.get_run(run_id)
        self._client.set_tag(run_id, REPLACED_TAG, "the run went back to a checkpoint, and diverged")
        run = self._make(old.info.experiment_id, record=record)
        self._mark(run, record=record)
        for tag, value in old.data.tags.items():
            if tag == _NOTE_TAG or not tag.startswith(_OWN_TAGS):
                self._client.set_tag(run.info.run_id, tag, value)
        self._client.delete_run(run_id)
        self._say(
            f"the run went back to a checkpoint and diverged: it is now the MLflow run {run.info.run_id}, and "
            f"{run_id}, which shows the abandoned steps, is in MLflow's trash"
        )
        return run

    def _experiment_id(self) -> str:
        """Return the experiment's id, created if it does not exist; another run may create it at the same moment."""
        from mlflow.exceptions import MlflowException

        name = self._destination.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                place = self._destination.artifact_location
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException as error:
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise error
        self._restore(experiment)
        return str(experiment.experiment_id)

    def _last_tracked(self, record: RunRecord) -> "Run | None":
        """Return the run that the run's folder names, if it is this record's, or predates records."""
        from mlflow.exceptions import MlflowException

        path = self._folder / RUN_ID_FILE
        if not path.is_file():
            return None
        run_id = read_bytes(path, what="run id", error=TrackingError, max_bytes=4096).decode("utf-8", "replace").strip()
        if not _RUN_ID.fullmatch(run_id):
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.data.tags.get(ID_TAG, record.id) == record.id and _is_valid(run) else None

    def _tagged(self, record: RunRecord, *, experiment_id: str) -> "Run | None":
        from mlflow.entities import ViewType

        runs = self._client.search_runs(
            [experiment_id],
            filter_string=f"tags.`{ID_TAG}` = '{record.id}'",
            run_view_type=ViewType.ALL,
            order_by=["attributes.start_time DESC"],
        )
        return next((run for run in runs if _is_valid(run)), None)

    def _is_copy_of(self, run: "Run", *, record: RunRecord) -> bool:
        """Return whether the run belongs to another folder that still exists and of which this one is a copy."""
        folder = Path(run.data.tags.get(FOLDER_TAG, self._folder))
        try:
            if folder.samefile(self._folder):
                return False
            other = RunRecord.load(folder)
        except (OSError, TrackingError):
            return False
        return other is not None and other.id == record.id

    def _make(self, experiment_id: str, *, record: RunRecord) -> "Run":
        return self._client.create_run(
            experiment_id,
            run_name=self._destination.run_name,
            start_time=round(record.started_s * 1000),
            tags={ID_TAG: record.id, FOLDER_TAG: str(self._folder)},
        )

    def _revive(self, run: "Run") -> None:
        """Restore a run, and its experiment, from MLflow's trash."""
        self._restore(self._client.get_experiment(run.info.experiment_id))
        if run.info.lifecycle_stage == "deleted":
            self._client.restore_run(run.info.run_id)
            self._say(f"the MLflow run {run.info.run_id} was deleted and has been restored")

    def _restore(self, experiment: Any) -> None:
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
            self._say(f"the MLflow experiment {experiment.name!r} was deleted and has been restored")

    def _mark(self, run: "Run", *, record: RunRecord) -> None:
        """Tag the run as this folder's, and store its id in the folder."""
        for tag, value in ((ID_TAG, record.id), (FOLDER_TAG, str(self._folder))):
            if run.data.tags.get(tag) != value:
                self._client.set_tag(run.info.run_id, tag, value)
        with contextlib.suppress(OSError):  # a folder that cannot be written to: the tag finds the run
            write_durably(self._folder / RUN_ID_FILE, f"{run.info.run_id}\n")


def _is_valid(run: "Run") -> bool:
    return REPLACED_TAG not in run.data.tags


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the run's folder while its MLflow run is searched for and created, so that only one is created."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
