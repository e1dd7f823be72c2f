import pytest
from torch import nn

from chinchilla_ds.distributed import cpu_backend
from chinchilla_ds.training.stragglers import INTERVAL_STEPS, report


def test_the_slowest_is_held_against_the_median() -> None:
    found = report([1.0, 1.1, 0.9, 2.0, 1.0])
    assert found.slowest_rank == 3
    assert found.ratio == pytest.approx(2.0)
    assert str(found) == "rank 3 computes 2.00 times as long as the median rank"


def slow_rank(ranks: int) -> list[tuple[int, float] | None]:
    """What each step reports on a rank, where rank 1's attention takes five times as long."""
    import time

    import deepspeed
    import torch.distributed as dist

    from chinchilla_ds.training.stragglers import Stragglers

    cpu_backend.install()  # or DeepSpeed compiles an all-reduce of its own, for most of a minute

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)

    class Attention(nn.Module):
        def forward(self) -> None:
            time.sleep(0.05 if dist.get_rank() == 1 else 0.01)

    stage = nn.Module()
    stage.core_attention = Attention()
    watch, found = Stragglers(stage), []
    for attempt in range(INTERVAL_STEPS - 2, INTERVAL_STEPS + 1):
        watch.start_step(attempt)
        for _ in range(4):
            stage.core_attention()
        measured = watch.end_step()
        found.append(None if measured is None else (measured.slowest_rank, measured.ratio))
    return found


def test_a_slow_rank_is_found_by_all_on_the_steps_that_are_measured() -> None:
    from chinchilla_ds.testing import run_on_ranks

    ranks = run_on_ranks(slow_rank, 3, 3)
    for before, measured, after in ranks:
        assert before is None
        assert after is None
        assert measured == ranks[0][1]
        assert measured is not None
        assert measured[0] == 1
        assert measured[1] > 2.0
