"""Tokens/s of our optimizer step at ZeRO-0 and ZeRO-3, one rank, beside a plain PyTorch loop over Hugging Face's Llama.

    python benchmarks/step_overhead.py [--rounds 7] [--steps 4] [--json FILE]

Same shape, batch, threads, precision, clipping, and AdamW(fused=True). Each contender lives in a process of its own.
After a warm-up they take turns, one block of steps each per round, so that whatever else the machine does hits all of
them alike; the others sleep meanwhile. Reported is the median over rounds, and the median of the rounds' ratios.

On CPU: about 20M parameters in fp32, two to three minutes on two cores. On CUDA: about 1B parameters in bf16, against
two plain loops: autocast over fp32 weights (as exact as ours, which keeps fp32 master weights), and weights that are
bf16 themselves (faster, and less exact than ours).
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from chinchilla_ds.budget.speed.devices import peak_flops_per_s
from chinchilla_ds.exporting.config_json import config_of
from chinchilla_ds.run_plan import ModelShape, Precision, RunPlan
from chinchilla_ds.testing.configs import tiny_plan

CPU_SHAPE = ModelShape(
    num_layers=8,
    hidden_size=384,
    ffn_hidden_size=1024,
    num_attention_heads=6,
    num_query_groups=6,
    kv_channels=64,
    vocab_size=8192,
    padded_vocab_size=8192,
    seq_length=256,
)
GPU_SHAPE = ModelShape(
    num_layers=18,
    hidden_size=2048,
    ffn_hidden_size=5632,
    num_attention_heads=16,
    num_query_groups=16,
    kv_channels=128,
    vocab_size=32768,
    padded_vocab_size=32768,
    seq_length=2048,
)
CPU_CONTENDERS = ("plain", "zero0", "zero3")
GPU_CONTENDERS = ("plain", "plain-bf16-weights", "zero0", "zero3")
LEARNING_RATE = 1e-4


def benchmark_plan(*, zero_stage: int = 0) -> RunPlan:
    """Return the plan that every contender runs on this machine."""
    cuda = torch.cuda.is_available()
    return tiny_plan(
        shape=GPU_SHAPE if cuda else CPU_SHAPE,
        precision=Precision.BF16 if cuda else Precision.FP32,
        micro_batch_size=4 if cuda else 8,
        learning_rate=LEARNING_RATE,
        zero_stage=zero_stage,
    )


def random_text(plan: RunPlan) -> torch.Tensor:
    """Return token ids [b, s + 1] of one micro-batch."""
    generator = torch.Generator().manual_seed(plan.seed)
    size = (plan.batch.micro_batch_size, plan.shape.seq_length + 1)
    text = torch.randint(plan.shape.vocab_size, size, generator=generator)
    return text.cuda() if torch.cuda.is_available() else text


# ---- contenders: each returns a function that takes one optimizer step ----------------------------------------------


def make_plain_step(plan: RunPlan, *, bf16_weights: bool = False) -> Callable[[], None]:
    """Return a step of the loop that anyone would write over transformers.LlamaForCausalLM."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = plan.shape
    torch.manual_seed(plan.seed)
    config = config_of(shape, vocab_size=shape.padded_vocab_size, eod_id=0, dtype=Precision.FP32) | {"use_cache": False}
    text = random_text(plan)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="sdpa"))
    model = model.to(text.device, torch.bfloat16 if bf16_weights else torch.float32)
    model.train()
    chosen = plan.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=chosen.learning_rate,
        betas=(chosen.beta1, chosen.beta2),
        eps=chosen.epsilon,
        weight_decay=chosen.weight_decay,
        fused=True,
    )
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    autocast = plan.precision is Precision.BF16 and not bf16_weights

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(text.device.type, torch.bfloat16, enabled=autocast):
            logits = model(input_ids=tokens).logits
        loss = F.cross_entropy(logits.flatten(end_dim=1).float(), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.gradient_clipping)
        optimizer.step()
        loss.item()  # a loop that reports its loss waits for it, and so does ours

    return step


def make_our_step(plan: RunPlan) -> Callable[[], None]:
    """Return a step of our engine at the plan's ZeRO stage, on one rank."""
    from chinchilla_ds.budget.deepspeed_json.resolve import emit
    from chinchilla_ds.data.feeding.loader import TokenBatch
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.engine.zero import TrainingEngine

    groups.initialize(layout=plan.layout)
    engine = TrainingEngine(plan=plan, ds_config=emit(plan))
    text = random_text(plan)
    batch = TokenBatch(tokens=text[:, :-1].contiguous(), labels=text[:, 1:].contiguous())

    def step() -> None:
        engine.train_step([batch], learning_rate=LEARNING_RATE)

    return step


def make_step(contender: str) -> Callable[[], None]:
    """Return the step of the contender with this name."""
    if contender.startswith("plain"):
        return make_plain_step(benchmark_plan(), bf16_weights=contender == "plain-bf16-weights")
    return make_our_step(benchmark_plan(zero_stage=int(contender.removeprefix("zero"))))


