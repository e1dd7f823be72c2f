"""`chinchilla-ds track`: whatever has happened, MLflow then holds what the run's folder holds."""

import contextlib
import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from chinchilla_ds.cli.main import main
from chinchilla_ds.cli.track import status_of
from chinchilla_ds.runs.request import RunLock
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.tracking import mlflow_database
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.jsonl import JsonlBackend
from chinchilla_ds.tracking.mlflow import mlflow_tracker
from chinchilla_ds.tracking.mlflow_session import mlflow_session
from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus
from tests.launching import ROOT, free_port
from tests.unit.tracking.recorded import Recorded, everything, pairs_of, rows, runs_in, values_in_file, values_of

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow and its dependencies deprecate is theirs

STATES = {RunStatus.FINISHED: "finished", RunStatus.KILLED: "stopped", RunStatus.FAILED: "failed"}
DEAD_SERVER = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with no run in it, which takes a second to make."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    with mlflow_session(f"sqlite:///{path}"):
        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def output(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs go, with an MLflow database."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the artifacts of places that do not say
    (tmp_path / "runs").mkdir()
    shutil.copy(template, tmp_path / "runs" / "mlflow.db")
    return tmp_path / "runs"


def ended(run: Recorded, status: RunStatus = RunStatus.FINISHED) -> None:
    """Leave the run's folder as a run leaves it."""
    run.backend.close(status)
    (run.folder / "status.json").write_text(json.dumps({"state": STATES[status]}))


def lacks(run: Recorded) -> bool:
    """Return whether MLflow lacks anything of the run, or has another status."""
    if not rows(run.database, "SELECT name FROM sqlite_master WHERE name = 'runs'"):
        return True
    found = runs_in(run.database, run.folder.name)
    if len(found) != 1:
        return True
    [(run_id, status)] = found
    wanted = json.loads((run.folder / "tracking.json").read_text())
    tags = {f"continued.{name}": value for name, value in wanted["continued"].items()}
    copied = run.folder.parent / "mlartifacts" / run_id / "artifacts"
    return not (
        values_in_file(run.metrics) <= set(values_of(run.database, run_id))
        and wanted["params"].items() <= pairs_of(run.database, "params", run_id).items()
        and tags.items() <= pairs_of(run.database, "tags", run_id).items()
        and status == (status_of(run.folder) or status)
        and all((copied / Path(name).name).exists() for name in wanted["artifacts"])
    )


# ---- faults ----------------------------------------------------------------------------------------------------------


def server_down(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output, uri=DEAD_SERVER)
    run.write(range(1, 20))
    assert run.mirrored() is not None
    ended(run)
    assert run.mirrored(RunStatus.FINISHED) is not None
    return run


def server_dies_in_the_middle(output: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output)
    run.write(range(1, 400))
    send, calls = MlflowClient.log_batch, iter(range(1))

    def log_batch(self: MlflowClient, *args: object, **more: object) -> None:
        if next(calls, None) is None:
            raise ConnectionError("the server has gone")
        send(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", log_batch)
        assert isinstance(run.mirrored(), ConnectionError)
    [(run_id, _)] = runs_in(run.database, "tiny")
    assert 0 < len(values_of(run.database, run_id)) < len(values_in_file(run.metrics)), "control: it got a part"
    ended(run)
    return run


def database_locked_at_the_start(output: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    monkeypatch.setattr(mlflow_database, "LOCK_PATIENCE_S", 0.1)
    run = Recorded(output)
    run.write(range(1, 20))
    ended(run)
    with contextlib.closing(sqlite3.connect(run.database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in str(run.mirrored(RunStatus.FINISHED))
    return run


def database_is_read_only(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output, uri=f"sqlite:///file:{output / 'mlflow.db'}?mode=ro&uri=true")
    run.write(range(1, 20))
    ended(run)
    assert "readonly" in str(run.mirrored(RunStatus.FINISHED))
    return run


def disk_full(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output)
    assert run.mirrored() is None
    run.write(range(1, 800))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.database.stat().st_size, limit[1]))
    try:
        error = run.mirrored()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "disk" in str(error)
    ended(run)
    return run


def nul_line(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output)
    run.write(range(1, 20))
    run.backend.close(RunStatus.FAILED)
    run.damage(7, bytes(4096))  # a power cut; the line after it lies in the same block
    run.start()
    run.write(range(20, 31))
    ended(run)
    return run


def torn_last_line(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output)
    run.write(range(1, 20))
    ended(run, RunStatus.FAILED)
    run.metrics.write_bytes(run.metrics.read_bytes()[:-9])
    return run


def clock_set_back(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output)
    run.write(range(1, 10))
    run.backend.close(RunStatus.KILLED)
    run.start()
    run.write(range(10, 20), time_s=5.0)
    ended(run)
    return run


def two_runs_at_once(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    """On a fresh folder, where both make the database."""
    (output / "mlflow.db").unlink()
    runs = [Recorded(output, name=name) for name in ("other", "tiny")]
    for run in runs:
        run.write(range(1, 20))
        run.backend.close(RunStatus.FINISHED)
    code = "import sys; from chinchilla_ds.cli.main import main; sys.exit(main(['track', sys.argv[1]]))"
    at_once = [subprocess.Popen([sys.executable, "-c", code, run.folder], stdout=subprocess.DEVNULL) for run in runs]
    assert [process.wait() for process in at_once] == [0, 0]
    assert not any(lacks(run) for run in runs), "each has its run"
    (runs[1].folder / "status.json").write_text('{"state": "finished"}')
    return runs[1]


def nobody_closed_it(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = Recorded(output)
    run.write(range(1, 10))
    assert run.mirrored() is None
    run.write(range(10, 20))
    (run.folder / "status.json").write_text('{"state": "running"}')
    return run


def everything_killed(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    """SIGKILL to the run and to the process that follows it."""
    run = Recorded(output)
    run.backend.close(RunStatus.FAILED)
    code = f"""
import os, signal, time
from pathlib import Path
from chinchilla_ds.tracking.jsonl import jsonl_tracker
from chinchilla_ds.tracking.mlflow import mlflow_tracker
from tests.unit.tracking.recorded import Recorded, moment, runs_in
run = Recorded(Path({str(output)!r}))
file = jsonl_tracker(run_folder=run.folder)
follower = mlflow_tracker(destination=run.destination, run_folder=run.folder)
for step in range(1, 20):
    file.log_metrics(moment(step).metrics, step=step)
while not run.metrics.exists() or run.metrics.read_text().count("\\n") < 19 or not runs_in(run.database, "tiny"):
    time.sleep(0.01)
os.killpg(0, signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], start_new_session=True, check=False, cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    [(_, status)] = runs_in(run.database, "tiny")
    assert status == "RUNNING", "control: nobody closed it"
    (run.folder / "status.json").write_text('{"state": "running"}')
    return run


def run_deleted(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = complete(output)
    client_of(run).delete_run(run.mirror.run_id)
    return run


def experiment_deleted(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = complete(output)
    client = client_of(run)
    client.delete_experiment(client.get_experiment_by_name("chinchilla-ds").experiment_id)
    return run


def database_deleted(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    run = complete(output)
    run.database.write_bytes(b"")
    return run


def gone_another_way(output: Path, _: pytest.MonkeyPatch) -> Recorded:
    """From an earlier checkpoint, and not as far."""
    run = Recorded(output)
    run.write(range(1, 11))
    assert run.mirrored() is None
    run.backend.close(RunStatus.FAILED)
    run.start()
    run.backend.log_params({"layout.zero_stage": 3})
    run.write(range(6, 9), loss=3.25)
    ended(run, RunStatus.KILLED)
    return run


FAULTS = [
    server_down,
    pytest.param(server_dies_in_the_middle, marks=pytest.mark.slow),
    database_locked_at_the_start,
    pytest.param(database_is_read_only, marks=pytest.mark.slow),
    disk_full,
    nul_line,
    torn_last_line,
    clock_set_back,
    pytest.param(two_runs_at_once, marks=pytest.mark.slow),
    nobody_closed_it,
    pytest.param(everything_killed, marks=pytest.mark.slow),
    run_deleted,
    pytest.param(experiment_deleted, marks=pytest.mark.slow),
    database_deleted,
    gone_another_way,
]


def complete(output: Path) -> Recorded:
    run = Recorded(output)
    run.write(range(1, 20))
    ended(run)
    assert run.mirrored(RunStatus.FINISHED) is None
    assert not lacks(run), "control: without a fault it is complete"
    return run


def client_of(run: Recorded) -> MlflowClient:
    return MlflowClient(tracking_uri=run.destination.tracking_uri)


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_fault_mlflow_holds_what_the_folder_holds(
    fault: Callable[[Path, pytest.MonkeyPatch], Recorded],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = fault(output, monkeypatch)
    assert lacks(run), "control: the fault has cost something"
    assert main(["track", str(run.folder)]) == 0
    assert not lacks(run)
    [(run_id, _)] = runs_in(run.database, "tiny")
    values = values_of(run.database, run_id)
    assert len(values) == len(set(values)), "nothing stands there twice"
    assert set(values) == values_in_file(run.metrics), "nothing else stands there"

    before = everything(run.database)
    capsys.readouterr()
    assert main(["track", str(run.folder)]) == 0
    assert "sent          nothing: it has every value" in capsys.readouterr().out
    assert everything(run.database) == before, "a second time changes nothing"


# ---- what else the command meets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("runs", "holds no metrics.jsonl; name one of the runs in it, such as "),
        ("runs/none", "does not exist; name the folder of a run"),
        ("runs/tiny/samples", "holds no metrics.jsonl; name the folder of a run"),
        ("runs/tiny/plan.txt", "is a file; name the folder of a run"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(
    place: str, said: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Recorded(output)
    run.write([1])
    (run.folder / "samples").mkdir()
    assert main(["track", str(output.parent / place)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_a_server_that_is_down_is_one_line_without_the_password(
    output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Recorded(output)
    run.write([1])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden@127.0.0.1:9/?token=veiled")
    assert main(["track", str(run.folder)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: MLflow at http://***@127.0.0.1:9/?*** cannot be brought up to date: ")
    assert err.endswith(" Connection refused; the same command continues where this one stopped\n")
    assert "hidden" not in err
    assert "veiled" not in err


def test_a_run_is_brought_where_it_was_tracked(
    output: Path, capsys: pytest.CaptureFixture[str], template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = output.parent / "other.db"
    shutil.copy(template, other)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ours")
    named = MlflowDestination.resolve(output=output, run_name="tiny", tracking_uri="sqlite:///other.db")
    run = Recorded(output)
    backend = JsonlBackend(path=run.metrics, followed_by=named)
    backend.write([MetricRecord(metrics={"train/loss": 2.5}, step=1, time_s=5.0)])
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert json.loads((run.folder / "tracking.json").read_text())["tracking_uri"] == f"sqlite:///{other}", "absolute"
    assert main(["track", str(run.folder)]) == 0
    assert "in sqlite:///other.db, experiment ours\nsent          1 value that it lacked" in capsys.readouterr().out
    secret = dataclasses.replace(named, tracking_uri="http://me:hidden@host")
    JsonlBackend(path=run.metrics, followed_by=secret)
    assert "hidden" not in (run.folder / "tracking.json").read_text()
    assert main(["track", str(run.folder)]) == 2
    assert capsys.readouterr().err == (
        "error: the run tiny was tracked at http://***@host, whose secret part is not stored: set "
        "MLFLOW_TRACKING_URI, or name a place by --tracking-uri\n"
    )


def test_a_uri_in_the_wrong_place_is_not_repeated_with_its_password(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["track", "runs/tiny", "http://me:hidden@host"]) == 2
    assert capsys.readouterr().err == "error: 'http://***@host' belongs to no flag; --help lists them\n"


@pytest.mark.slow
def test_a_real_server_that_dies_and_comes_back(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By way of the process that follows the run, over HTTP."""
    with mlflow_server(output.parent) as uri:
        run = Recorded(output, uri=uri)
        follower = mlflow_tracker(destination=run.destination, run_folder=run.folder)
        run.write(range(1, 100))
        wait_until(lambda: rows(output.parent / "server.db", "SELECT * FROM metrics WHERE step = 99"))
    run.write(range(100, 200))
    run.write([200], loss=math.inf)
    ended(run)
    follower.close(RunStatus.FINISHED)
    assert main(["track", str(run.folder), "--uri", uri]) == 2
    with mlflow_server(output.parent) as uri:
        for sent in (303, 0):
            capsys.readouterr()
            assert main(["track", str(run.folder), "--uri", uri, "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["values_sent"] == sent
        [(run_id, status)] = runs_in(output.parent / "server.db", "tiny")
        assert status == "FINISHED"
        assert set(values_of(output.parent / "server.db", run_id)) == values_in_file(run.metrics)
        client = MlflowClient(tracking_uri=uri)
        assert [item.path for item in client.list_artifacts(run_id)] == ["plan.txt"]
        client.delete_run(run_id)
        client.delete_experiment(client.get_run(run_id).info.experiment_id)
        assert main(["track", str(run.folder), "--uri", uri]) == 0
        assert runs_in(output.parent / "server.db", "tiny") == [(run_id, "FINISHED")]


PORT = free_port()


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run a server, and kill it."""
    uri = f"http://127.0.0.1:{PORT}"
    place = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *place, "--port", str(PORT), "--workers", "1"]
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: server.poll() is not None or _answers(f"{uri}/health"))
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=1):
        return True
    return False


def wait_until(is_so: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 120.0
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_another_place_gets_a_run_of_its_own_and_the_first_stays_known(
    output: Path, capsys: pytest.CaptureFixture[str], template: Path
) -> None:
    run = complete(output)
    other = output.parent / "other.db"
    shutil.copy(template, other)
    for sent in (57, 0):
        assert main(["track", str(run.folder), "--uri", f"sqlite:///{other}", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["values_sent"], facts["status"], facts["experiment"]) == (sent, "FINISHED", "chinchilla-ds")
    before = everything(run.database)
    assert main(["track", str(run.folder)]) == 0
    assert everything(run.database) == before, "its run is found by its tag, not by the id of the other place"
    assert "sent          nothing" in capsys.readouterr().out


def test_a_run_from_before_records_is_adopted(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As earlier versions left it: no tracking.json, and null for every number that JSON has not."""
    folder = output / "old"
    folder.mkdir()
    plan = tiny_plan()
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "metrics.jsonl").write_text('{"step": 1, "time": 5.5, "train/loss": 2.5, "grad_norm": null}\n')
    assert main(["track", str(folder)]) == 0
    database = output / "mlflow.db"
    [(run_id, status)] = runs_in(database, "old")
    assert status == "FAILED", "nobody says how it ended"
    assert set(values_of(database, run_id)) == {("train/loss", 1, 2.5), ("grad_norm", 1, None)}
    assert pairs_of(database, "params", run_id)["num_params"] == str(plan.num_params)
    assert (output / "mlartifacts" / run_id / "artifacts" / "plan.json").is_file()
    assert rows(database, "SELECT start_time FROM runs WHERE run_uuid = ?", run_id) == [(5500,)]


def test_metrics_of_another_run_are_refused(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(output)
    (run.folder / "plan.json").write_text(tiny_plan().to_json())
    run.metrics.write_text('{"step": 2, "time": 5.5, "train/loss": 2.5, "tokens": 7}\n')
    assert main(["track", str(run.folder)]) == 2
    assert "metrics.jsonl belongs to another run: at step 2 `tokens` is 7, and by plan.json" in capsys.readouterr().err


def test_lines_that_cannot_be_read_are_named(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Recorded(output)
    run.write(range(1, 6))
    run.damage(2, bytes(512) + b"\n")
    run.damage(4, b'{"step": "four", "time": 1}\n')
    assert main(["track", str(run.folder)]) == 0
    assert (
        "metrics.jsonl: 2 lines cannot be read and are skipped: line 2 holds 512 NUL bytes; line 4 has the step "
        "'four', which is not a number of steps"
    ) in capsys.readouterr().out


def test_a_status_that_cannot_be_read_is_said_and_the_values_are_sent(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Recorded(output)
    run.write([1])
    (run.folder / "status.json").write_bytes(bytes(20))
    assert main(["track", str(run.folder)]) == 0
    out = capsys.readouterr().out
    assert "sent          3 values that it lacked" in out
    assert "note          how the run ended is unknown: status " in out


def test_metrics_that_are_a_fifo_do_not_hang(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (output / "odd").mkdir()
    os.mkfifo(output / "odd" / "metrics.jsonl")
    assert main(["track", str(output / "odd")]) == 2
    assert capsys.readouterr().err.endswith("metrics.jsonl cannot be read: it is not a regular file\n")


def test_a_run_that_is_being_trained_stays_running(output: Path) -> None:
    run = Recorded(output)
    run.write([1])
    (run.folder / "status.json").write_text('{"state": "running"}')
    lock = RunLock(run.folder)
    assert status_of(run.folder) is RunStatus.RUNNING
    os.close(lock._descriptor)
    assert status_of(run.folder) is RunStatus.FAILED


def test_a_copy_of_a_run_is_a_run_of_its_own(output: Path) -> None:
    run = complete(output)
    before = everything(run.database)
    shutil.copytree(run.folder, output / "copy")
    with (output / "copy" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 20, "time": 5.5, "train/loss": 9.5}\n')
    assert main(["track", str(output / "copy")]) == 0
    [(copy_id, _)] = runs_in(run.database, "copy")
    assert ("train/loss", 20, 9.5) in values_of(run.database, copy_id)
    shutil.rmtree(output / "copy")
    after = everything(run.database)
    assert all(set(before[table]) <= set(after[table]) for table in before), "the first is as it was"


def test_a_run_that_has_moved_stays_the_same(output: Path) -> None:
    run = complete(output)
    run.folder.rename(output / "best")
    assert main(["track", str(output / "best")]) == 0
    assert rows(run.database, "SELECT count(*) FROM runs") == [(1,)]
