"""Predicted against published step times: 251 runs on A100, H100, H200 and B200, from 512 to 262144 tokens.

    python benchmarks/step_time.py [--fit] [--rows]

Prints, by source and by context length, how far the step-time model is off; --rows prints every run. --fit fits the
fitted constants again, to every second run, and prints them before anything else; the files hold what it prints. No
GPU is needed. docs/step-time.md names the sources and says what of a run is our reading.

The columns of published_steps.csv: `attention` is the kernel that the run used, whose rate replaces the device's;
`recompute` and `offload` are ours, `value` is in `unit`, and `doubt` says why a run is printed, but neither fitted nor
counted: most contradict other rows of their own table.
"""

import argparse
import csv
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

from chinchilla_ds.budget.memory.states import fullest_stage_params
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token, hardware_flops_per_token
from chinchilla_ds.budget.speed import rates, step_time
from chinchilla_ds.budget.speed.devices import Device, get_device
from chinchilla_ds.budget.speed.rates import Elementwise, Machine, make_machine
from chinchilla_ds.run_plan import ModelShape, Offload, Precision, Recompute

ROWS = Path(__file__).parent / "published_steps.csv"
GPT = Elementwise(qkv=2, ffn=3)
"""No rotary positions, and a GELU of 4 h, which is 1.5 f of the SwiGLU that stands for it: read and written."""
LLAMA_31_8B_PARAMS = 8.03e9
FUSED_ADAM_BYTES = 40
"""Read and written for a parameter: weight, gradient and two states in FP32, and the weight in BF16."""
OVERLAPPED_TENSOR_PARALLEL = 0.15
"""What tensor-parallel traffic still costs where it overlaps with matmuls, which our engine does not do.

Source: Calculon (Isaev et al. 2023), systems/a100_80g.json, processor_usage of NVLink.
"""
FITTED_RATES = {
    ("triton", "a100"): 0.352,
    ("triton", "h100"): 0.179,
    ("unfused", "a100"): 0.0863,
    ("flash-3", "hopper"): 0.638,
    ("flash-4", "b200"): 0.587,
}
"""Share of the peak that attention kernels other than FlashAttention-2 reach over long sequences with heads of 128.

"triton": FlashAttention of 2022 in Triton, llm-foundry's default. "unfused": the scores pass through memory. "flash-3"
stands for cuDNN's attention as well. FlashAttention-2's rate is the device's own, from its paper, and is not fitted.
"""
FLASH_1_RATE = 0.315
"""FlashAttention of 2022 in CUDA on A100. Source: arXiv:2307.08691, section 4.1: version 2 is about twice as fast."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One row of the table; sizes as in `ModelShape` and `ParallelLayout`."""

    source: str
    run: str
    device: str
    attention: str
    layers: int
    hidden: int
    heads: int
    groups: int
    ffn: int
    vocab: int
    seq_length: int
    tensor: int
    pipeline: int
    chunks: int
    data: int
    zero: int
    sequence_parallel: bool
    recompute: Recompute
    offload: Offload
    micro_batch: int
    batch: int
    value: float
    unit: str
    doubt: str

    @property
    def world_size(self) -> int:
        """All devices."""
        return self.tensor * self.pipeline * self.data

    @property
    def kernel(self) -> tuple[str, str]:
        """The key of the run's attention in FITTED_RATES."""
        device = {"h200": "hopper", "a100-40gb": "a100"}.get(self.device, self.device)
        return ("flash-3", "hopper") if self.attention == "cudnn" else (self.attention, device)

    @cached_property
    def shape(self) -> ModelShape:
        """The decoder; a GPT has our SwiGLU with 8/3 h, as many weights as GELU with 4 h."""
        return ModelShape(
            num_layers=self.layers,
            hidden_size=self.hidden,
            ffn_hidden_size=self.ffn,
            num_attention_heads=self.heads,
            num_query_groups=self.groups,
            kv_channels=self.hidden // self.heads,
            vocab_size=self.vocab,
            padded_vocab_size=self.vocab,
            seq_length=self.seq_length,
        )

    @cached_property
    def published_s(self) -> float:
        """Seconds per step, from what was published."""
        tokens = self.batch * self.seq_length
        model = decoder_flops_per_token(shape=self.shape)
        per_device = self.value * self.world_size
        if self.unit == "s":
            return self.value
        if self.unit == "tokens/s":
            return tokens / per_device
        if self.unit == "tflops":
            return tokens * model / (per_device * 1e12)
        if self.unit == "tflops_causal":  # Bekman: 6 N, and 6 s h per layer and token
            causal = 6 * LLAMA_31_8B_PARAMS + 6 * self.seq_length * self.hidden * self.layers
            return tokens * causal / (per_device * 1e12)
        if self.unit == "hfu":
            model = hardware_flops_per_token(shape=self.shape, recompute=self.recompute)
        peak = get_device(self.device).bf16_flops_per_s
        assert peak is not None
        return tokens * model / (per_device / 100 * peak)

    def predicted_s(self) -> float:
        """Return the model's seconds per step."""
        device = get_device(self.device)
        if self.attention != "flash-2":
            rate = FLASH_1_RATE if self.attention == "flash-1" else FITTED_RATES[self.kernel]
            device = dataclasses.replace(device, attention_efficiency=rate)
        return _step_s(self, device)

    def miss(self) -> float:
        """Return ln(predicted / published)."""
        return math.log(self.predicted_s() / self.published_s)


