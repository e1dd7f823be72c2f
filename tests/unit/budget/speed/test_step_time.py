import dataclasses
import math

import pytest

from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.speed.devices import Device, get_device
from chinchilla_ds.budget.speed.rates import make_machine
from chinchilla_ds.budget.speed.step_time import (
    DataParallelTime,
    MicroBatchTime,
    OptimizerTime,
    combine,
    data_parallel_time,
    micro_batch_time,
    optimizer_time,
)
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import BatchPlan, ModelShape, Offload, ParallelLayout, Precision, Recompute, StepTime
from tests.unit.budget.speed.step_times import estimate_step_time

GIGA = Device(
    name="Giga",
    bf16_flops_per_s=1e12,
    fp16_flops_per_s=1e12,
    fp32_flops_per_s=1e11,
    matmul_efficiency=0.5,
    memory_bytes=2**40,
    memory_bytes_per_s=1e12,
    intra_node_bytes_per_s=1e9,
    inter_node_bytes_per_s=1e8,
    host_bytes_per_s=2e9,
    source="made up: round numbers",
)
LINK = 0.8
"""Share of a link that collectives reach, typed again."""


def gpt(num_layers: int, hidden_size: int, heads: int, *, vocab: int, seq_length: int, **changes: int) -> ModelShape:
    """Return our decoder with the matmul weights of a GPT block: SwiGLU at 8/3 h has as many as GELU at 4 h."""
    values = {"ffn_hidden_size": round(8 * hidden_size / 3), "num_query_groups": heads, **changes}
    return ModelShape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        kv_channels=hidden_size // heads,
        vocab_size=vocab,
        padded_vocab_size=vocab,
        seq_length=seq_length,
        **values,
    )


def step(shape: ModelShape, device: Device, *, micro: int, batch: int, data: int = 1, **layout) -> StepTime:
    sizes = {"tensor_model_parallel_size": layout.pop("tensor", 1), "zero_stage": layout.pop("zero", 1)}
    sizes |= {"pipeline_model_parallel_size": layout.pop("pipeline", 1)}
    sizes |= {"virtual_pipeline_model_parallel_size": layout.pop("virtual", 1), "data_parallel_size": data}
    plan = BatchPlan(
        global_batch_size=batch,
        micro_batch_size=micro,
        gradient_accumulation_steps=batch // micro // data,
        train_iters=1,
    )
    precision, may_overlap = layout.pop("precision", Precision.BF16), layout.pop("may_overlap", True)
    return estimate_step_time(
        shape=shape,
        layout=ParallelLayout(**sizes, **layout),
        batch=plan,
        precision=precision,
        device=device,
        may_overlap=may_overlap,
    )


# Korthikanti et al. 2022 (arXiv:2205.05198), tables 3 and 5: A100, sequence parallel, selective recomputation.
KORTHIKANTI = [
    # layers, hidden, heads, TP, PP, chunks, micro-batch, batch, MFU
    (48, 6144, 64, 8, 1, 1, 4, 4, 41.5),
    (96, 12288, 96, 8, 8, 3, 1, 64, 51.4),
    (105, 20480, 128, 8, 35, 3, 1, 280, 56.0),
    (128, 25600, 160, 8, 64, 1, 1, 512, 56.3),
]


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "tensor", "pipeline", "virtual", "micro", "batch", "mfu"), KORTHIKANTI
)
def test_megatron_on_a100(layers, hidden, heads, tensor, pipeline, virtual, micro, batch, mfu):
    time = step(
        gpt(layers, hidden, heads, vocab=51200, seq_length=2048),
        get_device("a100"),
        micro=micro,
        batch=batch,
        tensor=tensor,
        pipeline=pipeline,
        virtual=virtual,
        sequence_parallel=True,
        recompute=Recompute.SELECTIVE,
    )
    assert time.mfu == pytest.approx(mfu / 100, rel=0.2)


