"""docs/library.md: every snippet of the page runs as it stands."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from chinchilla_ds.checkpoint.reader import CheckpointReader
from tests.launching import ROOT, finish, launch

PAGE = (ROOT / "docs/library.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
MOST_LINES = 30


def snippet(words: str) -> str:
    [found] = [code for code in SNIPPETS if words in code]
    return found


def run(code: str, *, folder: Path) -> str:
    (folder / "script.py").write_text(code)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_snippets_that_are_tested_here() -> None:
    tested = ["gpu=", "prepare(", "generate(", "initialize("]
    assert [snippet(words) for words in tested] == SNIPPETS


def test_planning(tmp_path: Path) -> None:
    first, second = run(snippet("gpu="), folder=tmp_path).splitlines()
    num_params, num_tokens, loss = map(float, first.split())
    assert 6 * num_params * num_tokens == pytest.approx(1e21, rel=0.2)
    assert 2.2 < loss < 2.4
    zero_stage, gib, hours = map(float, second.split())
    assert (zero_stage, gib < 80, hours < 24) == (1, True, True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_preparing_training_and_what_follows(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for module in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]:
        shutil.copy(module, tmp_path / "src")
    shown = run(snippet("prepare("), folder=tmp_path)
    folder, loss, stopped_by = shown.splitlines()[-1].split()
    assert stopped_by == "None"
    assert json.loads((tmp_path / folder / "status.json").read_text())["state"] == "finished"
    assert run(snippet("prepare("), folder=tmp_path).splitlines()[-1] == shown.splitlines()[-1], "it is finished"
    *_, bits_per_byte = run(snippet("generate("), folder=tmp_path).splitlines()
    saved = CheckpointReader.open(tmp_path / folder).state.held_out_bits_per_byte
    assert saved is not None
    assert float(bits_per_byte) == pytest.approx(saved, rel=0.1), "windows overlap there, and sequences are cut here"
    assert 1 < float(loss) < 6.3
    assert json.loads((tmp_path / "exported/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
def test_a_loop_of_your_own_under_the_launcher(tmp_path: Path) -> None:
    script, code = tmp_path / "own_loop.py", snippet("initialize(")
    assert len(code.splitlines()) <= MOST_LINES
    script.write_text(code)
    ended = finish(launch(folder=tmp_path, ranks=2, script=script))
    assert ended.exit_code == 0, ended.text
    found = re.findall(r"step \d+: cross entropy ([0-9.]+), optimised ([0-9.]+)\n", ended.text)
    losses = [(float(loss), float(optimised)) for loss, optimised in found]
    assert len(losses) == 3, "one rank prints"
    assert losses[2] < losses[1] < losses[0] < (6.3, 7.0)
    for loss, optimised in losses:
        assert optimised >= loss + 0.01 * loss**2 - 2e-3, "by Jensen's inequality, and to the digits that are printed"
    checkpoint = CheckpointReader.open(tmp_path / "own_loop/checkpoints")
    assert (checkpoint.state.iteration, checkpoint.plan.layout.data_parallel_size) == (60, 2)
