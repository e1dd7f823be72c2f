import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from chinchilla_ds.tracking.jsonl import METRICS_FILE, JsonlBackend
from chinchilla_ds.tracking.mlflow import MlflowBackend, MlflowDestination, mlflow_tracker
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus


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


def test_a_path_elsewhere_stays_absolute_and_is_quoted(tmp_path: Path) -> None:
    destination = MlflowDestination.resolve(output=tmp_path / "my runs", run_name="tiny")
    assert destination.ui_command == f"mlflow ui --backend-store-uri 'sqlite:///{tmp_path}/my runs/mlflow.db'"


def test_the_environment_chooses_server_and_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    destination = MlflowDestination.resolve(output=Path("runs"), run_name="tiny")
    assert (destination.tracking_uri, destination.experiment) == ("http://mlflow.example:5000", "ours")
    assert destination.artifact_location is None
    assert destination.ui_command == "open http://mlflow.example:5000 in a browser"


def test_a_password_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@db/mlflow")
    destination = MlflowDestination.resolve(output=Path("runs"), run_name="tiny")
    assert destination.short_uri == "postgresql://***@db/mlflow"
    assert destination.ui_command == 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'


def test_naming_a_destination_does_not_import_mlflow() -> None:
    code = "import sys, chinchilla_ds.tracking.mlflow; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_what_is_logged_can_be_read_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mlflow_was_there = "mlflow" in sys.modules
    destination = MlflowDestination.resolve(output=tmp_path, run_name="tiny")
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "pieces.model").write_text("x")
    tracker = mlflow_tracker(destination=destination, close_timeout_s=240)
    tracker.log_params({"shape.num_layers": 4, **{f"p{i}": i for i in range(150)}})
    for step in range(1, 601):  # two metrics each: more than one request holds
        tracker.log_metrics({"train/loss": 5.0 / step, "flops": 1e9 * step}, step=step)
    tracker.log_metrics({"held_out/loss": float("nan")}, step=600)
    tracker.log_artifact(tmp_path / "plan.json")
    tracker.log_artifact(tmp_path / "tokenizer")
    tracker.close(RunStatus.FINISHED)
    assert capfd.readouterr() == ("", "")  # no migration log
    assert "mlflow" not in sys.modules or mlflow_was_there

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=destination.tracking_uri)
    experiment = client.get_experiment_by_name("chinchilla-ds")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 5.0 / step) for step in range(1, 601)]
    assert run.data.metrics["flops"] == 6e11
    assert run.data.params["shape.num_layers"] == "4"
    assert len(run.data.params) == 151
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"plan.json", "tokenizer"}


class FakeClient:
    """MlflowClient, as far as a run that is continued needs it; on a server that may have lost runs."""

    runs: ClassVar[dict[str, SimpleNamespace]] = {}

    def __init__(self, *, tracking_uri: str) -> None:
        pass

    def get_experiment_by_name(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(experiment_id="1")

    def create_run(self, _experiment: str, *, run_name: str, start_time: int) -> SimpleNamespace:
        run_id = f"run-{len(self.runs)}"
        info = SimpleNamespace(run_id=run_id, name=run_name, start_time=start_time, status="RUNNING")
        self.runs[run_id] = SimpleNamespace(info=info, data=SimpleNamespace(params={}), tags={})
        return self.runs[run_id]

    def update_run(self, run_id: str, *, status: str) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

        if run_id not in self.runs:
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
        self.runs[run_id].info.status = status

    def get_run(self, run_id: str) -> SimpleNamespace:
        return self.runs[run_id]

    def log_batch(self, run_id: str, *, params: Sequence[Any]) -> None:
        for param in params:
            assert param.key not in self.runs[run_id].data.params, "MLflow refuses a second value"
            self.runs[run_id].data.params[param.key] = param.value

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id].tags[key] = value

    def set_terminated(self, run_id: str, *, status: str, end_time: int) -> None:
        self.runs[run_id].info.status = status


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_a_run_that_is_continued_goes_on_in_the_same_mlflow_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.tracking

    monkeypatch.setattr(mlflow.tracking, "MlflowClient", FakeClient)
    monkeypatch.setattr(FakeClient, "runs", {})
    destination = MlflowDestination.resolve(output=tmp_path, run_name="tiny", run_folder=tmp_path)
    first = MlflowBackend(destination=destination, started_s=1.0)
    first.log_params({"shape.num_layers": 4, "layout.zero_stage": 1})
    first.close(RunStatus.KILLED)
    assert (tmp_path / "mlflow_run_id").read_text() == f"{first.run_id}\n"

    again = MlflowBackend(destination=destination, started_s=2.0)
    assert again.run_id == first.run_id
    run = FakeClient.runs[first.run_id]
    assert run.info.status == "RUNNING"
    again.log_params({"shape.num_layers": 4, "layout.zero_stage": 3, "new": 1})
    assert run.data.params == {"shape.num_layers": "4", "layout.zero_stage": "1", "new": "1"}
    assert run.tags == {"continued.layout.zero_stage": "3"}, "the first value stays"

    FakeClient.runs.clear()
    lost = MlflowBackend(destination=destination, started_s=3.0)
    assert list(FakeClient.runs) == [lost.run_id], "a server that has lost the run gets a new one"

    apart = dataclasses.replace(destination, run_id_file=None)
    assert MlflowBackend(destination=apart, started_s=4.0).run_id != lost.run_id, "control: without the file"


@pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs
def test_a_run_that_was_killed_takes_up_what_it_had_not_sent(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    def moment(step: int, **metrics: float) -> MetricRecord:
        return MetricRecord(metrics=metrics, step=step, time_s=1000.0 + step)

    written = [
        moment(1, **{"train/loss": 6.0, "flops": 10.0}),
        moment(2, **{"train/loss": 5.0, "flops": 20.0}),
        moment(2, **{"held_out/loss": 5.5}),
        moment(3, **{"train/loss": 4.0, "flops": 30.0}),
        moment(7, **{"train/loss": 3.0, "flops": 70.0}),  # of the process that goes on, and comes from it
    ]
    file = JsonlBackend(path=tmp_path / METRICS_FILE)
    destination = MlflowDestination.resolve(output=tmp_path, run_name="tiny", run_folder=tmp_path)
    killed = MlflowBackend(destination=destination, started_s=1.0)
    file.write(written)
    file.close(RunStatus.FAILED)
    killed.write(written[:1])
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 4, "time": 1004.0, "train/lo')

    again = MlflowBackend(destination=destination, started_s=1006.5)
    client = MlflowClient(tracking_uri=destination.tracking_uri)

    def history(name: str) -> list[tuple[int, float, int]]:
        return [
            (metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(again.run_id, name)
        ]

    assert history("train/loss") == [(1, 6.0, 1001000), (2, 5.0, 1002000), (3, 4.0, 1003000)]
    assert [value for _, value, _ in history("flops")] == [10.0, 20.0, 30.0]
    assert history("held_out/loss") == [(2, 5.5, 1002000)]