@pytest.mark.parametrize(("data", "mfu"), [(64, 43), (128, 41)])
def test_llama_3_405b_on_h100(data, mfu):
    # Llama 3 (arXiv:2407.21783), table 4: TP 8, PP 16, batch of 16M tokens; chunks of one layer are our reading
    shape = gpt(126, 16384, 128, vocab=128256, seq_length=8192, ffn_hidden_size=53248, num_query_groups=8)
    time = step(
        shape,
        get_device("h100"),
        micro=1,
        batch=2048,
        data=data,
        tensor=8,
        pipeline=16,
        virtual=8,
        sequence_parallel=True,
    )
    assert time.mfu == pytest.approx(mfu / 100, rel=0.1)


# Narayanan et al. 2021 (arXiv:2104.04473), table 2: TFLOP/s per A100, recomputation counted. TP 8; no chunks named.
NARAYANAN = [
    (96, 12288, 96, 12, 4, 1536, 153),
    (96, 12288, 96, 12, 8, 1536, 149),
    (96, 12288, 96, 12, 16, 1536, 141),
    (105, 20480, 128, 35, 2, 2240, 171),
    (105, 20480, 128, 35, 4, 2240, 167),
    (105, 20480, 128, 35, 8, 2240, 159),
]


@pytest.mark.parametrize(("layers", "hidden", "heads", "pipeline", "data", "batch", "tera"), NARAYANAN)
def test_megatron_with_full_recomputation(layers, hidden, heads, pipeline, data, batch, tera):
    time = step(
        gpt(layers, hidden, heads, vocab=51200, seq_length=2048),
        get_device("a100"),
        micro=1,
        batch=batch,
        data=data,
        tensor=8,
        pipeline=pipeline,
        recompute=Recompute.FULL,
    )
    assert time.hfu == pytest.approx(tera / 312, rel=0.1)


@pytest.mark.parametrize(
    ("size", "recompute", "mfu"), [("8b", Recompute.SELECTIVE_OP, 58.2), ("70b", Recompute.FULL, 51.7)]
)
def test_torchtitan_on_64_a100(size, recompute, mfu):
    # torchtitan, docs/performance.md: Llama 3 under FSDP2, one sequence of 8192 per device
    layers, hidden, heads, ffn = {"8b": (32, 4096, 32, 14336), "70b": (80, 8192, 64, 28672)}[size]
    shape = gpt(layers, hidden, heads, vocab=128256, seq_length=8192, ffn_hidden_size=ffn, num_query_groups=8)
    time = step(shape, get_device("a100"), micro=1, batch=64, data=64, zero=3, recompute=recompute)
    assert time.mfu == pytest.approx(mfu / 100, rel=0.15)


# Bekman, ml-engineering, insights/when-to-upgrade-gpus: DeepSpeed 0.19.2 and torch 2.13, Llama 3.1 8B, 8 devices, one
# sequence each; TFLOP/s by 6 N + 6 s h per layer and token, attention by FlashAttention-3 (447 TFLOP/s of the forward
# and backward passes, 7/6 of that with the scores computed again) or 4 (834). ZeRO-3: full recomputation, CPU Adam.
DEEPSPEED = [
    ("h200", 8192, 2, 461),
    ("h200", 8192, 3, 141),
    ("h200", 32768, 3, 324),
    ("b200", 8192, 2, 778),
    ("b200", 8192, 3, 167),
    ("b200", 32768, 3, 524),
]


@pytest.mark.parametrize(("name", "length", "zero", "tera"), DEEPSPEED)
def test_deepspeed_on_one_node(name, length, zero, tera):
    shape = gpt(32, 4096, 32, vocab=128256, seq_length=length, ffn_hidden_size=14336, num_query_groups=8)
    measured_s = length * (6 * 8.03e9 + 6 * length * 4096 * 32) / (tera * 1e12)
    attention = {"h200": 447e12 / 989e12, "b200": 834e12 / 2250e12}[name] * 7 / 6
    device = dataclasses.replace(get_device(name), attention_efficiency=attention)
    offload = {"recompute": Recompute.FULL, "offload_optimizer": Offload.CPU} if zero == 3 else {}
    time = step(shape, device, micro=1, batch=8, data=8, zero=zero, may_overlap=False, **offload)
    assert time.total_s == pytest.approx(measured_s, rel=0.2)


