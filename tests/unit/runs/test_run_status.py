import json
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.errors import OutputError
from chinchilla_ds.processes.endings import Ending
from chinchilla_ds.runs import status as run_status
from chinchilla_ds.runs.status import STATUS_NAME, StatusFile
from tests.unit.training.states import make_state


def _read(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / STATUS_NAME).read_text())
    assert values.pop("time")[:2] == "20"
    return values


def test_a_run_says_that_it_goes_on(tmp_path: Path) -> None:
    StatusFile(tmp_path, train_iters=127)
    assert _read(tmp_path) == {"state": "running", "step": 0, "train_iters": 127, "reason": None, "exit_code": None}
    assert [path.name for path in tmp_path.iterdir()] == [STATUS_NAME]


@pytest.mark.parametrize(
    ("ending", "state", "reason"),
    [
        (Ending(exit_code=0), "finished", None),
        (Ending(exit_code=85), "stopped", "SIGTERM"),
        (Ending(exit_code=143, reason="interrupted by SIGTERM", asked=True), "stopped", "interrupted by SIGTERM"),
        (Ending(exit_code=143, reason="another rank has left"), "failed", "another rank has left"),
        (Ending(exit_code=2, reason="the disk is full"), "failed", "the disk is full"),
        (Ending(exit_code=1, reason="RuntimeError: a bug"), "failed", "RuntimeError: a bug"),
        (Ending(exit_code=86, reason="no step within --hang-timeout"), "failed", "no step within --hang-timeout"),
    ],
)
def test_each_ending_is_written_with_its_step(tmp_path: Path, ending: Ending, state: str, reason: str | None) -> None:
    training = make_state(tmp_path, train_iters=127)
    status = StatusFile(tmp_path, train_iters=127)
    status.on_train_start(training)
    training.iteration = 6
    training.stopped_by = "SIGTERM" if ending.exit_code == 85 else None
    status.end(ending)
    assert _read(tmp_path) == {
        "state": state, "step": 6, "train_iters": 127, "reason": reason, "exit_code": ending.exit_code,
    }  # fmt: skip


def test_a_disk_that_takes_no_more_hides_no_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = StatusFile(tmp_path, train_iters=127)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_status, "write_durably", full)
    status.end(Ending(exit_code=2, reason="the disk is full"))
    assert "the run has failed" in capsys.readouterr().out
    assert _read(tmp_path)["state"] == "running", "the file is whole"
    with pytest.raises(OutputError, match="No space left"):
        StatusFile(tmp_path, train_iters=127)
