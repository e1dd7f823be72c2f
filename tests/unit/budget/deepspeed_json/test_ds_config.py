import copy
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json.fields import suggested_values
from chinchilla_ds.budget.deepspeed_json.resolve import (
    apply_to_config,
    emit,
    load_ds_config,
    main,
    resolve,
    shipped_configs,
    to_json,
)
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.cli.arguments import training_parser
from chinchilla_ds.cli.flags import flags_named
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.errors import DsConfigError
from chinchilla_ds.run_plan import Offload, Precision, Recompute, RunPlan


def plan_for(world_size: int = 1, device: str = "cpu", **layout: Any) -> RunPlan:
    return make_plan(RunConfig(layout=LayoutConfig(**layout)), world_size=world_size, device=device)


def problems_of(ds: dict[str, Any], plan: RunPlan | None = None) -> str:
    """Return the problems as the command line shows them."""
    with pytest.raises(DsConfigError) as caught, flags_named(training_parser()):
        resolve(ds, plan or plan_for(zero_stage=3))
    return str(caught.value)


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_load_reads_an_object(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('\ufeff{"zero_optimization": {"stage": 3}}', encoding="utf-8")
    assert load_ds_config(path) == {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": 1,\n "b": }', r"is not JSON: Expecting value at line 2 column 7"),
        (b"", r"is not JSON: Expecting value at line 1 column 1"),
        (b"[1, 2]", r"must hold a JSON object, not \[1, 2\]"),
        (b"\xff\xfe\x00", r"is not UTF-8: .* at byte 0"),
        (b'{"fp16": {}, "fp16": {}}', r"key 'fp16' occurs twice in one object"),
        (b'{"gradient_clipping": NaN}', r"NaN is not a finite number"),
    ],
)
def test_load_refuses(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    with pytest.raises(DsConfigError, match=expected):
        load_ds_config(path)


def test_load_refuses_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(DsConfigError, match="cannot be read: No such file"):
        load_ds_config(tmp_path / "missing.json")
    with pytest.raises(DsConfigError, match="cannot be read"):
        load_ds_config(tmp_path)


# ---- feeding the config ----------------------------------------------------------------------------------------------


def test_json_chooses_the_layout() -> None:
    ds = {
        "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "nvme"}},
        "bf16": {"enabled": True},
        "chinchilla_ds": {
            "tensor_model_parallel_size": 2,
            "pipeline_model_parallel_size": 3,
            "virtual_pipeline_model_parallel_size": 4,
            "sequence_parallel": True,
            "recompute": "selective",
        },
    }
    config = apply_to_config(RunConfig(seed=5), ds)
    assert config == RunConfig(
        seed=5,
        precision=Precision.BF16,
        layout=LayoutConfig(
            tensor_model_parallel_size=2,
            pipeline_model_parallel_size=3,
            virtual_pipeline_model_parallel_size=4,
            zero_stage=3,
            sequence_parallel=True,
            recompute=Recompute.SELECTIVE,
            offload_optimizer=Offload.CPU,
            offload_param=Offload.NVME,
        ),
    )


@pytest.mark.parametrize(
    ("ds", "precision"),
    [
        ({}, None),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}}, None),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": False}}, Precision.BF16),
        ({"bfloat16": {"enabled": True}}, Precision.BF16),
        ({"fp16": {"enabled": True}}, Precision.FP16),
        ({"bf16": {"enabled": False}}, Precision.FP32),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": False}}, Precision.FP32),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": "auto"}}, None),
        ({"fp16": {"enabled": False}}, None),
    ],
)
def test_json_chooses_the_precision(ds: dict[str, Any], precision: Precision | None) -> None:
    assert apply_to_config(RunConfig(), ds).precision is precision


def test_auto_and_absence_leave_the_config_alone() -> None:
    config = RunConfig(layout=LayoutConfig(zero_stage=2, tensor_model_parallel_size=2, recompute=Recompute.FULL))
    auto = {
        "zero_optimization": {"stage": "auto", "offload_param": {"device": "auto"}},
        "chinchilla_ds": {"tensor_model_parallel_size": "auto", "recompute": "auto", "sequence_parallel": "auto"},
    }
    assert apply_to_config(config, auto) == apply_to_config(config, {}) == config


def test_activation_checkpointing_alone_means_every_layer() -> None:
    section = {"activation_checkpointing": {"partition_activations": False}}
    assert apply_to_config(RunConfig(), section).layout.recompute is Recompute.FULL
    named = section | {"chinchilla_ds": {"recompute": "selective"}}
    assert apply_to_config(RunConfig(), named).layout.recompute is Recompute.SELECTIVE