MPT = {"1b": (24, 2048, 16), "3b": (32, 2560, 20), "7b": (32, 4096, 32), "13b": (40, 5120, 40)}
MPT |= {"30b": (48, 7168, 56), "70b": (80, 8192, 64)}
# llm-foundry, scripts/train/benchmarking/README.md: FSDP full sharding, which moves what ZeRO-3 moves.
LLM_FOUNDRY = [
    # device, model, sequence length, devices, micro-batch, batch, activation checkpointing, MFU
    ("a100", "70b", 2048, 64, 8, 2048, True, 53.33),
    ("a100", "70b", 2048, 32, 2, 1024, True, 48.56),
    ("a100", "30b", 4096, 8, 1, 168, True, 51.37),
    ("a100", "30b", 2048, 8, 3, 504, True, 55.30),
    ("a100", "13b", 4096, 8, 10, 240, True, 57.62),
    ("a100", "13b", 2048, 8, 2, 48, False, 59.57),
    ("a100", "7b", 2048, 8, 6, 96, False, 64.23),
    ("a100", "3b", 2048, 8, 10, 160, False, 62.11),
    ("a100", "1b", 2048, 8, 14, 448, False, 59.86),
    ("h100", "70b", 2048, 64, 8, 2048, True, 42.57),
    ("h100", "70b", 2048, 32, 2, 1024, True, 36.15),
    ("h100", "30b", 2048, 32, 14, 1344, True, 43.92),
    ("h100", "30b", 4096, 8, 1, 168, True, 35.86),
    ("h100", "30b", 2048, 8, 3, 504, True, 38.11),
    ("h100", "13b", 2048, 8, 2, 16, False, 39.79),
    ("h100", "7b", 2048, 8, 6, 48, False, 46.44),
    ("h100", "3b", 2048, 64, 6, 1152, False, 40.80),
    ("h100", "1b", 2048, 8, 14, 112, False, 41.82),
]


@pytest.mark.parametrize(("device", "model", "length", "devices", "micro", "batch", "recomputes", "mfu"), LLM_FOUNDRY)
def test_mpt_under_full_sharding(device, model, length, devices, micro, batch, recomputes, mfu):
    time = step(
        gpt(*MPT[model], vocab=50432, seq_length=length),
        get_device(device),
        micro=micro,
        batch=batch,
        data=devices,
        zero=3,
        recompute=Recompute.FULL if recomputes else Recompute.NONE,
    )
    assert time.mfu == pytest.approx(mfu / 100, rel=0.25)


SMALL = gpt(8, 1024, 8, vocab=1024, seq_length=1024)


def machine(world_size: int, per_node: int = 8, device: Device = GIGA):
    return make_machine(device=device, precision=Precision.BF16, world_size=world_size, devices_per_node=per_node)


def test_terms_add_up_and_utilisations_follow():
    time = step(SMALL, GIGA, micro=2, batch=64, data=2, tensor=2, pipeline=2, recompute=Recompute.FULL)
    terms = time.compute_s + time.tensor_parallel_s + time.pipeline_s + time.data_parallel_s + time.optimizer_s
    assert time.total_s == pytest.approx(terms, rel=1e-12)
    assert min(dataclasses.astuple(time)) > 0
    model = decoder_flops_per_token(shape=SMALL) * 64 * 1024
    assert time.mfu == pytest.approx(model / (time.total_s * 8 * 1e12), rel=1e-12)
    logits = 2 * 1024 * 1024
    forward = decoder_flops_per_token(shape=SMALL) / 3
    assert time.hfu / time.mfu == pytest.approx(1 + (forward - logits) / (3 * forward), rel=1e-12)


