"""The optimizer of docs/add-an-optimizer.md through the launcher's flag: stopped, refused under another, resumed."""

import json
import os
import signal
from pathlib import Path

import pytest

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.cli.main import main
from chinchilla_ds.errors import EXIT_CODE_STOPPED, EXIT_CODE_USER_ERROR
from tests.documented import code_blocks
from tests.launching import ROOT, finish, interrupt, launch, write_corpus

SGD = "my_sgd:sgd,momentum=0.8"
FLAGS = (
    *("--flops", "3e10", "--seq-length", "128", "--global-batch-size", "12", "--micro-batch-size", "2"),
    *("--precision", "fp32", "--optimizer", SGD, "--learning-rate", "0.05", "--warmup-iters", "3"),
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_with_it_stops_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [text] = code_blocks("add-an-optimizer.md")
    (tmp_path / "my_sgd.py").write_text(text)
    corpus = write_corpus(tmp_path / "text.txt")

    def start(*more: object, ranks: int | None = 2):
        path = os.pathsep.join((str(ROOT), str(tmp_path)))
        return launch(*FLAGS, "--data", corpus, *more, folder=tmp_path, ranks=ranks, PYTHONPATH=path)

    stopped = interrupt(start(), signal.SIGTERM, after="| held-out loss", rank=1)
    assert stopped.exit_code == EXIT_CODE_STOPPED, stopped.text
    [run] = (path.parent for path in tmp_path.glob("runs/*/request.json"))
    other = finish(start("--resume", run, "--optimizer", "my_sgd:sgd,momentum=0.5", ranks=None))
    assert other.exit_code == EXIT_CODE_USER_ERROR, other.text
    assert f"--optimizer is my_sgd:sgd,momentum=0.5 here and {SGD} in the run" in " ".join(other.text.split())
    resumed = finish(start())
    assert resumed.exit_code == 0, resumed.text
    assert "continuing" in resumed.text
    assert "SGD with momentum, learning rate 0.05" in resumed.text

    reader = CheckpointReader.open(run)  # where the module is not to be found
    assert reader.state.complete
    assert (str(reader.plan.optimizer.plugin), reader.plan.optimizer.states) == (SGD, ("momentum_buffer",))
    assert reader.plan.schedule.warmup_iters == 3
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["held_out/loss"] for row in rows if "held_out/loss" in row]
    assert losses[-1] < losses[0] - 0.1
    assert main(["checkpoint", "inspect", str(run)]) == 0
    assert f"{SGD}: momentum_buffer" in capsys.readouterr().out