def test_a_flag_that_disagrees_is_an_error_and_one_that_agrees_is_not() -> None:
    config = RunConfig(precision=Precision.FP32, layout=LayoutConfig(zero_stage=2))
    ds = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    assert apply_to_config(config, ds).layout.zero_stage == 3
    with pytest.raises(DsConfigError) as caught:
        apply_to_config(config, ds, explicit=frozenset({"zero_stage", "precision"}))
    assert caught.value.problems == (
        "`layout.zero_stage` is 2, but the ds_config's zero_optimization.stage means 3; drop that, or set "
        'zero_optimization.stage to "auto" or leave it out',
        '`precision` is "fp32", but the ds_config\'s bf16.enabled means "bf16"; drop that, or set bf16.enabled to '
        '"auto" or leave it out',
    )
    agreeing = replace(config, layout=LayoutConfig(zero_stage=3))
    assert apply_to_config(agreeing, ds, explicit=frozenset({"zero_stage"})).layout.zero_stage == 3


def test_values_of_the_wrong_kind_are_all_named() -> None:
    ds = {
        "zero_optimization": {"stage": "3", "offload_param": {"device": "gpu"}},
        "bf16": {"enabled": "yes"},
        "chinchilla_ds": {"tensor_model_parallel_size": 0, "sequence_parallel": 1, "recompute": "some"},
        "gradiant_clipping": 1.0,
    }
    with pytest.raises(DsConfigError) as caught:
        apply_to_config(RunConfig(), ds)
    assert len(caught.value.problems) == 7
    text = str(caught.value)
    for part in (
        "did you mean 'gradient_clipping'?",
        'zero_optimization.stage is "3"; it must be 0, 1, 2, 3 or "auto"',
        'zero_optimization.offload_param.device is "gpu"; it must be one of none, cpu, nvme or "auto"',
        'bf16.enabled is "yes"; it must be true, false or "auto"',
        "chinchilla_ds.tensor_model_parallel_size is 0; it must be a whole number of at least 1",
        'chinchilla_ds.sequence_parallel is 1; it must be true, false or "auto"',
        'chinchilla_ds.recompute is "some"; it must be one of none, selective, selective_op, full',
    ):
        assert part in text


def test_two_precisions_at_once() -> None:
    with pytest.raises(DsConfigError, match="both true"):
        apply_to_config(RunConfig(), {"bf16": {"enabled": True}, "fp16": {"enabled": True}})
    with pytest.raises(DsConfigError, match="two names of one section"):
        apply_to_config(RunConfig(), {"bf16": {}, "bfloat16": {}})


# ---- resolving -------------------------------------------------------------------------------------------------------


def test_auto_takes_the_plans_values() -> None:
    plan = plan_for(zero_stage=3)
    resolved = resolve(shipped_configs()["zero3"], plan)
    assert resolved == {
        "train_batch_size": plan.batch.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.batch.micro_batch_size,
        "gradient_accumulation_steps": plan.batch.gradient_accumulation_steps,
        "gradient_clipping": 1.0,
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": plan.optimizer.learning_rate, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1},
        },
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 2**19},  # the least; hidden_size squared above it
    }


def test_bucket_sizes_are_the_users_where_they_are_given_and_follow_the_hidden_size_where_not() -> None:
    plan = plan_for(zero_stage=3)
    wide = dataclasses.replace(plan, shape=dataclasses.replace(plan.shape, hidden_size=1024))
    auto = {
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    }
    assert resolve({"zero_optimization": {"stage": 3, **auto}}, wide)["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 1024 * 1024,
        "stage3_prefetch_bucket_size": 943_718,
        "stage3_param_persistence_threshold": 10_240,
    }
    given = {"stage": 3, "reduce_bucket_size": 12_345}
    assert resolve({"zero_optimization": given}, wide)["zero_optimization"] == given


@pytest.mark.parametrize(
    ("device", "layout", "overlaps"),
    [
        ("cuda", {"zero_stage": 1}, True),
        ("cuda", {"zero_stage": 2}, True),
        ("cpu", {"zero_stage": 1}, False),
        ("cuda", {"zero_stage": 1, "offload_optimizer": Offload.CPU}, False),
    ],
)
def test_gradients_are_reduced_beside_the_backward_pass_on_gpus(device, layout, overlaps) -> None:
    plan = plan_for(world_size=2, device=device, **layout)
    assert emit(plan)["zero_optimization"]["overlap_comm"] is overlaps
    given = {"zero_optimization": {"overlap_comm": not overlaps}}
    assert resolve(given, plan)["zero_optimization"]["overlap_comm"] is not overlaps, "the user's value is kept"
    alone = dataclasses.replace(plan, layout=dataclasses.replace(plan.layout, data_parallel_size=1))
    assert overlaps_reduction_of(alone) is False, "one rank reduces nothing"


