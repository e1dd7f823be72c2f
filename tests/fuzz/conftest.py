"""Sound files to begin from, and how many changed ones are tried of each."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from chinchilla_ds.budget.deepspeed_json.resolve import write_shipped
from chinchilla_ds.cli.main import run_command
from tests.unit.budget.fitting.synthetic import sweep
from tests.unit.budget.laws.curves.runs import synthetic, write_run
from tests.unit.data.conftest import make_documents
from tests.unit.exporting.conftest import small_shape, write_random

QUICK, LONG = 30, 2000
"""Inputs per kind of file in `make test` and in `make test-slow`."""

Fuzz = Callable[..., None]


@pytest.fixture(params=["quick", pytest.param("long", marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def fuzz(request: pytest.FixtureRequest) -> Fuzz:
    """Return what tries inputs out of a strategy: the same ones every time, and the least one that fails is shown."""
    number = QUICK if request.param == "quick" else LONG

    def run(try_one: Callable[[Any], object], inputs: st.SearchStrategy[Any], *, share: float = 1.0) -> None:
        @settings(
            max_examples=max(10, int(number * share)),
            derandomize=True,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(inputs)
        def test(drawn: Any) -> None:
            try_one(drawn)

        test()

    return run


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sound files, one of each kind that planning reads."""
    folder = tmp_path_factory.mktemp("seeds")
    run_command(["plan", "--flops", "1e16", "--gpus", "8", "--gpu", "h100", "--out", str(folder / "plan.json")])
    table = sweep(budgets=4, sizes=5, noise=0.003)
    rows = zip(table.num_params, table.num_tokens, table.loss, strict=True)
    lines = [f"{params:.6g},{tokens:.6g},{loss:.5f}" for params, tokens, loss in rows]
    (folder / "runs.csv").write_text("\n".join(["num_params,num_tokens,loss", *lines]), encoding="utf-8")
    run_command(["fit", str(folder / "runs.csv"), "--out", str(folder / "law.json")])
    for kind in ("cosine", "linear"):
        write_run(folder / f"{kind}.csv", kind, synthetic(kind, every=200))
    _write_json(folder / "hardware.json", HARDWARE)
    write_shipped(folder / "ds_configs")
    _write_json(folder / "ds_configs/everything.json", DS_CONFIG)
    mixtures = [(0.1 * i, 0.5, 0.5 - 0.1 * i, 3 + 0.1 * i * i - 0.05 * i) for i in range(6)]
    mixtures += [(0.2, 0.1 * i, 0.8 - 0.1 * i, 3.1 + 0.02 * i * i) for i in range(1, 7)]
    lines = [",".join(f"{value:.4f}" for value in row) for row in mixtures]
    (folder / "mixtures.csv").write_text("\n".join(["w:web,w:code,w:books,loss", *lines]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a prepared folder, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in make_documents(number=200))
    )
    run_command(
        ["prepare", "--source", str(folder / "text.jsonl"), "--out", str(folder / "out"), "--vocab-size", "400"]
    )
    return folder / "out"


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with one checkpoint of random weights, to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("run")
    return write_random(folder, small_shape(num_layers=1, hidden_size=32, kv_channels=8)).folder.parent.parent


@pytest.fixture(scope="session")
def exported_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return that run as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    run_command(["export", str(run_folder), "--out", str(folder)])
    return folder


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data), encoding="utf-8")


HARDWARE = [
    {
        "name": "X100",
        "aliases": ["x-100"],
        "kind": "cuda",
        "bf16_flops_per_s": 5e14,
        "fp32_flops_per_s": 3e13,
        "matmul_efficiency": 0.7,
        "memory_bytes": 80 * 2**30,
        "memory_bytes_per_s": 3e12,
        "intra_node_bytes_per_s": 4e11,
        "devices_per_node": 8,
        "inter_node_bytes_per_s": 5e10,
        "source": "a data sheet",
    }
]
DS_CONFIG = {
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none"},
        "overlap_comm": True,
        "reduce_bucket_size": 5e8,
        "allgather_bucket_size": 5e8,
        "contiguous_gradients": True,
    },
    "activation_checkpointing": {"partition_activations": False},
    "steps_per_print": 100,
    "wall_clock_breakdown": False,
    "communication_data_type": "fp32",
}