def load_rows() -> list[PublishedRun]:
    """Return the rows of the table."""
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(PublishedRun)}
    read: dict[Any, Callable[[str], Any]] = {bool: lambda text: text == "1"}
    with ROWS.open(newline="") as file:
        return [
            PublishedRun(**{name: read.get(kinds[name], kinds[name])(text) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


def _step_s(run: PublishedRun, device: Device) -> float:
    """Return the seconds of a step from the parts that the search over layouts adds up."""
    machine = make_machine(device=device, precision=Precision.BF16, world_size=run.world_size)
    if not run.run.startswith("Llama"):
        machine = dataclasses.replace(machine, elementwise=GPT)
    sizes: dict[str, Any] = {"shape": run.shape, "tensor": run.tensor, "pipeline": run.pipeline, "data": run.data}
    sizes |= {"precision": Precision.BF16}
    parts = step_time.combine(
        micro=step_time.micro_batch_time(
            sequence_parallel=run.sequence_parallel,
            recompute=run.recompute,
            micro_batch_size=run.micro_batch,
            machine=_overlapping(machine) if run.source == "nemo" else machine,
            **sizes,
        ),
        collectives=step_time.data_parallel_time(
            zero_stage=run.zero, machine=machine, overlaps=run.source == "nemo", **sizes
        ),
        optimizer=_optimizer_time(run, machine, sizes),
        virtual=run.chunks,
        pipeline=run.pipeline,
        micro_batches=run.batch // run.micro_batch // run.data,
    )
    return parts.total_s


def _optimizer_time(run: PublishedRun, machine: Machine, sizes: dict[str, Any]) -> step_time.OptimizerTime:
    """Return DeepSpeed's step and copies where the run is DeepSpeed's, and elsewhere a fused AdamW alone."""
    if run.source == "bekman":
        return step_time.optimizer_time(
            zero_stage=run.zero, offload_optimizer=run.offload, offload_param=Offload.NONE, machine=machine, **sizes
        )
    params = fullest_stage_params(shape=run.shape, tensor=run.tensor, pipeline=run.pipeline)
    return step_time.OptimizerTime(FUSED_ADAM_BYTES * params / run.data / machine.memory_bytes_per_s, 0.0)


def _overlapping(machine: Machine) -> Machine:
    """Return the machine with links inside a node, which tensor parallelism uses, as fast as overlap makes them."""
    return dataclasses.replace(machine, node_bytes_per_s=machine.node_bytes_per_s / OVERLAPPED_TENSOR_PARALLEL)


class Score(NamedTuple):
    """How far predictions are off; shares."""

    number: int
    ratio: float
    """Median of predicted over published."""
    median: float
    """Median of the miss, in either direction."""
    worst: float


def score(misses: Iterable[float]) -> Score:
    """Return the score of ln(predicted / published)."""
    listed = list(misses)
    sizes = [math.expm1(abs(miss)) for miss in listed]
    return Score(len(listed), math.exp(statistics.median(listed)), statistics.median(sizes), max(sizes))


def length_class(seq_length: int) -> str:
    """Return the class of context lengths that a run belongs to."""
    return next(
        (name for most, name in ((1024, "to 1k"), (2048, "2k"), (4096, "4k"), (8192, "8k")) if seq_length <= most),
        "16k" if seq_length == 16384 else "32k and more",
    )


def fitting_half(rows: Sequence[PublishedRun]) -> list[PublishedRun]:
    """Return every second row, from the first, without those in doubt."""
    return [row for row in rows[::2] if not row.doubt]


def held_out_half(rows: Sequence[PublishedRun]) -> list[PublishedRun]:
    """Return the other rows, likewise."""
    return [row for row in rows[1::2] if not row.doubt]


def fit(rows: Sequence[PublishedRun]) -> dict[str, float]:
    """Set the fitted constants to the least sum of robust squares of the misses, and return them by name."""
    names = ["RUN_EFFICIENCY", "HIDDEN_SHARE", *FITTED_RATES]
    start = np.array([rates.RUN_EFFICIENCY, step_time.HIDDEN_SHARE, *FITTED_RATES.values()])

    def misses(logs: np.ndarray) -> np.ndarray:
        values = start * np.exp(logs)
        rates.RUN_EFFICIENCY, step_time.HIDDEN_SHARE = float(values[0]), float(values[1])
        FITTED_RATES.update(zip(list(FITTED_RATES), map(float, values[2:]), strict=True))
        return np.array([row.miss() for row in rows])

    optimum = least_squares(misses, np.zeros(len(start)), loss="soft_l1", f_scale=0.05, diff_step=1e-4)
    return dict(zip(map(str, names), map(float, start * np.exp(optimum.x)), strict=True))


def _print_scores(console: Console, title: str, rows: Sequence[PublishedRun], key: Callable[..., str]) -> None:
    table = Table(title=title)
    for heading in ("", "runs", "predicted / published", "median miss", "worst"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name in dict.fromkeys(map(key, rows)):
        number, ratio, median, worst = score(row.miss() for row in rows if key(row) == name)
        table.add_row(name, str(number), f"{ratio:.3f}", f"{median:.1%}", f"{worst:.1%}")
    console.print(table)


def _print_rows(console: Console, rows: Sequence[PublishedRun]) -> None:
    table = Table(title="Seconds per step")
    for heading in ("source", "run", "device", "tokens", "layout", "micro-batch", "published", "predicted", "miss"):
        table.add_column(heading)
    for row in rows:
        layout = f"TP {row.tensor}, PP {row.pipeline} x {row.chunks}, DP {row.data}, ZeRO-{row.zero}, {row.recompute}"
        sizes = (
            str(row.seq_length),
            layout,
            str(row.micro_batch),
            f"{row.published_s:.3f}",
            f"{row.predicted_s():.3f}",
        )
        mark = " *" if row.doubt else ""
        table.add_row(row.source, row.run, row.device, *sizes, f"{math.expm1(row.miss()):+.1%}{mark}")
    console.print(table)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="fit the constants again first")
    parser.add_argument("--rows", action="store_true", help="print every run")
    given = parser.parse_args()
    rows, console = load_rows(), Console(width=160)
    if given.fit:
        for name, value in fit(fitting_half(rows)).items():
            console.print(f"{name} = {value:.4g}", highlight=False)
    halves = {"fitted": fitting_half(rows), "held out": held_out_half(rows)}
    for name, half in halves.items():
        number, ratio, median, worst = score(row.miss() for row in half)
        console.print(f"{name}: {number} runs, ratio {ratio:.3f}, median miss {median:.1%}, worst {worst:.1%}")
    counted = [row for row in rows if not row.doubt]
    _print_scores(console, "By source", counted, lambda row: f"{row.source}, {row.device}")
    _print_scores(
        console,
        "By context length",
        sorted(counted, key=lambda row: row.seq_length),
        lambda row: length_class(row.seq_length),
    )
    _print_scores(console, "All", rows, lambda row: "in doubt" if row.doubt else "counted")
    for row in rows:
        if row.doubt:
            console.print(f"{row.run} {row.device} {row.seq_length}: {math.expm1(row.miss()):+.1%}; {row.doubt}")
    if given.rows:
        _print_rows(console, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