def overlaps_reduction_of(plan: RunPlan) -> bool:
    values = {one.path[-1]: one.value for one in suggested_values(plan)}
    return bool(values["overlap_comm"])


def test_overlap_is_refused_where_it_would_leave_gradients_out() -> None:
    """ZeRO-1's last backward pass of a stage is that of one chunk."""
    plan = plan_for(
        world_size=4,
        zero_stage=1,
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        device="cuda",
    )
    assert emit(plan)["zero_optimization"]["overlap_comm"] is False
    problem = problems_of({"zero_optimization": {"stage": 1, "overlap_comm": True}}, plan)
    assert "zero_optimization.overlap_comm is true" in problem
    assert "one of its 2 chunks" in problem


def test_an_empty_json_gets_all_that_the_plan_decides() -> None:
    plan = plan_for(zero_stage=2, offload_optimizer=Offload.CPU, device="cuda")
    resolved = resolve({}, plan)
    assert resolved["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert resolved["bf16"] == {"enabled": True}
    assert resolved["gradient_clipping"] == 1.0
    assert "optimizer" not in resolved


def test_what_is_not_ours_passes_through_untouched(tmp_path: Path) -> None:
    ds = {
        "zero_optimization": {"stage": 3, "reduce_bucket_size": 500_000, "overlap_comm": True},
        "fp16": {"enabled": "auto", "loss_scale_window": 500},
        "csv_monitor": {"enabled": True, "output_path": str(tmp_path), "job_name": "x"},
        "comms_logger": {"enabled": False, "prof_ops": ["all_reduce"]},
        "communication_data_type": "fp32",
        "wall_clock_breakdown": True,
        "bfloat16": {"enabled": "auto", "immediate_grad_update": True},
        "optimizer": {"type": "adamw", "params": {"torch_adam": True}},
    }
    before = copy.deepcopy(ds)
    resolved = resolve(ds, plan_for(zero_stage=3))
    assert ds == before
    assert resolved["zero_optimization"] == ds["zero_optimization"]
    assert resolved["fp16"] == {"enabled": False, "loss_scale_window": 500}
    assert resolved["bf16"] == {"enabled": False, "immediate_grad_update": True}
    assert resolved["optimizer"]["params"]["torch_adam"] is True
    for key in ("csv_monitor", "comms_logger", "communication_data_type", "wall_clock_breakdown"):
        assert resolved[key] == ds[key]
    resolved["comms_logger"]["prof_ops"].append("broadcast")
    assert ds == before


def test_agreeing_concrete_values_are_accepted() -> None:
    plan = plan_for(zero_stage=3)
    ds = {"train_batch_size": plan.batch.global_batch_size, "gradient_clipping": 1, "zero_optimization": {"stage": 3}}
    assert resolve(ds, plan)["gradient_clipping"] == 1.0


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        (
            {"train_batch_size": 48},
            'train_batch_size is 48, but the plan says 16; set it to "auto", or pass --global-b',
        ),
        ({"train_micro_batch_size_per_gpu": 3}, 'but the plan says 16; set it to "auto", or pass --micro-batch-size 3'),
        (
            {"gradient_accumulation_steps": 3},
            "or pass --global-batch-size 48 and --micro-batch-size 16: 16 sequences x 3",
        ),
        (
            {"gradient_clipping": 0.5},
            'gradient_clipping is 0.5, but the plan says 1.0; set it to "auto", or pass --grad',
        ),
        ({"bf16": {"enabled": True}}, "bf16.enabled is true, but the plan says false"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, but the plan says false"),
        (
            {"zero_optimization": {"stage": 1}},
            'stage is 1, but the plan says 3; set it to "auto", or use the JSON that',
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}},
            'offload_param.device is "cpu", but the plan says "none"; set it to "auto", or use the JSON that',
        ),
        ({"optimizer": {"type": "Lamb"}}, 'optimizer.type is "Lamb", but the plan says "AdamW"'),
        ({"optimizer": {"params": {"lr": 0.5}}}, "or pass --learning-rate 0.5"),
        (
            {"optimizer": {"params": {"betas": [0.9, 0.999]}}},
            "optimizer.params.betas is [0.9, 0.999], but the plan says",
        ),
        ({"optimizer": {"params": {"eps": 1e-6}}}, "optimizer.params.eps is 1e-06, but the plan says 1e-08"),
        ({"optimizer": {"params": {"weight_decay": 0}}}, "optimizer.params.weight_decay is 0, but the plan says 0.1"),
        (
            {"chinchilla_ds": {"tensor_model_parallel_size": 2}},
            'tensor_model_parallel_size is 2, but the plan says 1; set it to "auto", or pass --tensor-model-parallel-s',
        ),
        ({"chinchilla_ds": {"sequence_parallel": True}}, 'says false; set it to "auto", or pass --sequence-parallel'),
        ({"chinchilla_ds": {"recompute": "full"}}, 'recompute is "full", but the plan says "none"'),
        ({"activation_checkpointing": {}}, "leave the section out, or pass --recompute full"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler cannot be set: the plan owns the learning-rate schedule"),
        ({"tensor_parallel": {"autotp_size": 2}}, "use chinchilla_ds.tensor_model_parallel_size"),
        ({"steps_per_print": "auto"}, 'steps_per_print is "auto", but the plan has no value for it'),
        ({"zero_optimisation": {}}, "did you mean 'zero_optimization'?"),
    ],
)
def test_contradictions(ds: dict[str, Any], expected: str) -> None:
    assert expected in problems_of(ds)


