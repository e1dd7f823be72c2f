"""Keys that are right by themselves and wrong together, with the plan, or on this machine."""

from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json import conflicts as ds_conflicts
from chinchilla_ds.budget.deepspeed_json.resolve import apply_to_config, resolve
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.errors import DsConfigError
from chinchilla_ds.run_plan import Offload, Precision


def problems_of(
    ds: dict[str, Any], *, world_size: int = 1, precision: Precision | None = None, **layout: Any
) -> tuple[str, ...]:
    config = RunConfig(layout=LayoutConfig(**layout), precision=precision)
    plan = make_plan(config, world_size=world_size, device="cpu")
    try:
        resolve(ds, plan)
    except DsConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("section", ["tensorboard", "wandb", "comet"])
def test_a_monitor_without_its_package_is_refused_before_a_plan(section: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ds = {section: {"enabled": True}}
    with pytest.raises(DsConfigError, match=rf"{section}.enabled is true, but the package \w+ is not installed; inst"):
        apply_to_config(RunConfig(), ds)
    apply_to_config(RunConfig(), {section: {"enabled": False}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.47.1")
    apply_to_config(RunConfig(), ds)


def test_comet_of_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3.40.9")
    [problem] = ds_conflicts.own_conflicts({"comet": {"enabled": True}})
    assert "comet_ml 3.40.9 is installed, and DeepSpeed needs 3.41.0" in problem


def test_a_monitor_must_have_a_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    (tmp_path / "file").touch()
    good, bad = tmp_path / "new" / "deeper", tmp_path / "file" / "x"
    assert not list(ds_conflicts.own_conflicts({"csv_monitor": {"enabled": True, "output_path": str(good)}}))
    assert not list(ds_conflicts.own_conflicts({"csv_monitor": {"enabled": True}}))
    [problem] = ds_conflicts.own_conflicts({"csv_monitor": {"enabled": True, "output_path": str(bad)}})
    assert "csv_monitor.output_path is" in problem
    [problem] = ds_conflicts.own_conflicts({"tensorboard": {"enabled": True, "output_path": "x" * 300}})
    assert "which cannot be created or written" in problem
    profiler = {"enabled": True, "output_file": str(bad)}
    [problem] = ds_conflicts.own_conflicts({"flops_profiler": profiler})
    assert "leave it out to print" in problem
    assert not list(ds_conflicts.own_conflicts({"flops_profiler": profiler | {"output_file": str(good)}}))
    assert not good.exists()


def test_reports_that_nobody_would_see() -> None:
    quiet = {"dump_state": True, "comms_logger": {"enabled": True, "verbose": True}}
    problems = problems_of(quiet)
    assert [problem.split(" ", 1)[0] for problem in problems] == ["dump_state", "comms_logger.enabled"]
    assert all('add "log_level": "info"' in problem for problem in problems)
    assert problems_of(quiet | {"log_level": "INFO"}) == ()
    [problem] = problems_of({"comms_logger": {"enabled": True}, "log_level": "info"})
    assert "set verbose to true" in problem
    assert problems_of({"wall_clock_breakdown": True, "memory_breakdown": True}) == ()  # printed at any level


@pytest.mark.parametrize("name", ["contiguous_memory_optimization", "cpu_checkpointing"])
def test_recomputation_that_needs_partitions(name: str) -> None:
    section = {name: True}
    [problem] = problems_of({"activation_checkpointing": section}, recompute="full")
    assert "only with partition_activations; set it true too" in problem
    assert problems_of({"activation_checkpointing": section | {"partition_activations": True}}, recompute="full") == ()


def test_contiguous_recomputation_holds_one_forward_pass() -> None:
    section = {"contiguous_memory_optimization": True, "partition_activations": True}
    few = {"activation_checkpointing": section | {"number_checkpoints": 1}}
    [problem] = problems_of(few, recompute="full")
    assert "number_checkpoints is 1, but the contiguous buffer must hold one for each of the" in problem
    [problem] = problems_of(
        {"activation_checkpointing": section},
        recompute="full",
        world_size=2,
        zero_stage=1,
        pipeline_model_parallel_size=2,
    )
    assert "a pipeline of 2 stages has several in flight" in problem


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_scaling_before_the_reduction(stage: int) -> None:
    scatters = {"zero_optimization": {"reduce_scatter": True}}
    reduces = {"zero_optimization": {"reduce_scatter": False}}
    for ds, refused in (({}, stage >= 2), (scatters, stage >= 2), (reduces, False)):
        problems = problems_of(ds | {"prescale_gradients": True}, zero_stage=stage)
        assert bool(problems) == refused
        assert all(problem.startswith("prescale_gradients is true; DeepSpeed does not") for problem in problems)
    for ds, refused in (({}, stage >= 2), (reduces, stage == 3)):
        assert bool(problems_of(ds | {"gradient_predivide_factor": 2.0}, zero_stage=stage)) == refused
    assert problems_of({"prescale_gradients": False, "gradient_predivide_factor": 1}, zero_stage=stage) == ()


@pytest.mark.parametrize(
    ("stage", "precision", "given", "expected"),
    [
        (1, Precision.BF16, "fp32", None),
        (1, Precision.BF16, "bf16", None),
        (3, Precision.FP16, "fp32", None),
        (2, Precision.BF16, "fp16", "accumulated in the run's precision, bf16, or in fp32"),
        (2, Precision.FP32, "bf16", "accumulated in the run's precision, fp32, or in fp32"),
        (0, Precision.BF16, "fp32", "without ZeRO, DeepSpeed accumulates gradients in the run's own precision"),
        (0, Precision.BF16, "bf16", None),
    ],
)
def test_type_of_accumulated_gradients(stage: int, precision: Precision, given: str, expected: str | None) -> None:
    problems = problems_of({"data_types": {"grad_accum_dtype": given}}, zero_stage=stage, precision=precision)
    assert bool(problems) == (expected is not None)
    assert expected is None or expected in problems[0]


def test_types_that_the_plan_decides() -> None:
    assert problems_of({"data_types": {"param_dtype": "bf16"}}, precision=Precision.BF16) == ()
    [problem] = problems_of({"data_types": {"param_dtype": "bf16"}}, precision=Precision.FP32)
    assert 'data_types.param_dtype is "bf16", but the plan says "fp32"' in problem
    [problem] = problems_of({"vocabulary_size": 77})
    assert "vocabulary_size is 77, but the plan says" in problem


def test_buckets_and_nvme() -> None:
    [problem] = problems_of({"zero_optimization": {"allgather_bucket_size": 5e8 + 1}}, zero_stage=1)
    assert "must be even; nearest: 500000000 and 500000002" in problem
    offload = {"offload_optimizer": {"device": "nvme", "nvme_path": "auto", "buffer_count": 3}}
    problems = problems_of(
        {"zero_optimization": offload, "aio": {"use_gds": True}}, zero_stage=3, offload_optimizer=Offload.NVME
    )
    assert [problem.split(" ", 1)[0] for problem in problems] == [
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_optimizer.buffer_count",
        "aio.use_gds",
    ]


# ---- advice about the batch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        ({"gradient_accumulation_steps": 100, "train_micro_batch_size_per_gpu": 1}, (200, 1)),
        ({"gradient_accumulation_steps": 3}, (6 * 8, 8)),
        ({"gradient_accumulation_steps": 3, "train_batch_size": 24}, (24, 4)),
    ],
)
def test_advice_on_accumulation_leads_to_a_plan_that_agrees(ds: dict[str, int], expected: tuple[int, int]) -> None:
    plan = make_plan(RunConfig(), world_size=2, device="cpu")
    assert plan.batch.micro_batch_size == 8
    with pytest.raises(DsConfigError) as caught:
        resolve(ds, plan)
    global_batch_size, micro_batch_size = expected
    advice = f"pass `global_batch_size={global_batch_size}` and `micro_batch_size={micro_batch_size}`: "
    assert any(advice in problem for problem in caught.value.problems), caught.value.problems
    followed = RunConfig(
        compute_budget_flops=1e14, global_batch_size=global_batch_size, micro_batch_size=micro_batch_size
    )
    resolved = resolve(ds, make_plan(followed, world_size=2, device="cpu"))
    assert resolved["gradient_accumulation_steps"] == ds["gradient_accumulation_steps"]


def test_batch_sizes_that_contradict_one_another_are_not_advised() -> None:
    ds = {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}
    problems = problems_of(ds)
    assert any(
        'set it or train_batch_size to "auto": 4 sequences x 4 micro-batches x 1 data-parallel ranks are not 32' in text
        for text in problems
    )
    assert not any("`global_batch_size=16`" in text for text in problems)
