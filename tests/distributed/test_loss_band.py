"""Real runs: one whose learning rate is raised tenfold says so within 20 steps, and clean ones say nothing."""

import json
import re
from pathlib import Path

import pytest

from tests.launching import ROOT, Ended, finish, launch, write_corpus

HOT_STEP = 300
FLOPS = 1e12
"""Of 386 steps by the plan."""
NEVER = 10**9


def _train(folder: Path, *, seed: int, hot_step: int) -> Ended:
    corpus = write_corpus(folder / "corpus.txt")
    flags = ("--data", corpus, "--max-epochs", 2, "--flops", FLOPS, "--seed", seed, "--run-name", f"seed{seed}")
    script = ROOT / "tests/distributed/hot_pretrain.py"
    flags += ("--output", folder / "runs")
    return finish(launch(*flags, folder=folder, ranks=None, script=script, ds="zero1", HOT_STEP=str(hot_step)))


@pytest.mark.slow
def test_a_tenfold_learning_rate_is_told_within_20_steps(tmp_path: Path) -> None:
    run = _train(tmp_path, seed=1, hot_step=HOT_STEP)
    assert run.exit_code == 0, run.text
    said = re.search(r"step (\d+)/\d+ \| loss (\d\.\d\d above the 95 % band since step (\d+))", run.text)
    assert said is not None, run.text
    at, since = int(said[1]), int(said[3])
    assert HOT_STEP <= since <= at <= HOT_STEP + 20
    lines = [json.loads(line) for line in (tmp_path / "runs/seed1/metrics.jsonl").read_text().splitlines()]
    noted = next(line for line in lines if any("95 % band" in note for note in line.get("notes", ())))
    assert noted["step"] == at
    assert noted["loss_above_band_since"] == since
    assert noted["learning_rate"] > 3 * lines[200]["learning_rate"], "the rate was raised"
    table = next(line for line in run.text.splitlines() if line.startswith("loss curve"))
    assert f"above the 95 % band since step {since}" in table


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_clean_runs_say_nothing(tmp_path: Path) -> None:
    for seed in range(1, 6):
        run = _train(tmp_path, seed=seed, hot_step=NEVER)
        assert run.exit_code == 0, run.text
        assert "above the 95 % band" not in run.text
        assert "within the 95 % band that its own beginning predicted" in run.text