def test_selective_op_recomputation_repeats_what_is_cheap():
    """The projection of attention's output, and what only moves memory: 10 h + 8 (a + 2 g) d + 5 f elements."""
    none, by_operation, full = (
        step(SMALL, GIGA, micro=2, batch=64, recompute=kind)
        for kind in (Recompute.NONE, Recompute.SELECTIVE_OP, Recompute.FULL)
    )
    projection = machine(8).matmul_s(m=2 * 1024, k=1024, n=1024, width=2)
    moved = 2 * 2 * 1024 * (10 * 1024 + 8 * 3 * 1024 + 5 * 2731) / (1e12 * 0.8 * 0.88)
    assert by_operation.compute_s - none.compute_s == pytest.approx(32 * 8 * (projection + moved), rel=1e-9)
    assert none.total_s < by_operation.total_s < full.total_s
    assert by_operation.hfu / by_operation.mfu == pytest.approx(
        1 + 2 * 8 * 1024**2 / decoder_flops_per_token(shape=SMALL), rel=1e-12
    )


def test_selective_recomputation_repeats_attention_alone():
    none = step(SMALL, GIGA, micro=2, batch=64)
    selective = step(SMALL, GIGA, micro=2, batch=64, recompute=Recompute.SELECTIVE)
    full = step(SMALL, GIGA, micro=2, batch=64, recompute=Recompute.FULL)
    assert none.total_s < selective.total_s < full.total_s
    assert none.hfu == none.mfu
    attention = 4 * 8 * 1024 * 1024
    assert selective.hfu / selective.mfu == pytest.approx(
        1 + attention / decoder_flops_per_token(shape=SMALL), rel=1e-12
    )


@pytest.mark.parametrize(("pipeline", "virtual", "micro_batches"), [(4, 1, 8), (4, 2, 8), (8, 5, 16)])
def test_bubble_of_equal_stages(pipeline, virtual, micro_batches):
    # Narayanan et al. 2021 (arXiv:2104.04473), sections 2.2.1 and 2.2.2
    micro = MicroBatchTime(compute_s=3.0, tensor_parallel_s=1.0, other_stages_s=4.0 * (pipeline - 1), send_s=0.0)
    parts = combine(
        micro=micro,
        collectives=DataParallelTime(0.0, 0.0, 0.0),
        optimizer=OptimizerTime(0.0, 0.0),
        virtual=virtual,
        pipeline=pipeline,
        micro_batches=micro_batches,
    )
    busy = parts.compute_s + parts.tensor_parallel_s
    assert parts.pipeline_s / busy == pytest.approx((pipeline - 1) / (virtual * micro_batches), rel=1e-12)


@pytest.mark.parametrize(("vocab", "slowest"), [(1024, "full"), (64 * 1024, "last")])
def test_the_slowest_of_uneven_stages_counts(vocab, slowest):
    """Ten layers on four stages, 2, 3, 3, 2: a small head is faster than a layer, a large one slower."""
    shape = gpt(10, 1024, 8, vocab=vocab, seq_length=1024)
    one, two, piped = (
        micro_time(shape=dataclasses.replace(shape, num_layers=layers), pipeline=pipeline)
        for layers, pipeline in ((1, 1), (2, 1), (10, 4))
    )
    layer = two.compute_s - one.compute_s
    head = one.compute_s - layer
    assert (head < layer) == (slowest == "full")
    assert piped.compute_s == pytest.approx(3 * layer if slowest == "full" else 2 * layer + head, rel=1e-9)
    assert piped.compute_s + piped.other_stages_s == pytest.approx(10 * layer + head, rel=1e-9)


