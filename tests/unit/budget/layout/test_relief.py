import dataclasses
import re

import pytest

from chinchilla_ds.budget.layout.relief import MAX_RELIEFS, NOTICEABLE, reliefs
from chinchilla_ds.budget.memory.peak import estimate_memory
from chinchilla_ds.run_plan import Offload, Recompute, RunPlan
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.testing.configs import tiny_shape


def total(plan: RunPlan) -> int:
    return estimate_memory(
        shape=plan.shape, layout=plan.layout, batch=plan.batch, precision=plan.precision, device=plan.device
    ).total


PLAN = tiny_plan(micro_batch_size=8, data_parallel_size=2)


def test_the_first_is_the_smallest_change_and_each_is_of_another_kind() -> None:
    found = reliefs(PLAN, capacity_bytes=None)
    assert found[0].changes == ("`micro_batch_size=4`",)
    assert len(found) == MAX_RELIEFS
    kinds = [tuple(re.split("[ =]", change)[0] for change in one.changes) for one in found]
    assert len(set(kinds)) == len(kinds)
    assert [len(one.changes) for one in found] == sorted(len(one.changes) for one in found)
    assert all(one.memory.total <= NOTICEABLE * total(PLAN) for one in found)


def test_its_memory_is_that_of_the_plan_with_that_change() -> None:
    batch = dataclasses.replace(PLAN.batch, micro_batch_size=4, gradient_accumulation_steps=2)
    changed = dataclasses.replace(PLAN, batch=batch)
    assert reliefs(PLAN, capacity_bytes=None)[0].memory.total == total(changed)


def test_less_room_takes_more_changes() -> None:
    capacity = int(3.3 * 2**20)
    found = reliefs(PLAN, capacity_bytes=capacity)
    assert len(found[0].changes) > 1
    assert all(one.memory.total <= capacity for one in found)
    assert reliefs(PLAN, capacity_bytes=1000) == ()


def test_what_is_done_already_is_not_proposed() -> None:
    plan = tiny_plan(
        micro_batch_size=1,
        data_parallel_size=2,
        zero_stage=3,
        recompute=Recompute.FULL,
        offload_optimizer=Offload.CPU,
        offload_param=Offload.CPU,
    )
    assert reliefs(plan, capacity_bytes=None) == ()


@pytest.mark.parametrize("ranks", [1, 2])
def test_zero_stages_help_only_where_there_are_ranks_to_share(ranks: int) -> None:
    shape = tiny_shape(hidden_size=512, ffn_hidden_size=1024, kv_channels=128)  # weights outweigh activations
    plan = tiny_plan(shape=shape, micro_batch_size=1, recompute=Recompute.FULL, data_parallel_size=ranks)
    changes = [change for one in reliefs(plan, capacity_bytes=None) for change in one.changes]
    assert any("stage" in change for change in changes) == (ranks > 1)
