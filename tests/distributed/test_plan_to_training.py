"""From `chinchilla-ds plan` to a trained model: the plan's file, its ds_config, and the launcher."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chinchilla_ds.cli.main import main

REPOSITORY = Path(__file__).parents[2]
LAPTOP = {
    "name": "laptop",
    "kind": "cpu",
    "memory_bytes": 8_000_000_000,
    "fp32_flops_per_s": 5e10,
    "memory_bytes_per_s": 2e10,
    "intra_node_bytes_per_s": 2e9,
    "inter_node_bytes_per_s": 1e9,
    "host_bytes_per_s": 1e10,
    "devices_per_node": 4,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "fixed",
    [
        (),
        ("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2", "--zero-stage", "3"),
    ],
)
def test_a_searched_plan_trains_as_planned(tmp_path: Path, fixed: tuple[str, ...]) -> None:
    hardware, plan_file, ds_file = (tmp_path / name for name in ("hardware.json", "plan.json", "ds_config.json"))
    hardware.write_text(json.dumps(LAPTOP))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"line {number} of {number * number}\n" for number in range(60_000)))
    cluster = ["--gpus", "4", "--gpu", "laptop", "--hardware", str(hardware)]
    budget = ["--flops", "6e10", "--seq-length", "128"]
    assert main(["plan", *budget, *cluster, *fixed, "--out", str(plan_file)]) == 0
    assert main(["ds-config", str(plan_file), "--out", str(ds_file)]) == 0
    command = [
        *(str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "4", "--master_port", str(_free_port())),
        *(str(REPOSITORY / "launchers" / "pretrain.py"), "--ds_config", str(ds_file), "--plan", str(plan_file)),
        *("--data", str(corpus), "--output", str(tmp_path / "runs")),
    ]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    plan = json.loads(plan_file.read_text())
    (run,) = (path for path in (tmp_path / "runs").glob("*/metrics.jsonl"))
    rows = [json.loads(line) for line in run.read_text().splitlines()]
    last = max((row for row in rows if "tokens" in row), key=lambda row: row["tokens"])
    assert last["tokens"] == plan["num_tokens"]
    assert last["flops"] == pytest.approx(plan["true_flops"])
    assert json.loads(run.with_name("plan.json").read_text()) == {
        name: value for name, value in plan.items() if name != "report"
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