def micro_time(**changes) -> MicroBatchTime:
    values = {
        "shape": SMALL,
        "tensor": 1,
        "pipeline": 1,
        "data": 1,
        "sequence_parallel": False,
        "recompute": Recompute.NONE,
        "micro_batch_size": 4,
        "precision": Precision.BF16,
        "machine": machine(8),
    }
    return micro_batch_time(**{**values, **changes})


@pytest.mark.parametrize(("tensor", "rate"), [(2, 1e9), (8, 1e9), (16, 8e8)])
def test_tensor_parallel_volume(tensor, rate):
    """Four all-reduces per layer, each 2 (t - 1) / t of T h; 16 ranks leave the node through its eight cards."""
    time = micro_time(tensor=tensor, machine=machine(16))
    message = 2 * 4 * 1024 * 1024
    layer = 4 * 2 * (tensor - 1) / tensor * message / (rate * LINK)
    assert time.tensor_parallel_s == pytest.approx((8 + 0.5) * layer, rel=0.01)  # latencies are the rest


def test_full_recomputation_repeats_the_forward_collectives():
    none, full = (micro_time(tensor=8, recompute=kind).tensor_parallel_s for kind in (Recompute.NONE, Recompute.FULL))
    assert full / none == pytest.approx((8 * 6 + 2) / (8 * 4 + 2), rel=1e-12)


def test_sequence_parallelism_splits_what_tensor_parallelism_leaves_whole():
    whole, split = (micro_time(tensor=8, sequence_parallel=flag) for flag in (False, True))
    assert split.tensor_parallel_s == whole.tensor_parallel_s
    moved = 3 * 8 * 2 * 4096 * 10 * 1024 * (1 - 1 / 8)  # forward and twice backward, 8 layers, 2 bytes, 4096 tokens
    assert whole.compute_s - split.compute_s == pytest.approx(moved / (1e12 * 0.8 * 0.88), rel=1e-9)


def test_attention_counts_the_causal_half_and_five_matmuls_backward():
    fast, slow = (dataclasses.replace(GIGA, attention_efficiency=share) for share in (0.8, 0.4))
    times = [micro_time(machine=machine(8, device=device)).compute_s for device in (slow, fast)]
    flops = 8 * 4096 * 4 * (1025 / 2) * 1024 * 3.5
    assert times[0] - times[1] == pytest.approx(flops / 1e12 / 0.88 * (1 / 0.4 - 1 / 0.8), rel=1e-9)


def reduced(
    zero: int, *, tensor: int = 1, pipeline: int = 1, data: int = 8, world: int = 8, overlaps: bool = False
) -> DataParallelTime:
    return data_parallel_time(
        shape=SMALL,
        tensor=tensor,
        pipeline=pipeline,
        data=data,
        zero_stage=zero,
        precision=Precision.BF16,
        machine=machine(world),
        overlaps=overlaps,
    )


LAYER_PARAMS = 4 * 1024**2 + 3 * 1024 * 2731 + 2 * 1024
PARAMS = 8 * LAYER_PARAMS + 2 * 1024 * 1024 + 1024


def test_zero_volumes():
    """Rajbhandari et al. 2020 (arXiv:1910.02054), section 7: 2 P per reduction, P per gather, 3 P for ZeRO-3."""
    one = 7 / 8 * 2 * PARAMS / (1e9 * LINK)
    assert reduced(0) == pytest.approx((2 * one, 0, 0, 0), rel=0.02)
    assert reduced(1) == pytest.approx((3 * one, 0, 0, 0), rel=0.02)
    assert reduced(2) == pytest.approx((one, 2 * one, 0, 0), rel=0.02)
    assert reduced(3)[:2] == pytest.approx((0, 3 * one), rel=0.02)
    assert reduced(3).hidden_share > 0
    assert reduced(1, data=1) == (0, 0, 0, 0)


