"""Where a run is kept in MLflow. Can be created and printed without MLflow."""

import os
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.tracking.mlflow_database import sqlite_path, sqlite_uri
from chinchilla_ds.tracking.record import RunRecord
from chinchilla_ds.tracking.redaction import MASK, public_uri, uri_problem

DEFAULT_EXPERIMENT = "chinchilla-ds"


@dataclass(frozen=True, kw_only=True)
class MlflowDestination:
    """A tracking server or database, an experiment and the run's name."""

    tracking_uri: str = field(repr=False)
    """May contain a password: printed only as `short_uri`."""
    run_name: str
    experiment: str = DEFAULT_EXPERIMENT
    artifact_location: str | None = None
    """URI of a new experiment's artifacts; None leaves it to the tracking server."""

    @classmethod
    def resolve(
        cls, *, output: Path, run_name: str, tracking_uri: str | None = None, record: RunRecord | None = None
    ) -> "MlflowDestination":
        """Return the destination by MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, or an SQLite file in `output`.

        Args:
            output: Holds the SQLite file.
            run_name: The run's name.
            tracking_uri: Replaces MLFLOW_TRACKING_URI.
            record: Record of a run that was tracked before; its place is the default.

        Raises:
            TrackingError: the record's URI had a secret, which is not stored.
        """
        record = record or RunRecord.new()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or record.experiment or DEFAULT_EXPERIMENT
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or record.tracking_uri
        if uri == record.tracking_uri and MASK in uri:
            raise TrackingError(
                f"the run {run_name} was tracked at {uri}, whose secret part is not stored: set "
                "MLFLOW_TRACKING_URI, or name a place by `tracking_uri`"
            )
        if uri:
            return cls(tracking_uri=uri, run_name=run_name, experiment=experiment)
        folder = output.resolve()
        return cls(
            tracking_uri=sqlite_uri(folder / "mlflow.db"),
            run_name=run_name,
            experiment=experiment,
            artifact_location=(folder / "mlartifacts").as_uri(),
        )

    def noted_in(self, record: RunRecord) -> RunRecord:
        """Return the record with the store that the user named."""
        path = sqlite_path(self.tracking_uri)
        named = public_uri(self.tracking_uri) if path is None else sqlite_uri(path.absolute())
        if self.artifact_location is not None:
            named = ""
        return replace(record, tracking_uri=named, experiment=self.experiment)

    @property
    def ui_command(self) -> str:
        """The shell command that opens the UI, or the address to open if a server already runs."""
        if self.tracking_uri.startswith(("http://", "https://")):
            return f"open {self.short_uri} in a browser"
        if public_uri(self.tracking_uri) != self.tracking_uri:
            return 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'
        return f"mlflow ui --backend-store-uri {shlex.quote(self.short_uri)}"

    @property
    def short_uri(self) -> str:
        """The tracking URI to print: without a password, an SQLite path under the working directory made relative."""
        path = sqlite_path(self.tracking_uri)
        if path is not None and path.is_relative_to(Path.cwd()):
            return sqlite_uri(path.relative_to(Path.cwd()))
        return public_uri(self.tracking_uri)


def check_uri(tracking_uri: str, /) -> None:
    """Check that no part of a tracking URI would be parsed as another.

    Raises:
        TrackingError: it is not a valid address.
    """
    if problem := uri_problem(tracking_uri):
        raise TrackingError(f"the tracking URI {public_uri(tracking_uri)} is not an address: {problem}")
