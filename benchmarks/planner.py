"""Time of a search over every layout: a 70B model on 1024 H100, on one core, in one process.

    python benchmarks/planner.py

Prints the CPU and wall time of the import and of each search (best of REPEATS, and the first), how many layouts were
considered, and the best. The caches of the memory model are cleared before every search, so that each pays for itself.
"""

import sys
import time

_START = time.perf_counter(), time.process_time()

from chinchilla_ds.budget.layout.search import LayoutRequest, search_layouts  # noqa: E402
from chinchilla_ds.budget.layout.space import label  # noqa: E402
from chinchilla_ds.budget.memory import activations  # noqa: E402  (the import is timed)
from chinchilla_ds.budget.memory import peak as memory  # noqa: E402
from chinchilla_ds.budget.memory import states as model_states  # noqa: E402
from chinchilla_ds.budget.speed.devices import get_device  # noqa: E402
from chinchilla_ds.run_plan import ModelShape, Offload, Precision  # noqa: E402

_IMPORTED = time.perf_counter() - _START[0], time.process_time() - _START[1]

REPEATS = 5


def request(*, seq_length: int, global_batch_size: int, nvme: bool = False) -> LayoutRequest:
    """Return a model in Llama 3 70B's shape on 1024 H100."""
    shape = ModelShape(
        num_layers=80,
        hidden_size=8192,
        ffn_hidden_size=28672,
        num_attention_heads=64,
        num_query_groups=8,
        kv_channels=128,
        vocab_size=128256,
        padded_vocab_size=128256,
        seq_length=seq_length,
    )
    return LayoutRequest(
        shape=shape,
        precision=Precision.BF16,
        global_batch_size=global_batch_size,
        device=get_device("h100"),
        world_size=1024,
        allow_offload=tuple(Offload) if nvme else (Offload.NONE, Offload.CPU),
    )


def clear_caches() -> None:
    """Forget what earlier searches have computed."""
    for module in (activations, memory, model_states):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def main() -> int:
    """Time the searches and print one line each."""
    print(f"import: {_IMPORTED[1]:.3f} s CPU, {_IMPORTED[0]:.3f} s wall")
    cases = {
        "4k tokens, batch 2048": request(seq_length=4096, global_batch_size=2048),
        "8k tokens, batch 1024": request(seq_length=8192, global_batch_size=1024),
        "8k tokens, batch 2304": request(seq_length=8192, global_batch_size=2304),
        "4k tokens, batch 2048, NVMe allowed": request(seq_length=4096, global_batch_size=2048, nvme=True),
    }
    for name, asked in cases.items():
        times = []
        for _ in range(REPEATS):
            clear_caches()
            wall, cpu = time.perf_counter(), time.process_time()
            found = search_layouts(asked)
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = min(times)
        best = found.best
        assert best.step_time is not None
        print(
            f"{name}: {cpu:.3f} s CPU, {wall:.3f} s wall (first {times[0][0]:.3f}); considered {found.num_considered}, "
            f"legal {found.num_legal}, fitting {found.num_fitting}\n"
            f"    {label(best.layout, micro_batch_size=best.batch.micro_batch_size)}: "
            f"{best.step_time.total_s:.2f} s, MFU {best.step_time.mfu:.1%}, {best.memory.total / 2**30:.1f} GiB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
