"""MB/s of saving and loading a checkpoint, beside torch.save and torch.load of the same bytes, in one run.

    python benchmarks/checkpoint.py [--rounds 5] [--folder DIR] [--json FILE]

One rank, FP32 weights and AdamW's moments of a 70M-parameter decoder on a CPU (1B on a GPU), under ZeRO-1
and ZeRO-3. Ours is all of it: aside, flushed to the disk, hashed, renamed; and on loading every file compared with its
hash. torch.save writes the same tensors, as one dictionary and FP32, and is timed without and with a flush to the disk
(os.fsync); torch.load reads them, and copies them into the engine's tensors, as ours does. Each round times each once,
in another order; the median counts. MB are 10^6 bytes.

Stall: the time until `save` returns when the rest is done in the background, by that of the save at once.
"""

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from step_overhead import GPU_SHAPE

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.distributed import cpu_backend, groups
from chinchilla_ds.distributed.launch import settle
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.engine.owned_states import owned_states
from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.testing.configs import tiny_plan

CPU_SHAPE = ModelShape(
    num_layers=8,
    hidden_size=768,
    ffn_hidden_size=2048,
    num_attention_heads=12,
    num_query_groups=12,
    kv_channels=64,
    vocab_size=8192,
    padded_vocab_size=8192,
    seq_length=256,
)
OURS, BACKGROUND, PLAIN, FLUSHED = "ours", "ours, until training continues", "torch", "torch, flushed"


def make_engine(zero_stage: int) -> TrainingEngine:
    """Return an engine whose optimizer has states."""
    shape = GPU_SHAPE if torch.cuda.is_available() else CPU_SHAPE
    plan = tiny_plan(shape=shape, zero_stage=zero_stage)
    engine = TrainingEngine(plan=plan, ds_config=ds_config.emit(plan))
    generator = torch.Generator().manual_seed(0)
    for owned in owned_states(engine.engine, engine.stage, plan=plan):
        for kind, flat in owned.tensors().items():
            if kind != "weight":  # zeros could be written faster than numbers
                flat.copy_(torch.randn(flat.shape, generator=generator))
    return engine


def tensors_of(engine: TrainingEngine) -> list[dict[str, torch.Tensor]]:
    """Return the flat FP32 states, by kind."""
    states = owned_states(engine.engine, engine.stage, plan=engine.plan)
    return [owned.tensors() for owned in states]


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def torch_save(states: list[dict[str, torch.Tensor]], path: Path, *, flush: bool) -> None:
    """Write the states as one file."""
    with path.open("wb") as stream:
        torch.save(states, stream)
        if flush:
            stream.flush()
            os.fsync(stream.fileno())


def torch_load(states: list[dict[str, torch.Tensor]], path: Path) -> None:
    """Read the states into the tensors."""
    for flats, loaded in zip(states, torch.load(path, weights_only=True), strict=True):
        for kind, flat in flats.items():
            flat.copy_(loaded[kind])


def measure(engine: TrainingEngine, *, folder: Path, rounds: int) -> dict[str, Any]:
    """Return median seconds of each way to save and to load, and the bytes."""
    states = tensors_of(engine)
    num_bytes = sum(flat.numel() * flat.element_size() for flats in states for flat in flats.values())
    saver = checkpoint.Checkpointer(engine, folder=folder, ds_config={}, retention=checkpoint.Retention(keep=1))
    iterations = iter(range(1, 10**6))

    def ours(*, in_background: bool) -> None:
        step = next(iterations)
        state = CheckpointState(iteration=step, data_step=step, attempts=step, elapsed_s=0.0)
        saver.save(state, in_background=in_background)

    def our_load() -> None:
        checkpoint.load(engine, checkpoint=checkpoint.newest_whole(folder, warn=print))

    plain, flushed = folder / "plain.pt", folder / "flushed.pt"
    saves: dict[str, Callable[[], None]] = {
        OURS: lambda: ours(in_background=False),
        BACKGROUND: lambda: ours(in_background=True),
        PLAIN: lambda: torch_save(states, plain, flush=False),
        FLUSHED: lambda: torch_save(states, flushed, flush=True),
    }
    loads: dict[str, Callable[[], None]] = {OURS: our_load, PLAIN: lambda: torch_load(states, plain)}
    seconds: dict[str, dict[str, list[float]]] = {"save": {}, "load": {}}
    order = random.Random(0)
    for _ in range(rounds + 1):  # the first warms up: buffers, page cache
        for what, contestants in (("save", saves), ("load", loads)):
            for name in order.sample(list(contestants), len(contestants)):
                os.sync()
                seconds[what].setdefault(name, []).append(timed(contestants[name]))
                saver.wait()
    medians = {
        what: {name: statistics.median(values[1:]) for name, values in times.items()} for what, times in seconds.items()
    }
    return {"bytes": num_bytes, **medians}


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print MB/s and ratios."""
    table = Table(title="MB/s (ratio to torch)")
    columns = ("states", "save, ours", "save, torch", "save, torch flushed", "load, ours", "load, torch", "stall")
    for column in columns:
        table.add_column(column)
    for name, result in results.items():
        mb, save, load = result["bytes"] / 1e6, result["save"], result["load"]
        table.add_row(
            f"{name}, {mb:.0f} MB",
            f"{mb / save[OURS]:.0f} ({save[PLAIN] / save[OURS]:.2f}x, {save[FLUSHED] / save[OURS]:.2f}x of flushed)",
            f"{mb / save[PLAIN]:.0f}",
            f"{mb / save[FLUSHED]:.0f}",
            f"{mb / load[OURS]:.0f} ({load[PLAIN] / load[OURS]:.2f}x)",
            f"{mb / load[PLAIN]:.0f}",
            f"{save[BACKGROUND]:.3f} s, {save[BACKGROUND] / save[OURS]:.0%} of {save[OURS]:.3f} s",
        )
    Console(width=160).print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    settle()
    groups.initialize(layout=tiny_plan(zero_stage=1).layout)
    results = {}
    for zero_stage in (1, 3):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            engine = make_engine(zero_stage)
            results[f"ZeRO-{zero_stage}"] = measure(engine, folder=Path(folder), rounds=arguments.rounds)
            del engine
    device = torch.cuda.get_device_name() if cpu_backend.has_cuda() else "CPU"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    groups.shut_down()


if __name__ == "__main__":
    main()