def test_all_contradictions_are_reported_at_once() -> None:
    ds = {"train_batch_size": 48, "zero_optimization": {"stage": "1"}, "scheduler": {}, "oops": 1}
    text = problems_of(ds)
    assert text.count("\n") == 3
    assert text.count("zero_optimization.stage") == 1


def test_nvme_needs_a_path() -> None:
    plan = plan_for(zero_stage=3, offload_optimizer=Offload.NVME)
    assert "zero_optimization.offload_optimizer.nvme_path is missing" in problems_of({}, plan)


# ---- emitting and shipping -------------------------------------------------------------------------------------------


def parsed_by_deepspeed(resolved: dict[str, Any]) -> Any:
    """Return DeepSpeed's own reading, which checks the batch triangle; without process groups it takes one DP rank."""
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig(resolved)


SHIPPED_LAYOUTS = {
    "zero1": (1, Precision.FP32),
    "zero2": (2, Precision.BF16),
    "zero3": (3, Precision.FP16),
    "zero3_offload": (3, Precision.BF16),
    "zero3_nvme": (3, Precision.BF16),
    "zero3_tp2_pp2": (3, Precision.FP32),
}


@pytest.mark.parametrize("name", shipped_configs())
def test_shipped_files_resolve_and_deepspeed_accepts_them(name: str) -> None:
    stage, precision = SHIPPED_LAYOUTS[name]
    ds = shipped_configs()[name]
    config = apply_to_config(RunConfig(precision=precision), ds)
    plan = make_plan(config, world_size=4 if name == "zero3_tp2_pp2" else 1, device="cpu")
    resolved = resolve(ds, plan)
    assert resolved == emit(plan)
    parsed = parsed_by_deepspeed(resolved)
    assert parsed.zero_optimization_stage == stage
    assert parsed.train_batch_size == plan.batch.global_batch_size
    assert parsed.gradient_accumulation_steps == plan.batch.gradient_accumulation_steps
    assert parsed.gradient_clipping == plan.optimizer.gradient_clipping
    assert parsed.bfloat16_config.enabled is (precision is Precision.BF16)
    assert parsed.float16_config.enabled is (precision is Precision.FP16)
    assert parsed.optimizer_params["lr"] == plan.optimizer.learning_rate
    offload = parsed.zero_config.offload_optimizer
    assert (offload.device if offload else "none") == plan.layout.offload_optimizer


def test_no_auto_is_left() -> None:
    plan = plan_for(
        zero_stage=3, offload_param=Offload.NVME, offload_optimizer=Offload.CPU, recompute=Recompute.SELECTIVE
    )
    text = to_json(emit(plan))
    assert "auto" not in text
    assert "chinchilla_ds" not in text
    assert '"activation_checkpointing": {}' in text
    assert '"aio"' in text


def test_clipping_that_is_off_is_written() -> None:
    """DeepSpeed clips at 1.0 where the key is missing."""
    plan = make_plan(RunConfig(gradient_clipping=0.0), world_size=1, device="cpu")
    assert parsed_by_deepspeed(emit(plan)).gradient_clipping == 0


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "new")]) == 0
    assert len(list((tmp_path / "new").glob("*.json"))) == len(shipped_configs())
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err
