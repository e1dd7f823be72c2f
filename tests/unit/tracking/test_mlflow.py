import logging
import shutil
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.jsonl import jsonl_tracker
from chinchilla_ds.tracking.mlflow import mlflow_tracker
from chinchilla_ds.tracking.mlflow_session import mlflow_session
from chinchilla_ds.tracking.tracker import CompositeTracker, MetricRecord, RunStatus
from tests.unit.tracking.recorded import Recorded, pairs_of, rows, runs_in, values_in_file, values_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with no run in it."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with mlflow_session(f"sqlite:///{path}"):
        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of places that do not say
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


@pytest.fixture
def run(tmp_path: Path, template: Path) -> Recorded:
    shutil.copy(template, tmp_path / "mlflow.db")
    return Recorded(tmp_path)


def only_run(run: Recorded) -> str:
    [(run_id, _)] = runs_in(run.database, "tiny")
    return run_id


def test_what_is_logged_can_be_read_back(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By way of the process, on a fresh folder."""
    folder = tmp_path / "tiny"
    destination = MlflowDestination.resolve(output=tmp_path, run_name="tiny")
    tracker = CompositeTracker(
        [
            jsonl_tracker(run_folder=folder),
            mlflow_tracker(destination=destination, run_folder=folder, close_timeout_s=240),
        ]
    )
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "pieces.model").write_text("x")
    (folder / "plan.json").write_text("{}")
    tracker.log_params({"shape.num_layers": 4, **{f"p{i}": i for i in range(150)}})
    for step in range(1, 601):  # two metrics each: more than one request holds
        tracker.log_metrics({"train/loss": 5.0 / step, "flops": 1e9 * step}, step=step)
    tracker.log_metrics({"held_out/loss": float("nan"), "grad_norm": float("inf")}, step=600)
    tracker.log_artifact(folder / "plan.json")
    tracker.log_artifact(folder / "tokenizer")
    tracker.close(RunStatus.FINISHED)
    assert capfd.readouterr() == ("", "")  # no migration log
    assert caplog.messages == []

    client = MlflowClient(tracking_uri=destination.tracking_uri)
    experiment = client.get_experiment_by_name("chinchilla-ds")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 5.0 / step) for step in range(1, 601)]
    assert run.data.metrics["flops"] == 6e11
    assert set(values_of(tmp_path / "mlflow.db", run.info.run_id)) == values_in_file(folder / "metrics.jsonl")
    assert run.data.params["shape.num_layers"] == "4"
    assert len(run.data.params) == 151
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts").as_uri())
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"plan.json", "tokenizer"}
    assert (folder / "mlflow_run_id").read_text() == f"{run.info.run_id}\n"


def test_a_server_that_is_down_costs_two_lines_and_no_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """By way of the process, which tries it twice: while the run goes on, and at its end."""
    folder = tmp_path / "tiny"
    uri = "http://me:hid%2Fden@127.0.0.1:9/?token=veiled"
    destination = MlflowDestination.resolve(output=tmp_path, run_name="tiny", tracking_uri=uri)
    caplog.set_level(logging.DEBUG)
    file, follower = jsonl_tracker(run_folder=folder), mlflow_tracker(destination=destination, run_folder=folder)
    file.log_metrics({"train/loss": 5.0}, step=1)
    while not any("will be retried" in message for message in caplog.messages):
        time.sleep(0.01)
    for tracker in (file, follower):
        tracker.close(RunStatus.FINISHED)
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(
        "MLflow at http://***@127.0.0.1:9/?*** cannot be written and will be retried, "
    )
    assert caplog.messages[1].startswith("MLflow at http://***@127.0.0.1:9/?*** lacks what this run has logged: ")
    assert caplog.messages[1].endswith("; `chinchilla-ds track tiny` brings it up to date")
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    for text in (caplog.text, *capfd.readouterr(), written, repr(destination)):
        assert not any(secret in text for secret in ("hid%2Fden", "hid/den", "veiled"))


# ---- a run that is continued -----------------------------------------------------------------------------------------


def test_a_run_that_is_continued_goes_on_in_the_same_mlflow_run(run: Recorded) -> None:
    run.write(range(1, 5))
    assert run.mirrored(RunStatus.KILLED) is None
    first = only_run(run)
    assert runs_in(run.database, "tiny") == [(first, "KILLED")]
    run.start()
    run.backend.log_params({"layout.zero_stage": 3, "new": 1})
    run.write(range(5, 8))
    assert run.mirrored() is None
    assert runs_in(run.database, "tiny") == [(first, "RUNNING")]
    assert pairs_of(run.database, "params", first) == {"shape.num_layers": "4", "layout.zero_stage": "1", "new": "1"}
    assert pairs_of(run.database, "tags", first)["continued.layout.zero_stage"] == "3", "the first value stays"
    assert sorted(values_of(run.database, first)) == sorted(values_in_file(run.metrics))


def test_the_mlflow_run_of_an_earlier_version_is_taken_over(run: Recorded) -> None:
    """It has no tag, and is named in the run's folder alone."""
    client = MlflowClient(tracking_uri=run.destination.tracking_uri)
    old = client.create_run(client.create_experiment("chinchilla-ds"), run_name="tiny").info.run_id
    client.log_metric(old, "train/loss", 10.0, step=1)
    (run.folder / "mlflow_run_id").write_text(f"{old}\n")
    run.write(range(1, 4))
    assert run.mirrored() is None
    assert only_run(run) == old
    assert [value for value in values_of(run.database, old) if value[:2] == ("train/loss", 1)] == [
        ("train/loss", 1, 10.0)
    ]


@pytest.mark.parametrize("content", ["no such run", "0" * 32, "\0" * 40, "../../x"])
def test_a_run_id_that_means_nothing_is_passed_over(content: str, run: Recorded) -> None:
    (run.folder / "mlflow_run_id").write_text(content)
    run.write([1])
    assert run.mirrored() is None
    assert (run.folder / "mlflow_run_id").read_text().strip() == only_run(run)


def test_steps_that_are_taken_again_with_the_same_loss_stay_in_the_run(run: Recorded) -> None:
    """Killed at step 9, gone on from step 5; what was measured, such as the speed, may differ."""
    run.write(range(1, 10))
    assert run.mirrored() is None
    first = only_run(run)
    run.start()
    assert run.mirrored() is None, "before the first step the old lines are there"
    for step in range(6, 12):
        metrics = {"train/loss": 10.0 / step, "tokens_per_s": step + 0.5}
        run.backend.write([MetricRecord(metrics=metrics, step=step, time_s=2e9 + step)])
        assert run.mirrored() is None
    assert run.mirrored(RunStatus.FINISHED) is None
    assert runs_in(run.database, "tiny") == [(first, "FINISHED")]
    losses = [value for value in values_of(run.database, first) if value[0] == "train/loss"]
    assert sorted(losses) == [("train/loss", step, 10.0 / step) for step in range(1, 12)], "each stands there once"
    assert values_in_file(run.metrics) <= set(values_of(run.database, first))


@pytest.mark.parametrize("differs_at", [6, 8])
def test_a_run_that_goes_another_way_gets_a_new_mlflow_run_at_that_step(differs_at: int, run: Recorded) -> None:
    run.write(range(1, 10))
    assert run.mirrored() is None
    first = only_run(run)
    client = MlflowClient(tracking_uri=run.destination.tracking_uri)
    client.set_tag(first, "mlflow.note.content", "look at step 3")
    client.set_tag(first, "team", "ours")
    run.start()
    for step in range(6, 9):
        assert only_run(run) == first
        run.write([step], loss=3.5 if step == differs_at else None)
        assert run.mirrored() is None
        if step == differs_at:
            break
    second = only_run(run)
    assert second != first
    assert sorted(values_of(run.database, second)) == sorted(values_in_file(run.metrics)), "the final truth"
    tags = pairs_of(run.database, "tags", second)
    assert (tags["mlflow.note.content"], tags["team"]) == ("look at step 3", "ours")
    assert pairs_of(run.database, "params", second) == pairs_of(run.database, "params", first)
    assert rows(run.database, "SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", first) == [("deleted",)]
    assert [note.split(":")[0] for note in run.mirror.notes] == ["the run went back to a checkpoint and diverged"]

    run.start()
    assert run.mirrored(RunStatus.FINISHED) is None
    assert runs_in(run.database, "tiny") == [(second, "FINISHED")], "the one in the trash is not found again"


def test_a_rewind_within_one_process_shows_both_ways(run: Recorded) -> None:
    """What was seen of a spike stays, in metrics.jsonl and in MLflow."""
    run.write([1, 2, 3])
    assert run.mirrored() is None
    first = only_run(run)
    run.write([2, 3, 4], loss=1.5)
    assert run.mirrored(RunStatus.FINISHED) is None
    assert only_run(run) == first
    assert sorted(values_of(run.database, first)) == sorted(values_in_file(run.metrics))


def test_a_damaged_file_takes_nothing_from_mlflow(run: Recorded) -> None:
    """Lines that a power cut took are in MLflow still, and no sign of another way."""
    run.write(range(1, 10))
    assert run.mirrored() is None
    first, before = only_run(run), set(values_of(run.database, only_run(run)))
    run.damage(4, bytes(100) + b"\n")
    run.damage(9, bytes(100))
    run.start()
    assert run.mirrored(None) is None
    assert runs_in(run.database, "tiny") == [(first, "FAILED")]
    assert set(values_of(run.database, first)) == before


def test_a_database_that_is_deleted_while_the_run_goes_on_is_made_again(run: Recorded, template: Path) -> None:
    run.write([1, 2])
    assert run.mirrored() is None
    run.database.unlink()
    shutil.copy(template, run.database)
    run.write([3])
    assert run.mirrored() is not None, "the run is not there any more"
    assert run.mirrored(RunStatus.FINISHED) is None
    assert sorted(values_of(run.database, only_run(run))) == sorted(values_in_file(run.metrics))


def test_a_process_without_a_status_leaves_the_one_that_is_known(run: Recorded) -> None:
    run.write([1])
    assert run.mirrored(RunStatus.KILLED) is None
    assert run.mirrored(None) is None
    assert runs_in(run.database, "tiny")[0][1] == "KILLED"
