import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chinchilla_ds.errors import EXIT_CODE_HUNG
from chinchilla_ds.training import watchdog
from chinchilla_ds.training.lr_schedule import learning_rate
from chinchilla_ds.training.watchdog import Watchdog, place_of

_PROGRAM = """
import sys, threading, time
from pathlib import Path
from chinchilla_ds.training import watchdog
watchdog.OTHERS_DUMP_S = 0.1

def hang():
    threading.Lock().acquire() or threading.Event().wait()
    threading.Event().wait()

with watchdog.Watchdog(timeout_s=0.4, run_folder=Path(sys.argv[1]), rank=3) as dog:
    with dog.step(1):
        time.sleep(0.5)  # the first may take longer
    with dog.step(2):
        pass
    print("ready", flush=True)
    with dog.step(3):
        hang()
"""


def test_a_step_that_hangs_ends_the_process_and_leaves_its_stacks(tmp_path: Path) -> None:
    started_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert ended.returncode == EXIT_CODE_HUNG, ended.stderr
    assert ended.stdout == "ready\n"
    assert time.monotonic() - started_s < 20
    first = ended.stderr.splitlines()[0]
    assert first.startswith("error: rank 3: step 3 was not finished after "), first
    assert "(wait)" in first
    stacks = (tmp_path / "stacks-rank3.txt").read_text()
    for text in (stacks, ended.stderr):
        assert "in hang" in text
        assert 'in "watchdog"' in text or "_write_stacks" in text or "in _end" in text


class Dog(Watchdog):
    """Notes with which code it would have left."""

    def __init__(self, folder: Path, *, timeout_s: float = 0.2) -> None:
        self.left: list[int] = []
        super().__init__(timeout_s=timeout_s, run_folder=folder, rank=0, leave=self.left.append)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "OTHERS_DUMP_S", 0.0)


def test_steps_in_time_and_pauses_between_them_are_left_alone(tmp_path: Path) -> None:
    with Dog(tmp_path) as dog:
        for number in range(5):
            with dog.step(number):
                time.sleep(0.02)
        time.sleep(0.6)
    assert dog.left == []
    assert list(tmp_path.iterdir()) == []


def test_the_limit_follows_slow_steps_and_the_scale(tmp_path: Path) -> None:
    with Dog(tmp_path) as dog:
        with dog.step(1):
            time.sleep(0.3)  # below three times the limit
        with dog.step(2):
            time.sleep(0.15)
        with dog.step(3):
            time.sleep(0.4)  # below five times the slowest
        with dog.phase("the evaluation", scale=10):
            time.sleep(0.5)
    assert dog.left == []


def test_control_the_same_pause_without_a_scale_is_a_hang(tmp_path: Path) -> None:
    with Dog(tmp_path) as dog, dog.phase("the evaluation"):
        time.sleep(0.7)
    assert dog.left == [EXIT_CODE_HUNG]
    assert (tmp_path / "stacks-rank0.txt").exists()


def test_time_in_which_the_process_stood_still_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_s = 0.0
    real = time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: real() + ahead_s)
    with Dog(tmp_path) as dog, dog.phase("step 7"):
        time.sleep(0.1)
        ahead_s = 3600.0
        time.sleep(0.12)
    assert dog.left == []


class Broken:
    """A schedule of which nothing can be read."""

    def __getattr__(self, name: str) -> int:
        raise RuntimeError("here")


def test_the_place_names_the_innermost_frame_of_the_package_and_what_it_calls() -> None:
    frame = sys._getframe()
    assert place_of(frame).startswith("in training/test_watchdog.py:")
    with pytest.raises(RuntimeError, match="here") as caught:
        learning_rate(5, schedule=Broken(), peak=1.0, train_iters=10)  # type: ignore[arg-type]
    innermost = caught.value.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    assert innermost is not None
    text = place_of(innermost.tb_frame)
    assert re.fullmatch(
        r"in training/lr_schedule.py:\d+ \(\w+\), in a call of training/test_watchdog.py:\d+ \(__getattr__\)", text
    )
    assert place_of(None) == "at an unknown place"
