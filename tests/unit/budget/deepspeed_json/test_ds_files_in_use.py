"""DeepSpeed files as they are found beside training scripts: taken, or refused key by key, each once."""

from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import apply_to_config, resolve
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import DsConfigError

AUTO_ADAMW = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
AUTO_BATCH = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
AUTO_FP16 = {
    "enabled": "auto",
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
WARMUP = {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}}

TAKEN: dict[str, dict[str, Any]] = {
    "trainer_zero3": {
        **AUTO_BATCH,
        "fp16": AUTO_FP16,
        "bf16": {"enabled": "auto"},
        "optimizer": AUTO_ADAMW,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 1e9,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_max_live_parameters": 1e9,
            "stage3_max_reuse_distance": 1e9,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "steps_per_print": 2000,
        "wall_clock_breakdown": False,
    },
    "trainer_zero2_cpu": {
        **AUTO_BATCH,
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "torch_adam": True}},
        "zero_optimization": {
            "stage": 2,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "allgather_partitions": True,
            "allgather_bucket_size": 2e8,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 2e8,
            "contiguous_gradients": True,
            "round_robin_gradients": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    },
    "launcher_with_autos": {
        **AUTO_BATCH,
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": {"device": "auto", "nvme_path": "auto"},
            "offload_param": {"device": "auto", "nvme_path": "auto"},
            "stage3_gather_16bit_weights_on_model_save": "auto",
            "sub_group_size": "auto",
        },
        "steps_per_print": 1_000_000,
    },
    "switched_off": {
        "zero_optimization": {"stage": 1, "elastic_checkpoint": False, "load_from_fp32_weights": True},
        "autotuning": {"enabled": False, "fast": True},
        "flops_profiler": {"enabled": False, "profile_step": 1, "module_depth": -1, "top_modules": 1, "detailed": True},
        "torch_autocast": {"enabled": False},
        "wandb": {"enabled": False, "project": "p", "group": None},
        "comms_logger": {"enabled": False, "verbose": False, "prof_all": True, "debug": False},
        "prescale_gradients": False,
        "data_types": {"grad_accum_dtype": "fp32"},
        "timers": {"throughput": {"enabled": True, "synchronized": True}},
        "dataloader_drop_last": True,
        "communication_data_type": None,
    },
    "pretraining_of_old": {
        "zero_optimization": {
            "stage": 1,
            "allgather_partitions": True,
            "allgather_bucket_size": 500000000,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": 500000000,
            "contiguous_gradients": True,
        },
        "gradient_clipping": 1.0,
        "optimizer": {"type": "Adam", "params": {"adam_w_mode": True, "bias_correction": True}},
        "activation_checkpointing": {
            "partition_activations": True,
            "contiguous_memory_optimization": True,
            "synchronize_checkpoint_boundary": False,
            "number_checkpoints": None,
            "profile": False,
        },
        "wall_clock_breakdown": True,
    },
}

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "trainer_with_scheduler": (TAKEN["trainer_zero3"] | {"scheduler": WARMUP}, ["scheduler"]),
    "trainer_with_apex": (
        AUTO_BATCH | {"amp": {"enabled": "auto", "opt_level": "auto"}, "zero_optimization": {"stage": 1}},
        ["amp"],
    ),
    "example_with_values": (
        {
            "train_batch_size": 64,
            "train_micro_batch_size_per_gpu": 8,
            "optimizer": {
                "type": "Adam",
                "params": {"lr": 1e-3, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7},
            },
            "gradient_clipping": 1.0,
            "prescale_gradients": False,
            "bf16": {"enabled": False},
            "zero_optimization": {"stage": 0},
            "wall_clock_breakdown": False,
        },
        ["train_batch_size", "train_micro_batch_size_per_gpu"],  # the optimizer's settings are taken
    ),
    "curriculum": (
        {
            "data_efficiency": {"enabled": True, "data_sampling": {"enabled": True}},
            "curriculum_learning": {"enabled": True, "curriculum_type": "seqlen"},
            "progressive_layer_drop": {"enabled": True, "theta": 0.5},
        },
        ["data_efficiency", "curriculum_learning", "progressive_layer_drop"],
    ),
    "compression": (
        {
            "optimizer": {
                "type": "OneBitLamb",
                "params": {"lr": 11e-3, "max_coeff": 0.3, "min_coeff": 0.01, "freeze_step": 1000, "factor_max": 4.0},
            },
            "compression_training": {"weight_quantization": {}},
            "communication_data_type": "int8",
        },
        ["optimizer.type", "compression_training", "communication_data_type"],
    ),
    "reinforcement": (
        {
            "zero_optimization": {"stage": 3, "stage3_gather_fp16_weights_on_model_save": True, "cpu_offload": False},
            "hybrid_engine": {"enabled": True, "max_out_tokens": 512, "inference_tp_size": 1},
            "tensorboard": {"enabled": False, "output_path": "tb", "job_name": "x"},
        },
        [
            "zero_optimization.stage3_gather_fp16_weights_on_model_save",
            "zero_optimization.cpu_offload",
            "hybrid_engine",
        ],
    ),
    "quantised_communication": (
        {
            "zero_optimization": {
                "stage": 3,
                "zero_quantized_weights": True,
                "zero_quantized_gradients": True,
                "zero_hpz_partition_size": 8,
                "mics_shard_size": 8,
            }
        },
        [
            "zero_optimization.zero_quantized_weights",
            "zero_optimization.zero_quantized_gradients",
            "zero_optimization.zero_hpz_partition_size",
            "zero_optimization.mics_shard_size",
        ],
    ),
    "framework_keys": (
        {
            "zero_optimization": {"stage": 2, "cpu_offload": True},
            "fp16": {"enabled": True, "type": "fp16", "auto_cast": False},
            "fp32_allreduce": True,
            "sparse_attention": {"mode": "fixed"},
            "pipeline": {"pipe_partitioned": True},
            "checkpoint": {"tag_validation": "Warn", "load_universal": True, "use_node_local_storage": True},
        },
        [
            "zero_optimization.cpu_offload",
            "fp16.type",
            "fp32_allreduce",
            "sparse_attention",
            "pipeline",
            "checkpoint.tag_validation",
            "checkpoint.load_universal",
            "checkpoint.use_node_local_storage",
        ],
    ),
    "half_of_the_memory": (
        {
            "bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": {"device": "cpu", "ratio": 0.3, "super_offload": True, "cpuadam_cores_perc": 0.9},
                "zenflow": {"topk_ratio": 0.1},
            },
            "compile": {"deepcompile": True},
        },
        [
            "bf16.bf16_master_weights_and_grads",
            "bf16.bf16_optimizer_states",
            "zero_optimization.offload_optimizer.ratio",
            "zero_optimization.offload_optimizer.super_offload",
            "zero_optimization.offload_optimizer.cpuadam_cores_perc",
            "zero_optimization.zenflow",
            "compile",
        ],
    ),
    "parallelism_of_deepspeed": (
        {
            "tensor_parallel": {"autotp_size": 2, "preset_model": "llama"},
            "sequence_parallel_size": 2,
            "data_parallel_size": 2,
            "expert_parallel": {"enabled": True},
        },
        ["tensor_parallel", "sequence_parallel_size", "data_parallel_size", "expert_parallel"],
    ),
    "elastic": (
        {
            "elasticity": {"enabled": True, "max_train_batch_size": 2000},
            "nebula": {"enabled": True},
            "datastates_ckpt": {"host_cache_size": 16},
            "sparse_gradients": True,
            "eigenvalue": {"enabled": False},
        },
        ["elasticity", "nebula", "datastates_ckpt", "sparse_gradients", "eigenvalue"],
    ),
}


def answer(ds: dict[str, Any]) -> list[str]:
    """Return what a user is told: of the JSON alone, or else of the JSON and the plan; nothing where it trains."""
    try:
        plan = make_plan(apply_to_config(RunConfig(), ds), world_size=1, device="cpu")
        resolve(ds, plan)
    except DsConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("name", TAKEN)
def test_files_that_ask_for_what_there_is_are_taken(name: str) -> None:
    assert answer(TAKEN[name]) == []


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_ask_for_more_are_refused_key_by_key(name: str) -> None:
    ds, keys = REFUSED[name]
    problems = answer(ds)
    assert sorted(problem.split(" ", 1)[0] for problem in problems) == sorted(keys), "\n".join(problems)
