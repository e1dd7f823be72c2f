"""The batch script of docs/faults.md, run by bash with stand-ins for deepspeed and scontrol."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs/faults.md"
_DEEPSPEED = """#!/bin/bash
folder=runs/my-model/1e13-now
mkdir -p "$folder"
{work}
exit {exit_code}
"""
_WRITE = 'echo \'{{\n  "state": "{state}",\n}}\' > "$folder/status.json"'


@pytest.fixture
def job(tmp_path: Path):
    """Start the script, where `deepspeed` does `work`."""
    text = DOCS.read_text()
    start = text.index("#!/bin/bash")
    (tmp_path / "job.sh").write_text(text[start : text.index("```", start)])

    def begin(work: str, *, exit_code: int) -> "subprocess.Popen[str]":
        tools = {"deepspeed": _DEEPSPEED.format(work=work, exit_code=exit_code), "scontrol": '#!/bin/bash\necho "$@"'}
        for name, script in tools.items():
            (tmp_path / name).write_text(script)
            (tmp_path / name).chmod(0o755)
        environ = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        return subprocess.Popen(["bash", "-u", "job.sh"], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True)

    return begin


@pytest.mark.parametrize(
    ("state", "exit_code", "again"),
    [
        ("stopped", 85, True),
        ("stopped", 0, True),  # the launcher's child was killed
        ("running", 247, True),  # the ranks were killed
        ("finished", 0, False),
        ("finished", 1, False),
        ("failed", 2, False),
        ("failed", 0, False),
    ],
)
def test_the_status_decides_and_not_the_exit_code(job, state: str, exit_code: int, again: bool) -> None:
    text, _ = job(_WRITE.format(state=state), exit_code=exit_code).communicate(timeout=30)
    assert ("requeue 7" in text) == again


def test_an_older_run_in_the_same_folder_decides_nothing(job, tmp_path: Path) -> None:
    old = tmp_path / "runs/my-model/1e13-old"
    old.mkdir(parents=True)
    (old / "status.json").write_text('"state": "stopped"')
    time.sleep(0.05)
    text, _ = job("true", exit_code=2).communicate(timeout=30)
    assert "requeue" not in text


def test_the_warning_becomes_the_stop_file(job, tmp_path: Path) -> None:
    work = _WRITE.format(state="running") + '\nwhile ! [ -e "$folder/STOP" ]; do sleep 0.05; done\n'
    script = job(work + _WRITE.format(state="stopped"), exit_code=85)
    while not (tmp_path / "runs/my-model/1e13-now/status.json").exists():
        time.sleep(0.05)
    time.sleep(0.1)
    script.send_signal(signal.SIGUSR1)
    text, _ = script.communicate(timeout=30)
    assert (tmp_path / "runs/my-model/1e13-now/STOP").exists()
    assert "requeue 7" in text


def test_the_script_waits_for_ranks_that_outlive_their_launcher(job) -> None:
    rank_zero = "(flock 9; sleep 1; " + _WRITE.format(state="stopped") + ') 9> "$folder/.lock" &\nsleep 0.3'
    text, _ = job(_WRITE.format(state="running") + "\n" + rank_zero, exit_code=0).communicate(timeout=30)
    assert '"state": "stopped"' in text
    assert "requeue 7" in text
