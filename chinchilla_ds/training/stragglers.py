"""Which rank is slow: the time of the same local work on every rank, periodically, in one small all-gather.

Step times do not show it: in every layout ranks wait for each other, and all take as long as the slowest. Core
attention does: it is the same work on every rank, without collectives under tensor, pipeline or data parallelism and
any ZeRO stage, since it has no weights. It takes longer on a throttled device, or on a rank whose cores are used by
others. It does not detect a slow disk or a slow network card.
"""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from chinchilla_ds.distributed import cpu_backend

INTERVAL_STEPS = 50
"""Steps between measurements; the other steps only test a flag."""
WORTH_SAYING = 1.2
"""Ratio of slowest to median above which the user is warned."""


@dataclass(frozen=True, kw_only=True)
class StragglerReport:
    """One measurement; the same on every rank."""

    slowest_rank: int
    """Global rank."""
    ratio: float
    """Its time over the median of all ranks."""

    def __str__(self) -> str:
        """Return `rank 3 computes 1.42 times as long as the median rank`."""
        return f"rank {self.slowest_rank} computes {self.ratio:.2f} times as long as the median rank"


class Stragglers:
    """Times core attention on the measured steps."""

    def __init__(self, stage: nn.Module) -> None:
        self._measures = False
        self._started: Any = None
        self._seconds: list[float] = []
        self._events: list[tuple[Any, Any]] = []
        for name, module in stage.named_modules():
            if name.endswith("core_attention"):
                module.register_forward_pre_hook(self._before)
                module.register_forward_hook(self._after)

    def start_step(self, attempt: int) -> None:
        """Decide whether to measure this step; steps are counted from 0."""
        self._measures = attempt % INTERVAL_STEPS == INTERVAL_STEPS - 1

    def end_step(self) -> StragglerReport | None:
        """Return the report of a step that was measured. Every rank calls this, after the step has finished."""
        if not self._measures:
            return None
        self._measures = False
        device = cpu_backend.device()
        own = torch.tensor([self._mean_s()], device=device)
        seen = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(seen, own)
        return report([float(seconds) for seconds in seen])

    def _mean_s(self) -> float:
        """Return the mean time of a call, over the faster half, since the first calls wait for earlier work."""
        times = sorted([*self._seconds, *(start.elapsed_time(end) / 1e3 for start, end in self._events)])
        self._seconds.clear()
        self._events.clear()
        half = times[: max(1, len(times) // 2)]
        return sum(half) / len(half) if half else 0.0

    def _before(self, _module: nn.Module, _inputs: Any) -> None:
        if self._measures:
            self._started = self._now()

    def _after(self, _module: nn.Module, _inputs: Any, _output: Any) -> None:
        if not self._measures or self._started is None:
            return
        if isinstance(self._started, float):
            self._seconds.append(time.perf_counter() - self._started)
        else:
            self._events.append((self._started, self._now()))
        self._started = None

    def _now(self) -> Any:
        if not cpu_backend.has_cuda():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def report(seconds: list[float]) -> StragglerReport:
    """Return the slowest rank, from every rank's time by global rank."""
    middle = median(seconds)
    slowest = max(range(len(seconds)), key=seconds.__getitem__)
    return StragglerReport(slowest_rank=slowest, ratio=seconds[slowest] / middle if middle > 0 else 1.0)
