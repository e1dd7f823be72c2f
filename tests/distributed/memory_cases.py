"""The layouts on which the memory model is held against the live engine, and how that is done."""

import dataclasses
import logging
from typing import Any

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.budget.layout.rules import validate_layout
from chinchilla_ds.budget.memory.activations import activation_bytes
from chinchilla_ds.budget.memory.peak import estimate_stages
from chinchilla_ds.budget.memory.states import state_bytes
from chinchilla_ds.run_plan import MemoryBytes, ModelShape, Offload, Precision, Recompute, RunPlan
from chinchilla_ds.testing import run_on_ranks, tiny_plan
from tests.distributed.memory_accounting import RankMemory, measure, watch_allocator

COMPONENTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
TOLERANCE = 0.05
NOTABLE_SHARE = 0.05
"""Of the total: components below it are held to nothing by themselves."""
SHAPE = ModelShape(
    num_layers=4,
    hidden_size=128,
    ffn_hidden_size=448,  # gate and up, and the tables, are above ZeRO-3's threshold of 100,000 elements; others below
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=32,
    vocab_size=1024,
    padded_vocab_size=1024,
    seq_length=128,
)
_BF16, _FULL, _SELECTIVE = Precision.BF16, Recompute.FULL, Recompute.SELECTIVE
_TP, _PP, _DP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "data_parallel_size"
_OP = Recompute.SELECTIVE_OP
_VPP = "virtual_pipeline_model_parallel_size"
QUICK: dict[str, dict[str, Any]] = {
    "zero0": {},
    "zero0-recompute_full": {"recompute": _FULL},
    "zero1-dp2": {"zero_stage": 1, _DP: 2},
    "zero1-tp2-pp2": {"zero_stage": 1, _TP: 2, _PP: 2},
    "zero3-dp2": {"zero_stage": 3, _DP: 2},
}
SLOW: dict[str, dict[str, Any]] = {
    "zero0-one_micro_batch": {"gradient_accumulation_steps": 1},
    "zero0-recompute_selective": {"recompute": _SELECTIVE},
    "zero0-bf16": {"precision": _BF16},
    "zero0-tp2": {_TP: 2},
    "zero0-tp2-sp": {_TP: 2, "sequence_parallel": True},
    "zero0-multi_head": {"num_query_groups": 4},
    "zero0-qk_norm": {"qk_norm": True},
    "zero0-qk_norm-multi_head": {"qk_norm": True, "num_query_groups": 4},
    "zero0-qk_norm-tp2": {"qk_norm": True, _TP: 2},
    "zero0-qk_norm-bf16": {"qk_norm": True, "precision": _BF16},
    "zero0-qk_norm-recompute_selective": {"qk_norm": True, "recompute": _SELECTIVE},
    "zero1-pp2": {"zero_stage": 1, _PP: 2},
    "zero1-pp4": {"zero_stage": 1, _PP: 4},
    "zero1-pp4-uneven": {"zero_stage": 1, _PP: 4, "num_layers": 6},
    "zero3-pp4-uneven": {"zero_stage": 3, _PP: 4, "num_layers": 6},
    "zero1-pp2-vpp2": {"zero_stage": 1, _PP: 2, _VPP: 2},
    "zero1-pp2-recompute_full": {"zero_stage": 1, _PP: 2, "recompute": _FULL},
    "zero1-dp2-bf16-offload": {"zero_stage": 1, _DP: 2, "offload_optimizer": Offload.CPU, "precision": _BF16},
    "zero2-dp2": {"zero_stage": 2, _DP: 2},
    "zero2-dp2-bf16": {"zero_stage": 2, _DP: 2, "precision": _BF16},
    "zero2-dp2-offload": {"zero_stage": 2, _DP: 2, "offload_optimizer": Offload.CPU},
    "zero2-tp2-pp2-sp-bf16": {
        "zero_stage": 2,
        _TP: 2,
        _PP: 2,
        "sequence_parallel": True,
        "precision": _BF16,
        "micro_batch_size": 4,
    },
    "zero3-dp2-bf16": {"zero_stage": 3, _DP: 2, "precision": _BF16},
    "zero3-pp2-dp2": {"zero_stage": 3, _PP: 2, _DP: 2},
    "zero3-dp2-bf16-offload_all": {
        "zero_stage": 3,
        _DP: 2,
        "offload_optimizer": Offload.CPU,
        "offload_param": Offload.CPU,
        "precision": _BF16,
    },
}

