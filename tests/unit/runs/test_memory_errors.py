import pytest
import torch

from chinchilla_ds.errors import OutOfMemoryError
from chinchilla_ds.runs.memory_errors import memory_errors
from chinchilla_ds.testing import tiny_plan

PLAN = tiny_plan(micro_batch_size=8)


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ..."), "2.50 GiB"),
        (MemoryError(), None),
        (RuntimeError("std::bad_alloc"), None),
    ],
)
def test_the_plans_table_and_what_fits_are_said(error: Exception, wanted: str | None) -> None:
    with pytest.raises(OutOfMemoryError) as caught, memory_errors(PLAN):
        raise error
    (text,) = caught.value.problems
    assert text.startswith("out of memory of ")
    assert (f"asking for {wanted} more" in text) == (wanted is not None)
    assert "TP 1 x PP 1 x DP 1 = 1 rank, ZeRO-0" in text
    assert "  `micro_batch_size=4`: " in text


def test_torchs_own_allocator_on_the_cpu() -> None:
    with pytest.raises(OutOfMemoryError, match="asking for 400000000000000000 bytes more"), memory_errors(PLAN):
        torch.empty(10**17)


def test_any_other_error_passes() -> None:
    with pytest.raises(RuntimeError, match="a bug"), memory_errors(PLAN):
        raise RuntimeError("a bug")
