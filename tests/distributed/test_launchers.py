"""Runs under the launchers of clusters, as real as this machine has them: one world, or one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_ds.structured import read_json
from tests.launching import LAUNCHER, ROOT, Ended, finish, free_port, launch, nobody_stays, write_corpus

TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--no-python"]
TASKS = {
    "srun": ["srun", "-n", "2"],
    "mpirun.openmpi": ["mpirun.openmpi", "-np", "2", "--oversubscribe", "--allow-run-as-root"],
    "mpiexec.hydra": ["mpiexec.hydra", "-n", "2"],
}
FLAGS = ("--flops", "2e10", "--seq-length", "64", "--vocab-size", "512", "--global-batch-size", "8")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


def _start(launcher: list[str], folder: Path, *flags: object, **env: str) -> "subprocess.Popen[str]":
    python = [] if "deepspeed" in str(launcher[:1]) else [sys.executable]
    command = [*launcher, *python, str(LAUNCHER), "--ds_config", str(ROOT / "ds_configs/zero1.json"), *FLAGS]
    launched = ("RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {name: value for name, value in os.environ.items() if name not in launched}
    return subprocess.Popen(
        [*command, *map(str, flags)],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"} | env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def _finish(run: "subprocess.Popen[str]") -> Ended:
    """Wait for a run; SLURM's tasks are in no session of ours."""
    with nobody_stays(run):
        text, _ = run.communicate(timeout=280)
    return Ended(exit_code=run.returncode, text=text)


def _needs(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "srun" and subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("no SLURM controller answers")


@pytest.mark.slow
@pytest.mark.parametrize("tool", TASKS)
def test_tasks_without_a_place_to_meet_are_refused_in_one_line(tmp_path: Path, tool: str) -> None:
    _needs(tool)
    ended = _finish(_start(TASKS[tool], tmp_path))
    assert ended.exit_code == 2, ended.text
    assert ended.text.count("error: ") - ended.text.count("srun: error: ") == 1, ended.text
    assert "started 2 tasks, and MASTER_ADDR and MASTER_PORT, where they meet, are not set" in ended.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("tool", [*TASKS, "torchrun"])
def test_tasks_that_know_where_to_meet_are_one_run(tmp_path: Path, corpus: Path, tool: str) -> None:
    launcher, address = TORCHRUN, {}
    if tool in TASKS:
        _needs(tool)
        launcher, address = TASKS[tool], {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ended = _finish(_start(launcher, tmp_path, "--data", corpus, **address))
    assert ended.exit_code == 0, ended.text
    assert "= 2 ranks, ZeRO-1" in ended.text
    (status,) = tmp_path.glob("runs/*/status.json")
    assert read_json(status, what="status")["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launchers_start_the_module_as_they_start_the_script(tmp_path: Path, corpus: Path, launcher: str) -> None:
    """As from an installed wheel: no script, and the shipped ds_config by its name."""
    words = {
        "deepspeed": ["--num_gpus", "2", "--master_port", str(free_port()), "--module"],
        "torchrun": ["--nproc-per-node", "2", "-m"],
    }[launcher]
    program = str(Path(sys.executable).with_name(launcher))
    command = [program, *words, "chinchilla_ds", "pretrain", "--ds_config", "zero1", *FLAGS, "--data", str(corpus)]
    run = subprocess.Popen(
        [*command, "--run-name", "by-module"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    ended = _finish(run)
    assert ended.exit_code == 0, ended.text
    assert "= 2 ranks, ZeRO-1" in ended.text
    assert read_json(tmp_path / "runs/by-module/status.json", what="status")["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "rank"])
def test_status_tells_what_the_launchers_exit_code_does_not(tmp_path: Path, corpus: Path, victim: str) -> None:
    """The runner of `deepspeed` returns 0 when its child is killed; the ranks save, and say so."""
    run = launch("--flops", "1e12", *FLAGS[2:], "--max-epochs", "100", "--data", corpus,
                 folder=tmp_path, ranks=2, ds="zero1")  # fmt: skip
    with nobody_stays(run):
        assert run.stdout is not None
        for line in run.stdout:
            if "| loss" in line:
                break
        child = _child_of(run.pid)
        os.kill(child if victim == "launcher" else _child_of(child), signal.SIGKILL)
        run.communicate(timeout=200)
        (path,) = tmp_path.glob("runs/*/status.json")
        deadline_s = time.monotonic() + 60
        while (status := read_json(path, what="status"))["state"] == "running" and time.monotonic() < deadline_s:
            if victim == "rank":  # rank 0, which would have said it
                return
            time.sleep(0.5)
    assert run.returncode == 0, "as deepspeed 0.19.8 does; where that has changed, docs/faults.md has too much"
    assert status["state"] == "stopped"
    assert 0 < status["step"] < status["train_iters"]


def _child_of(process: int) -> int:
    for entry in Path(f"/proc/{process}/task").iterdir():
        for child in map(int, (entry / "children").read_text().split()):
            return child
    raise AssertionError(f"{process} has no child")


@pytest.mark.slow
def test_a_rank_that_leaves_before_the_first_step_takes_the_other_with_it(tmp_path: Path, corpus: Path) -> None:
    """The other sits in a collective, and its launcher does not know: two launchers, as on two machines."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n")
    port = free_port()
    runs = []
    for node in (0, 1):
        launcher = [
            str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hosts), "--no_ssh",
            "--node_rank", str(node), "--master_addr", "127.0.0.1", "--master_port", str(port),
        ]  # fmt: skip
        folder = tmp_path / f"node{node}"  # `runs` is relative: the second does not find what the first has prepared
        folder.mkdir()
        runs.append(_start(launcher, folder, "--data", corpus, GLOO_SOCKET_IFNAME="lo"))
    started_s = time.monotonic()
    first, second = [_finish(run) for run in runs]
    assert first.exit_code != 0, first.text
    assert second.exit_code != 0, second.text
    assert time.monotonic() - started_s < 250
    assert "error: rank 1: " in first.text, first.text


def test_the_refusal_by_recorded_variables(tmp_path: Path) -> None:
    """As under srun -n 2, without srun: both tasks refuse, and one of them says it."""
    common = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_NTASKS": "2"}
    texts = []
    for rank in ("0", "1"):
        ended = finish(_start([], tmp_path, **common, SLURM_PROCID=rank, SLURM_LOCALID=rank))
        assert ended.exit_code == 2, ended.text
        texts.append(ended.text)
    assert texts[0].startswith("error: srun started 2 tasks, and MASTER_ADDR and MASTER_PORT")
    assert texts[0].count("\n") == 1
    assert texts[1] == ""
    assert list(tmp_path.iterdir()) == []