BY_OPERATION: dict[str, dict[str, Any]] = {
    "zero0": {"recompute": _OP},
    "zero0-bf16": {"recompute": _OP, "precision": _BF16},
    "zero0-multi_head": {"recompute": _OP, "num_query_groups": 4},
    "zero1-tp2-sp": {"recompute": _OP, "zero_stage": 1, _TP: 2, "sequence_parallel": True},
    "zero1-pp2": {"recompute": _OP, "zero_stage": 1, _PP: 2},
    "zero3-dp2": {"recompute": _OP, "zero_stage": 3, _DP: 2},
}
"""Selective-op recomputation, whose saved outputs no hook of autograd sees."""


def plan_of(values: dict[str, Any]) -> RunPlan:
    """Return a plan of two sequences per micro-batch, four micro-batches, and `values`, which the planner accepts."""
    values = dict(values)
    ours = {name: values.pop(name) for name in ("num_query_groups", "qk_norm", "num_layers") if name in values}
    shape = dataclasses.replace(SHAPE, **ours)
    plan = tiny_plan(shape=shape, **{"micro_batch_size": 2, "gradient_accumulation_steps": 4, **values})
    validate_layout(shape=plan.shape, layout=plan.layout, precision=plan.precision, batch=plan.batch)
    return plan


def predicted(plan: RunPlan) -> tuple[MemoryBytes, ...]:
    """Return the model's estimate for torch's CPU kernels, of every pipeline stage."""
    return estimate_stages(
        shape=plan.shape, layout=plan.layout, batch=plan.batch, precision=plan.precision, device="cpu"
    )


def measured(plan: RunPlan, *, allocator: bool = False) -> list[RankMemory]:
    """Return what every rank of the live engine held in its third train step."""

    def run() -> RankMemory:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        from chinchilla_ds.distributed import groups
        from chinchilla_ds.engine.zero import TrainingEngine

        groups.initialize(layout=plan.layout)
        if allocator:
            watch_allocator()
        return measure(TrainingEngine(plan=plan, ds_config=_deepspeed_json(plan)))

    return run_on_ranks(run, plan.layout.world_size, timeout_s=280)


def _deepspeed_json(plan: RunPlan) -> dict[str, Any]:
    """Return the JSON that the planner emits; its buffers are what the model assumes."""
    ds = ds_config.emit(plan)
    for section in ("offload_optimizer", "offload_param"):
        if section in ds["zero_optimization"]:
            ds["zero_optimization"][section]["pin_memory"] = False
    return ds


def expected_in_step(plan: RunPlan, stage: int) -> int:
    """Return the bytes that a rank of `stage` should hold when an optimizer on the device steps."""
    layout = plan.layout
    sizes: dict[str, Any] = {
        "shape": plan.shape,
        "tensor": layout.tensor_model_parallel_size,
        "pipeline": layout.pipeline_model_parallel_size,
        "precision": plan.precision,
        "stage": stage,
    }
    state = state_bytes(
        data=layout.data_parallel_size,
        zero_stage=layout.zero_stage,
        offload_optimizer=layout.offload_optimizer,
        offload_param=layout.offload_param,
        **sizes,
    )
    activations = activation_bytes(
        virtual=layout.virtual_pipeline_model_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        recompute=layout.recompute,
        micro_batch_size=plan.batch.micro_batch_size,
        gradient_accumulation_steps=plan.batch.gradient_accumulation_steps,
        on_cpu=True,
        **sizes,
    )
    return state.weights + state.optimizer + state.step_buffers + activations.standing


def misses(expected: MemoryBytes, held: RankMemory) -> list[str]:
    """Return where the estimate is off by more than TOLERANCE: notable components, total, offloaded bytes."""
    peak = held.peak
    pairs = {name: (getattr(expected, name), getattr(peak, name)) for name in COMPONENTS}
    notable = {name: pair for name, pair in pairs.items() if max(pair) > NOTABLE_SHARE * peak.total}
    notable |= {"total": (expected.total, peak.total), "host": (expected.host, peak.host)}
    return [
        f"stage {held.stage} {name}: {model:,} bytes expected, {truth:,} held"
        for name, (model, truth) in notable.items()
        if abs(model - truth) > TOLERANCE * truth
    ]