# ---- in a contender's process: read a number of steps, take them, write the seconds ---------------------------------


def serve(contender: str) -> None:
    """Take as many steps as each line of stdin says and answer with the seconds they took."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not look like an answer
    step = make_step(contender)
    print("ready", file=answers)
    for line in sys.stdin:
        start_s = _synchronized_clock_s()
        for _ in range(int(line)):
            step()
        print(_synchronized_clock_s() - start_s, file=answers)
    sys.stdout.flush()
    answers.flush()
    os._exit(0)  # process groups need no farewell from a lone rank


def _synchronized_clock_s() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Worker:
    """A contender in a process of its own."""

    def __init__(self, contender: str, *, port: int) -> None:
        rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.contender = contender
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--contender", contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            bufsize=1,
            env={**os.environ, **rank},
        )
        self._answer()

    def seconds(self, *, steps: int) -> float:
        """Take `steps` steps and return the seconds they took."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            sys.exit(f"{self.contender} ended with code {self._process.wait()}:\n{self._log.read().decode()[-4000:]}")
        return line

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


# ---- measuring and reporting ----------------------------------------------------------------------------------------


def measure(contenders: Sequence[str], *, rounds: int, steps: int, warmup_steps: int) -> dict[str, list[float]]:
    """Return tokens/s of every contender in every round."""
    tokens = benchmark_plan().tokens_per_iter * steps
    with contextlib.ExitStack() as stack:
        workers = []
        for number, contender in enumerate(contenders):
            workers.append(Worker(contender, port=29710 + number))
            stack.callback(workers[-1].stop)
        for worker in workers:
            worker.seconds(steps=warmup_steps)
        results: dict[str, list[float]] = {contender: [] for contender in contenders}
        for round_number in range(rounds):
            # Every other round goes backwards: nobody always runs on the machine that another has just heated.
            for worker in workers if round_number % 2 == 0 else reversed(workers):
                results[worker.contender].append(tokens / worker.seconds(steps=steps))
    return results


def summarize(results: dict[str, list[float]]) -> dict[str, dict[str, float | None]]:
    """Return the median tokens/s of every contender, its spread, its ratio to each plain loop, and MFU."""
    plan = benchmark_plan()
    device_name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = peak_flops_per_s(device_name=device_name, precision=plan.precision)
    summary: dict[str, dict[str, float | None]] = {}
    for contender, rates in results.items():
        median = statistics.median(rates)
        summary[contender] = {
            "tokens_per_s": median,
            "spread": (max(rates) - min(rates)) / median,
            "mfu": median * plan.flops_per_token / peak if peak else None,
        }
        for other in (name for name in results if name.startswith("plain")):
            ratios = [rate / plain for rate, plain in zip(rates, results[other], strict=True)]
            summary[contender][f"ratio to {other}"] = statistics.median(ratios)
    return summary


def setting() -> dict[str, str]:
    """Return what was measured, on what, with which versions."""
    plan = benchmark_plan()
    cuda = torch.cuda.is_available()
    packages = ("torch", "deepspeed", "megatron-core", "transformers")
    shape = plan.shape
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        "model": f"{plan.num_params / 1e6:.1f}M parameters, {shape.num_layers} layers, hidden {shape.hidden_size}, "
        f"ffn {shape.ffn_hidden_size}, vocabulary {shape.padded_vocab_size}",
        "load": f"{os.getloadavg()[0]:.1f} processes running over the last minute, this benchmark's included",
        "batch": f"{plan.batch.micro_batch_size} x {shape.seq_length} tokens, {plan.precision}",
    }


def report(summary: dict[str, dict[str, float | None]]) -> None:
    """Print the table."""
    ratios = [column for column in next(iter(summary.values())) if column.startswith("ratio")]
    table = Table("contender", "tokens/s", "spread", "MFU", *ratios, caption="\n".join(setting().values()))
    for contender, row in summary.items():
        mfu = "unknown peak" if row["mfu"] is None else f"{row['mfu']:.3f}"
        table.add_row(
            contender,
            f"{row['tokens_per_s']:,.0f}",
            f"{row['spread']:.1%}",
            mfu,
            *(f"{row[column]:.3f}" for column in ratios),
        )
    Console(width=120).print(table)


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = GPU_CONTENDERS if torch.cuda.is_available() else CPU_CONTENDERS
    parser.add_argument("--rounds", type=int, default=7, help="blocks per contender (default 7)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps per block (default 4)")
    parser.add_argument("--warmup-steps", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=every, default=list(every), help="contenders to run")
    parser.add_argument("--json", type=Path, help="file that receives the setting, the rates and the summary")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # this process is a contender
    arguments = parser.parse_args()
    if arguments.contender:
        return serve(arguments.contender)
    results = measure(
        arguments.only, rounds=arguments.rounds, steps=arguments.steps, warmup_steps=arguments.warmup_steps
    )
    summary = summarize(results)
    report(summary)
    if arguments.json:
        record = {"setting": setting(), "tokens_per_s": results, "summary": summary}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    return None


if __name__ == "__main__":
    main()
