"""Every example of every `--help` is run: those that plan in the fast tests, all of them in one folder in the slow."""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from chinchilla_ds.cli.commands import COMMANDS
from chinchilla_ds.cli.main import run_command
from chinchilla_ds.structured import read_json
from tests.installation.test_wheel import RUNS
from tests.launching import ROOT, free_port, nobody_stays
from tests.unit.budget.laws.curves.runs import TRUTH, synthetic, write_run
from tests.unit.budget.laws.test_scaling_laws import LAW_FILE

FAST = ("laws", "plan", "ds-config", "memory", "help")
"""In an order in which each finds what it reads."""
SLOW = ("fit", "fit-curves", "plan", "ds-config", "memory", "laws", "prepare", "pretrain", "generate", "evaluate",
        "export", "import", "track", "checkpoint inspect", "checkpoint verify", "checkpoint convert", "mix design",
        "mix run", "mix fit", "completion", "help")  # fmt: skip
MADE = ("plan.json", "ds_config.json", "law.json", "fit.png", "curves.png", "corpus/manifest.json",
        "runs/first/plan.json", "model/config.json", "imported", "weights", "mixtures.csv", "blend.yaml")  # fmt: skip


def _run(example: str, folder: Path) -> str:
    bin_folder = Path(sys.executable).parent
    port = ["--master_port", str(free_port())] if example.startswith("deepspeed") else []
    words = example.replace("deepspeed ", f"deepspeed {' '.join(port)} ", 1) if port else example
    env = {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        ["bash", "-c", words],
        cwd=folder,
        env=os.environ | env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    with nobody_stays(run):
        text, _ = run.communicate(timeout=800)
    assert run.returncode == 0, f"{example}\n{text}"
    return text


def _write_curves(folder: Path) -> None:
    for name, kind in {"cosine": "cosine", "constant": "constant", "wsd": "linear", "small": "cosine"}.items():
        write_run(folder / f"{name}.csv", kind, synthetic(kind))
    write_run(folder / "large.csv", "cosine", synthetic("cosine", constants=TRUTH | {"L0": 2.3}))
    write_run(folder / "next.csv", "cosine", synthetic("cosine"), losses=False)


def _write_inputs(folder: Path) -> None:
    (folder / "runs.csv").write_text(RUNS)
    _write_curves(folder)
    (folder / "law.json").write_text(json.dumps(LAW_FILE))
    (folder / "run.yaml").write_text("ds_config: zero3\ndata: [corpus/]\nflops: 1e10\n")
    (folder / "notes.txt").write_text("Some notes on nothing in particular, for a model to be surprised at.\n" * 40)
    modules = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    (folder / "code").mkdir()
    for number, module in enumerate(modules[:200]):
        (folder / f"code/{number}.py").write_bytes(module.read_bytes())
    (folder / "web").mkdir()
    texts = [module.read_text(encoding="utf-8", errors="ignore") for module in modules[200:400]]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "web/part.jsonl").write_text("\n".join(lines) + "\n")


def test_no_command_is_left_out() -> None:
    assert sorted(SLOW) == sorted(COMMANDS)


def test_examples_of_planning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("law.json").write_text(json.dumps(LAW_FILE))
    for name in FAST:
        for example in COMMANDS[name].examples:
            program, *words = shlex.split(example, comments=True)
            assert program == "chinchilla-ds"
            assert run_command(words), example


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_example(tmp_path: Path) -> None:
    _write_inputs(tmp_path)
    said = {example: _run(example, tmp_path) for name in SLOW for example in COMMANDS[name].examples}
    for made in MADE:
        assert (tmp_path / made).exists(), made
    assert read_json(tmp_path / "runs/first/status.json", what="status")["state"] == "finished"
    two_ranks = next(text for example, text in said.items() if example.startswith("deepspeed"))
    assert "= 2 ranks, ZeRO-1" in two_ranks
