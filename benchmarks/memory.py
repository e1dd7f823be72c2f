"""Memory of one rank: what the model expects, what the live engine holds, what DeepSpeed's own estimators say.

    python benchmarks/memory.py [--case zero1-dp2 ...] [--json FILE]      on CPU, by accounting of the engine's tensors
    python benchmarks/memory.py --cuda zero1 [--json FILE]                on one GPU, by torch.cuda.max_memory_allocated

On CPU every case of tests/distributed/memory_cases.py runs three steps on up to four ranks; a few minutes in all. On
CUDA one case of CUDA_CASES runs in this process; start it again for each.

DeepSpeed's estimators (estimate_zero2_model_states_mem_needs, estimate_zero3_...) speak of weights, gradients and
optimizer states in half precision, so they are shown beside the sum of these three.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.budget.memory.peak import estimate_memory
from chinchilla_ds.budget.memory.states import stage_params
from chinchilla_ds.distributed.extensions import use_private_extensions_folder
from chinchilla_ds.run_plan import MemoryBytes, ModelShape, Offload, Precision, Recompute, RunPlan
from chinchilla_ds.testing.configs import tiny_plan

MIB = 2**20
CUDA_SHAPE = ModelShape(
    num_layers=16,
    hidden_size=2048,
    ffn_hidden_size=5632,
    num_attention_heads=16,
    num_query_groups=4,
    kv_channels=128,
    vocab_size=32768,
    padded_vocab_size=32768,
    seq_length=2048,
)
CUDA_CASES: dict[str, dict[str, Any]] = {
    "zero0": {},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero3": {"zero_stage": 3},
    "zero1-recompute_full": {"zero_stage": 1, "recompute": Recompute.FULL},
    "zero1-recompute_selective": {"zero_stage": 1, "recompute": Recompute.SELECTIVE},
    "zero2-offload": {"zero_stage": 2, "offload_optimizer": Offload.CPU},
}


def deepspeed_estimate(plan: RunPlan, *, stage: int) -> int | None:
    """Return DeepSpeed's estimate of a rank's model states on the device, in bytes; None where it has none."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    layout, shape = plan.layout, plan.shape
    sizes = {"tensor": layout.tensor_model_parallel_size, "pipeline": layout.pipeline_model_parallel_size}
    params, _ = stage_params(shape=shape, stage=stage, **sizes)
    offload = layout.offload_optimizer is not Offload.NONE
    common = {"num_gpus_per_node": layout.data_parallel_size, "num_nodes": 1, "cpu_offload": offload}
    if layout.zero_stage == 2:
        return int(estimate_zero2_model_states_mem_needs(params, **common)[1])
    if layout.zero_stage == 3:
        largest = shape.padded_vocab_size * shape.hidden_size // layout.tensor_model_parallel_size
        whole = layout.offload_param is not Offload.NONE
        return int(estimate_zero3_model_states_mem_needs(params, largest, cpu_offload_params=whole, **common)[1])
    return None


def measure_cpu(names: list[str]) -> list[dict[str, Any]]:
    """Return one row for every case and pipeline stage; of ranks that share a stage, the fullest."""
    from tests.distributed.memory_cases import COMPONENTS, QUICK, SLOW, measured, plan_of, predicted

    rows = []
    for name, values in {**QUICK, **SLOW}.items():
        if names and name not in names:
            continue
        plan = plan_of(values)
        ranks, stages = measured(plan), predicted(plan)
        for stage, expected in enumerate(stages):
            held = max((rank.peak for rank in ranks if rank.stage == stage), key=lambda peak: peak.total)
            fields = (*COMPONENTS, "total", "host")
            rows.append(
                {"case": name, "stage": stage, "deepspeed": deepspeed_estimate(plan, stage=stage)}
                | {"expected": {field: getattr(expected, field) for field in fields}}
                | {"held": {field: getattr(held, field) for field in fields}}
            )
    return rows


def measure_cuda(name: str) -> dict[str, Any]:
    """Return expected and allocated bytes of one case on this process's GPU."""
    plan = tiny_plan(
        shape=CUDA_SHAPE,
        precision=Precision.BF16,
        **{"micro_batch_size": 4, "gradient_accumulation_steps": 4, **CUDA_CASES[name]},
    )
    address = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577"}
    os.environ.update({key: os.environ.get(key, value) for key, value in address.items()})
    import torch

    from chinchilla_ds.data.feeding.loader import TokenBatch
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.engine.zero import TrainingEngine

    groups.initialize(layout=plan.layout)
    engine = TrainingEngine(plan=plan, ds_config=ds_config.emit(plan))
    text = torch.randint(plan.shape.vocab_size, (plan.batch.micro_batch_size, plan.shape.seq_length + 1), device="cuda")
    part = TokenBatch(tokens=text[:, :-1].contiguous(), labels=text[:, 1:].contiguous())
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        engine.train_step([part] * plan.batch.gradient_accumulation_steps, learning_rate=1e-4)
    expected = _estimate(plan, device=torch.cuda.get_device_name())
    return {
        "case": name,
        "device": torch.cuda.get_device_name(),
        "expected": expected.total - expected.margin,
        "allocated": torch.cuda.max_memory_allocated(),
        "margin": expected.margin,
        "reserved": torch.cuda.max_memory_reserved(),
    }


def _estimate(plan: RunPlan, *, device: str) -> MemoryBytes:
    return estimate_memory(
        shape=plan.shape, layout=plan.layout, batch=plan.batch, precision=plan.precision, device=device
    )


def _time_per_call_s() -> float:
    plan = tiny_plan(shape=CUDA_SHAPE, zero_stage=1)
    _estimate(plan, device="h100")
    started, calls = time.perf_counter(), 10_000
    for _ in range(calls):
        _estimate(plan, device="h100")
    return (time.perf_counter() - started) / calls


def _print_table(rows: list[dict[str, Any]]) -> None:
    fields = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")
    header = ["case", "stage", *fields, "host", "states", "DeepSpeed's states"]
    print("MiB held (expected / held - 1, where the component is more than 5 % of the total)")
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row in rows:
        held, expected = row["held"], row["expected"]
        cells = [_cell(held[field], expected[field], held["total"]) for field in fields]
        states = sum(held[field] for field in ("weights", "gradients", "optimizer"))
        theirs = "" if row["deepspeed"] is None else _cell(states, row["deepspeed"], states, show=row["deepspeed"])
        host = _cell(held["host"], expected["host"], held["host"]) if held["host"] else ""
        line = [row["case"], str(row["stage"]), *cells, host, f"{states / MIB:.2f}", theirs]
        print("| " + " | ".join(line) + " |")


def _cell(held: int, expected: int, total: int, *, show: int | None = None) -> str:
    text = f"{(held if show is None else show) / MIB:.2f}"
    return f"{text} ({expected / held - 1:+.1%})" if held > 0.05 * total else text


def main() -> int:
    """Print the table, and write the rows where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", default=[], help="a CPU case; all without")
    parser.add_argument("--cuda", choices=CUDA_CASES, help="one case on a GPU instead")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    use_private_extensions_folder()
    result: Any
    if arguments.cuda:
        result = measure_cuda(arguments.cuda)
        print(json.dumps(result, indent=2))
    else:
        os.environ.update({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"})
        result = measure_cpu(arguments.case)
        _print_table(result)
        print(f"estimate_memory: {_time_per_call_s() * 1e6:.0f} us per call, its parts cached")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