def test_overlap_moves_the_reduction_beside_the_backward_pass():
    """ZeRO-1 reduces in the step's last micro-batch, ZeRO-2 in each; the volume stays. The gather hides nowhere."""
    one = 7 / 8 * 2 * PARAMS / (1e9 * LINK)
    first, second = reduced(1, overlaps=True), reduced(2, overlaps=True)
    assert (first.per_step_s, first.last_micro_batch_s) == pytest.approx((one, 2 * one), rel=0.02)
    assert (second.per_step_s, second.per_micro_batch_s) == pytest.approx((one, 2 * one), rel=0.02)
    assert 0 < first.hidden_share == second.hidden_share < reduced(3).hidden_share
    for zero in (1, 2):
        slow, fast = (joined(reduced(zero, overlaps=overlaps)) for overlaps in (False, True))
        assert fast.data_parallel_s == pytest.approx(slow.data_parallel_s - (1, 3)[zero - 1] * 0.85 * 2 * one, rel=0.02)


def joined(collectives: DataParallelTime):
    """Return the terms of three micro-batches whose computation takes a second, longer than any traffic."""
    return combine(
        micro=MicroBatchTime(compute_s=1.0, tensor_parallel_s=0.0, other_stages_s=0.0, send_s=0.0),
        collectives=collectives,
        optimizer=OptimizerTime(0.0, 0.0),
        virtual=1,
        pipeline=1,
        micro_batches=3,
    )


@pytest.mark.parametrize(("traffic", "costs"), [(2.0, 2 * 0.15), (10.0, 10 - 7 * 0.85)])
def test_hidden_traffic_costs_a_little(traffic, costs):
    """Ten seconds of computation hide seven; what is hidden costs 15 % (Calculon's processor_usage)."""
    parts = combine(
        micro=MicroBatchTime(compute_s=10.0, tensor_parallel_s=0.0, other_stages_s=0.0, send_s=0.0),
        collectives=DataParallelTime(per_step_s=1.0, per_micro_batch_s=traffic, hidden_share=0.7),
        optimizer=OptimizerTime(0.0, 0.0),
        virtual=1,
        pipeline=1,
        micro_batches=3,
    )
    assert parts.data_parallel_s == pytest.approx(1 + 3 * costs, rel=1e-12)


def test_zero3_hides_nothing_under_a_pipeline():
    assert reduced(3, pipeline=2, data=4).hidden_share == 0


def test_zero3_gathers_for_every_micro_batch():
    few, many = (step(SMALL, GIGA, micro=1, batch=16 * count, data=16, zero=3) for count in (1, 8))
    assert many.data_parallel_s == pytest.approx(8 * few.data_parallel_s, rel=1e-9)
    few, many = (step(SMALL, GIGA, micro=1, batch=16 * count, data=16, zero=1) for count in (1, 8))
    assert many.data_parallel_s == few.data_parallel_s > 0


def test_groups_that_cross_nodes():
    """Megatron's order tp-cp-ep-dp-pp: with TP 8 a node holds one member of each data-parallel group: one card."""
    inside, outside = reduced(1, tensor=1, data=8), reduced(1, tensor=8, data=8, world=64)
    bytes_inside, bytes_outside = 7 / 8 * 2 * PARAMS, 7 / 8 * 2 * PARAMS / 8
    assert inside.per_step_s == pytest.approx(3 * bytes_inside / (1e9 * LINK), rel=0.02)
    assert outside.per_step_s == pytest.approx(3 * bytes_outside / (1e8 * LINK), rel=0.02)
    four = reduced(1, tensor=2, data=32, world=64)
    assert four.per_step_s == pytest.approx(3 * 31 / 32 * 2 * PARAMS / 2 / (4e8 * LINK), rel=0.02)


def test_all_nodes_hold_as_many():
    assert make_machine(device=get_device("gb200"), precision=Precision.BF16, world_size=1024).devices_per_node == 64
    assert machine(12).devices_per_node == 6
    assert machine(4).devices_per_node == 4


