"""What `main` says of runs that cannot be, and that it says it before anything is imported or written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.cli.pretrain import main
from chinchilla_ds.config import LayoutConfig, RunConfig

SetWorld = Callable[[int], None]


@pytest.fixture
def refused(
    rank_zero_of: SetWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Run main, which must refuse, and return the lines of its message."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object, world_size: int = 1) -> list[str]:
        rank_zero_of(world_size)
        before = sorted(tmp_path.rglob("*"))
        assert main([str(argument) for argument in argv]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        shown = capsys.readouterr()
        assert shown.out == ""
        return [line.removeprefix("error: ") for line in shown.err.splitlines()]

    return run


def test_a_missing_ds_config(refused: Callable[..., list[str]], ds_configs: Path) -> None:
    path = ds_configs / "zero_3.json"
    assert refused("--ds_config", path) == [
        f"ds_config {path} cannot be read: No such file or directory; did you mean 'zero3.json'?"
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("{", ["is not JSON", "line 1 column 2"]),
        ("[]", ["must hold a JSON object"]),
        ('{"zero_optimisation": {}}', ["zero_optimisation", "did you mean 'zero_optimization'?"]),
        ('{"zero_optimization": {"stagee": 3}}', ["zero_optimization.stagee", "did you mean 'stage'?"]),
        ('{"zero_optimization": null}', ['zero_optimization is null; it must be a JSON object, such as {"stage": 1}']),
        ('{"autotuning": {"enabled": true}}', ["autotuning cannot be set", "chinchilla-ds plan --gpu"]),
        ('{"bf16": {"bf16_optimizer_states": true}}', ["bf16.bf16_optimizer_states cannot be true", "FP32"]),
        ('{"zero_optimization": {"stage": 2}, "prescale_gradients": true}', ["prescale_gradients is true", "ZeRO-2"]),
        ('{"train_batch_size": 7}', ["train_batch_size is 7, but the plan says", "pass --global-batch-size 7"]),
    ],
)
def test_a_bad_ds_config(refused: Callable[..., list[str]], tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(text)
    (message,) = refused("--ds_config", path, "--flops", "1e11")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("ds", "world_size", "flags", "parts"),
    [
        ("zero3_tp2_pp2", 3, [], ["world_size (3 ranks)", "multiple of", "= 4", "nearest world sizes: 4"]),
        ("zero3", 4, ["--pipeline-model-parallel-size", 4], ["(4 stages) must be at most shape.num_layers (2 layers)"]),
        ("zero3", 3, ["--tensor-model-parallel-size", 3], ["must divide shape.num_attention_heads (2 heads)"]),
        ("zero3", 1, ["--flops", "1e9"], ["1e+09 FLOPs)", "the smallest model", "the smallest budget that works"]),
        ("zero3", 1, ["--vocab-size", 10], ["--vocab-size is 10 pieces", "at least 320"]),
        ("zero3", 1, ["--held-out-fraction", 2], ["--held-out-fraction (2.0 of the documents)", "between 0 and 1"]),
        ("zero3", 1, ["--law", "chinchila"], ["hoffmann2022"]),
        ("zero3", 1, ["--data", "nowhere.txt"], ["nowhere.txt does not exist"]),
    ],
)
def test_a_run_that_cannot_be(
    refused: Callable[..., list[str]], ds_configs: Path, ds: str, world_size: int, flags: list[object], parts: list[str]
) -> None:
    lines = refused("--ds_config", ds_configs / f"{ds}.json", "--flops", "1e11", *flags, world_size=world_size)
    for part in parts:
        assert part in lines[0]


def test_zero_0_under_a_pipeline_names_zero_1(refused: Callable[..., list[str]], tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 0}, "chinchilla_ds": {"pipeline_model_parallel_size": 2}}')
    (message,) = refused("--ds_config", path, "--flops", "1e11", world_size=2)
    assert "nearest: zero_stage 1" in message


def test_text_that_is_not_there_or_empty(refused: Callable[..., list[str]], ds_configs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    lines = refused(
        "--ds_config", ds_configs / "zero3.json", "--flops", "1e11", "--data", "emty.txt", "empty.txt", "folder"
    )
    assert lines[0] == "emty.txt does not exist; did you mean 'empty.txt'?"
    assert lines[1] == "empty.txt is empty"
    assert lines[2].startswith("folder folder holds no file of a known type")


def test_an_output_below_a_file(refused: Callable[..., list[str]], ds_configs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (message,) = refused("--ds_config", ds_configs / "zero3.json", "--flops", "1e11", "--output", "file/runs")
    assert message == f"--output file/runs cannot be a folder: {tmp_path / 'file'} is a file; name another place"


def test_flags_beside_a_plan(refused: Callable[..., list[str]], ds_configs: Path, tmp_path: Path) -> None:
    config = RunConfig(compute_budget_flops=1e11, layout=LayoutConfig(zero_stage=3))
    made = make_plan(config, world_size=1, device="cpu")
    (tmp_path / "plan.json").write_text(made.to_json())
    with_plan = ["--ds_config", ds_configs / "zero3.json", "--plan", "plan.json"]
    assert refused(*with_plan, "--flops", "1e12", "--seed", 3) == [
        "--flops, --seed cannot be combined with --plan, which fixes that: drop it, or make another plan"
    ]
    (message,) = refused(*with_plan, world_size=2)
    assert "is for 1 ranks, and 2 were started" in message


def test_an_environment_that_is_half_a_launchers(
    refused: Callable[..., list[str]], ds_configs: Path, monkeypatch: pytest.MonkeyPatch, rank_zero_of: SetWorld
) -> None:
    rank_zero_of(1)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("MASTER_PORT", "http")
    assert main(["--ds_config", str(ds_configs / "zero3.json")]) == 2
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert main(["--ds_config", str(ds_configs / "zero3.json")]) == 2


@pytest.mark.parametrize(
    ("flags", "ds"),
    [
        (["--flop", "1"], {}),
        (["--flops", "nan"], {}),
        (["--learning-rate", "5"], {}),
        (["--plan", "nowhere.json"], {}),
        ([], {"zero_optimisation": {}}),
        ([], None),
    ],
)
def test_torch_is_not_imported_to_refuse(tmp_path: Path, flags: list[str], ds: object) -> None:
    (tmp_path / "ds.json").write_text("{" if ds is None else json.dumps(ds))
    program = (
        "import sys; from chinchilla_ds.cli.pretrain import main; code = main(sys.argv[1:]); "
        "sys.exit(code if not {'torch', 'numpy', 'deepspeed', 'megatron'} & sys.modules.keys() else 99)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--ds_config", "ds.json", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
