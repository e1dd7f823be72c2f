import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.tracking.destination import MlflowDestination, check_uri
from chinchilla_ds.tracking.mlflow_database import sqlite_path


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def test_the_default_is_an_sqlite_file_in_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    destination = MlflowDestination.resolve(output=Path("runs"), run_name="tiny")
    assert destination.tracking_uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert destination.artifact_location == (tmp_path / "runs" / "mlartifacts").as_uri()
    assert destination.experiment == "chinchilla-ds"
    assert destination.ui_command == "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"


@pytest.mark.parametrize("name", ["what?", "50%", "a%20b", "a#b", "my runs"])
def test_any_output_folder_holds_its_database(tmp_path: Path, name: str) -> None:
    destination = MlflowDestination.resolve(output=tmp_path / name, run_name="tiny")
    database = tmp_path / name / "mlflow.db"
    assert make_url(destination.tracking_uri).database == str(database), "as MLflow's SQLAlchemy reads it"
    assert sqlite_path(destination.tracking_uri) == database


def test_a_path_elsewhere_stays_absolute_and_is_quoted(tmp_path: Path) -> None:
    destination = MlflowDestination.resolve(output=tmp_path / "my runs", run_name="tiny")
    assert destination.ui_command == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs/mlflow.db'"


def test_the_environment_chooses_server_and_experiment_and_a_flag_goes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    destination = MlflowDestination.resolve(output=Path("runs"), run_name="tiny")
    assert (destination.tracking_uri, destination.experiment) == ("http://mlflow.example:5000", "ours")
    assert destination.artifact_location is None
    assert destination.ui_command == "open http://mlflow.example:5000 in a browser"
    named = MlflowDestination.resolve(output=Path("runs"), run_name="tiny", tracking_uri="http://other")
    assert named.tracking_uri == "http://other"


@pytest.mark.parametrize(
    ("uri", "shown", "command"),
    [
        (
            "postgresql://me:hidden@db/mlflow",
            "postgresql://***@db/mlflow",
            'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"',
        ),
        (
            "postgresql://db/mlflow?password=hidden",
            "postgresql://db/mlflow?***",
            'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"',
        ),
        ("http://me:hi/dden@host", "http://***", "open http://*** in a browser"),
    ],
)
def test_a_password_is_not_printed(uri: str, shown: str, command: str) -> None:
    destination = MlflowDestination.resolve(output=Path("runs"), run_name="tiny", tracking_uri=uri)
    assert destination.short_uri == shown
    assert destination.ui_command == command
    assert "dden" not in repr(destination)


def test_an_address_whose_password_would_be_taken_for_a_port_is_refused() -> None:
    check_uri("http://me:hidden@host")
    with pytest.raises(
        TrackingError, match=r"^the tracking URI http://\*\*\* is not an address: an @ follows the host"
    ):
        check_uri("http://me:hid/den@host")


def test_naming_a_destination_does_not_import_mlflow() -> None:
    code = "import sys; from chinchilla_ds.tracking import mlflow, mlflow_runs; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