def test_a_pipeline_that_leaves_the_node_sends_through_the_network():
    """Sixteen ranks, eight to a node: with four stages of four the second sends to the third over the network."""
    message = 2 * 4096 * 1024
    for data, pipeline, rate in ((4, 2, 1e9), (4, 4, 1e8)):
        time = micro_time(pipeline=pipeline, data=data, machine=machine(16))
        assert time.send_s == pytest.approx(2 * message / (rate * LINK), rel=0.01)


def adam(zero: int, **offload: Offload) -> OptimizerTime:
    values = {"offload_optimizer": Offload.NONE, "offload_param": Offload.NONE, **offload}
    return optimizer_time(
        shape=SMALL,
        tensor=1,
        pipeline=1,
        data=8,
        zero_stage=zero,
        precision=Precision.BF16,
        machine=machine(8),
        **values,
    )


def test_optimizer_step_is_partitioned_and_offload_costs():
    memory = 1e12 * 0.8 * 0.88  # bytes/s
    later = [adam(zero).per_micro_batch_s * memory / PARAMS for zero in range(4)]
    assert later == pytest.approx([6, 6, 8 + 14 / 8, 24 - 2 / 8], rel=1e-9)
    one = [(adam(zero).per_step_s + adam(zero).per_micro_batch_s) * memory / PARAMS for zero in range(4)]
    assert one == pytest.approx([62 + 12, 74 / 8 + 10 + 6 / 8, 74 / 8 + 8 + 8 / 8, 70 / 8 + 24 - 4 / 8], rel=1e-9)
    cpu, nvme = (adam(3, offload_optimizer=place) for place in (Offload.CPU, Offload.NVME))
    assert adam(3).per_step_s < cpu.per_step_s < nvme.per_step_s
    gathered = adam(3, offload_param=Offload.CPU)
    fetched = gathered.per_micro_batch_s - adam(3).per_micro_batch_s
    assert fetched == pytest.approx(2 * 2 * PARAMS / 8 / (2e9 * LINK), rel=1e-9)


def test_cpu_adam_is_shared_by_the_devices_of_a_machine():
    """ZeRO-Offload (arXiv:2101.06840), table 4: 4 billion parameters in 1.03 s."""
    offloaded = adam(1, offload_optimizer=Offload.CPU)
    transfers = 2 * 2 * PARAMS / 8 / (2e9 * LINK)
    bucket = (10 + 6 / 8 - 6) * PARAMS / (1e12 * 0.8 * 0.88)  # of the first micro-batch, which adds to nothing
    assert offloaded.per_step_s - transfers - bucket == pytest.approx(PARAMS / 4e9 * 1.03, rel=0.05)


def test_fp32_runs_at_its_own_rate_and_moves_twice_the_bytes():
    half, full = (
        step(SMALL, GIGA, micro=4, batch=32, data=8, precision=kind) for kind in (Precision.BF16, Precision.FP32)
    )
    assert full.compute_s > 5 * half.compute_s
    assert full.data_parallel_s == pytest.approx(2 * half.data_parallel_s, rel=0.02)


@pytest.mark.parametrize(
    "missing",
    [
        "bf16_flops_per_s",
        "memory_bytes_per_s",
        "intra_node_bytes_per_s",
        "inter_node_bytes_per_s",
        "host_bytes_per_s",
    ],
)
def test_a_rate_that_is_not_known_is_not_guessed(missing):
    device = dataclasses.replace(GIGA, **{missing: None})
    with pytest.raises(ConfigError, match=f"device Giga has no {missing}: a step's time cannot be estimated"):
        step(SMALL, device, micro=1, batch=16, data=16)


def test_one_node_needs_no_network():
    device = dataclasses.replace(GIGA, inter_node_bytes_per_s=None)
    assert math.isfinite(step(SMALL, device, micro=1, batch=8, data=8).total_s)
    with pytest.raises(ConfigError):
        step(SMALL, get_device("cpu"), micro=1, batch=1)
