"""Real runs: one whose learning rate is raised tenfold says so within 20 steps, and clean ones say nothing."""

import json
import re
from pathlib import Path

import pytest

from chinchilla_ds.testing.configs import tiny_plan, tiny_shape
from tests.launching import ROOT, Ended, finish, launch, write_corpus

TRAIN_ITERS, HOT_STEP, NEVER = 400, 300, 10**9


def _train(folder: Path, *, seed: int, hot_step: int) -> Ended:
    """Train a decoder of two layers on 1,024 tokens a step."""
    shape = tiny_shape(num_layers=2, vocab_size=512, padded_vocab_size=512, seq_length=64)
    plan = tiny_plan(
        train_iters=TRAIN_ITERS,
        micro_batch_size=16,
        zero_stage=1,
        shape=shape,
        learning_rate=5e-3,
        warmup_iters=TRAIN_ITERS // 10,
        seed=seed,
    )
    file = folder / f"plan{seed}.json"
    file.write_text(plan.to_json())
    corpus = write_corpus(folder / "corpus.txt")
    flags = ("--plan", file, "--data", corpus, "--output", folder / "runs", "--run-name", f"seed{seed}")
    script = ROOT / "tests/distributed/hot_pretrain.py"
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
