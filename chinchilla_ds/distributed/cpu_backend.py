"""CPU support: the only place that changes torch.cuda and DeepSpeed's accelerator for the CPU. Inert on CUDA.

Corrects megatron-core 0.16: it asks `torch.cuda.current_device()` where it means "the device of this rank", calls
`torch.cuda.synchronize()` around point-to-point transfers, and its schedules create one counter with the literal
`device="cuda"`.

Corrects deepspeed 0.19.8: it refuses FP16 on CPUs without AVX512-FP16, although torch computes it, slowly;
that is enough to test loss scaling. And it never unlinks the 66 MiB of shared memory that every rank maps for its
inference all-reduce, so a run on one host leaks that much, for each rank and master port, until the next
boot; training never calls that all-reduce, so it is not built.
"""

import importlib
import inspect
import types
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from chinchilla_ds.distributed.dependency_check import require_source

_installed = False


def has_cuda() -> bool:
    """Return whether this process trains on GPUs."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device of this rank."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


class _TorchOnCpu(types.ModuleType):
    """Wrapper of torch for megatron's schedules: `zeros(..., device="cuda")` allocates on the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def zeros(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        """Return torch.zeros on the CPU, ignoring `device`."""
        return torch.zeros(*args, **kwargs)


def install() -> None:
    """Make Megatron-core run on the CPU; does nothing with CUDA, or when called again.

    Raises:
        DependencyChangedError: megatron-core's schedules or DeepSpeed's backend no longer need this.
    """
    global _installed
    if has_cuda() or _installed:
        return
    get_accelerator().is_fp16_supported = lambda: True
    backend: Any = importlib.import_module("deepspeed.comm.torch")  # with `from`, the name would be torch itself
    require_source(inspect.getsource(backend), "self.shm_comm_op = build_shm_op()", what="deepspeed.comm.torch")
    backend.build_shm_op = lambda: None
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_, **__: None
    from megatron.core.pipeline_parallel import schedules

    require_source(
        inspect.getsource(schedules),
        'torch.zeros([], dtype=torch.int, device="cuda")',
        what="megatron.core.pipeline_parallel.schedules",
    )
    schedules.torch = _TorchOnCpu("torch")
    _installed = True
