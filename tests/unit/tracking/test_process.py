import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_ds.tracking.process import Endings, FollowingProcess, follow
from chinchilla_ds.tracking.tracker import RunStatus

FINISHED, RUNNING = RunStatus.FINISHED, RunStatus.RUNNING


class Place:
    """Fails as often as it is told to, and lets the run end when it has been brought up so often."""

    def __init__(self, *problems: str | None, ending: RunStatus | None = FINISHED) -> None:
        self.problems, self.seen, self.said = list(problems), [], []
        self.endings: Endings = queue.Queue()
        self.ending = ending

    def bring_up(self, status: RunStatus | None) -> None:
        self.seen.append(status)
        problem = self.problems.pop(0)
        if len(self.problems) == 1:
            self.endings.put(self.ending)
        if problem:
            raise ConnectionError(problem)

    def follow(self) -> bool:
        return follow(
            self.bring_up, endings=self.endings, say=self.said.append, name="There", remedy="`mend`", interval_s=0.001
        )


def test_a_run_is_followed_to_its_end() -> None:
    place = Place(None, None, None)
    assert place.follow()
    assert place.seen == [RUNNING, RUNNING, FINISHED]
    assert place.said == []


def test_each_outage_is_said_once_and_its_end_too() -> None:
    place = Place("no route", "no route", None, "disk full", None, None)
    assert place.follow()
    assert place.said == [
        "There cannot be written and will be retried, training continues: no route",
        "There is up to date again",
        "There cannot be written and will be retried, training continues: disk full",
        "There is up to date again",
    ]


def test_what_is_lacking_at_the_end_is_said_with_the_remedy() -> None:
    place = Place(None, "no route")
    assert not place.follow()
    assert place.said == ["There lacks what this run has logged: no route; `mend` brings it up to date"]


def test_a_run_that_was_killed_ends_without_a_status() -> None:
    place = Place(None, None, ending=None)
    place.follow()
    assert place.seen == [RUNNING, None]


# ---- the process -----------------------------------------------------------------------------------------------------

FOLLOWER = """
import os, signal, sys
from chinchilla_ds.tracking.process import serve

def follow_run(settings, endings, say):
    with open(settings["log"], "a") as log:
        print("begins", os.getpid(), file=log, flush=True)
        say(f"following {settings['name']}")
        print("for standard output")
        if settings["hangs"]:
            signal.pause()
        print("ends", endings.get(), file=log)
    return True

serve(follow_run)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that follows, by keeping a log."""
    (tmp_path / "follower_of_a_test.py").write_text(FOLLOWER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "follower_of_a_test"


def start(module: str, log: Path, *, hangs: bool = False, close_timeout_s: float = 60.0) -> FollowingProcess:
    return FollowingProcess(
        module=module,
        settings={"log": str(log), "name": "x", "hangs": hangs},
        environment={},
        name="There",
        remedy="`mend`",
        close_timeout_s=close_timeout_s,
    )


def pid_in(log: Path) -> int:
    while not log.exists() or not log.read_text().endswith("\n"):
        time.sleep(0.01)
    return int(log.read_text().split()[1])


def test_settings_go_in_and_messages_and_the_end_come_out(
    module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = start(module, tmp_path / "log")
    tracker.log_metrics({"loss": 1.0}, step=1)
    tracker.close(FINISHED)
    tracker.close(RunStatus.FAILED)
    assert (tmp_path / "log").read_text().splitlines()[1:] == ["ends FINISHED"]
    assert caplog.messages == ["following x"]
    assert capfd.readouterr() == ("", "for standard output\n"), "what libraries print is no message"


def test_a_process_that_was_killed_is_started_again_for_the_end(module: str, tmp_path: Path) -> None:
    import os

    tracker = start(module, tmp_path / "log")
    os.kill(pid_in(tmp_path / "log"), signal.SIGKILL)
    assert tracker._process is not None
    tracker._process.wait()
    tracker.close(FINISHED)
    assert [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()] == ["begins", "begins", "ends"]


def test_a_process_that_hangs_is_ended_and_the_remedy_named(
    module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = start(module, tmp_path / "log", hangs=True, close_timeout_s=0.01)
    pid_in(tmp_path / "log")
    tracker.close(FINISHED)
    assert caplog.messages[-1] == "There was not up to date within 0.01 s of the run's end: `mend` brings it up to date"
    assert tracker._process is not None
    assert tracker._process.returncode == -signal.SIGKILL


def test_a_process_that_cannot_be_started_costs_one_line(
    module: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    tracker = start(module, tmp_path / "log")
    tracker.close(FINISHED)
    assert set(caplog.messages) == {"There is not written to: its process cannot be started: No such file or directory"}


def test_the_end_of_the_training_process_is_an_end(module: str, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        env={"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
    )
    process.communicate(b'{"log": "%s", "name": "x", "hangs": false}\n' % str(tmp_path / "log").encode())
    assert (tmp_path / "log").read_text().splitlines()[1:] == ["ends None"]
