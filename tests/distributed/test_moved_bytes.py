"""The bytes that the step-time model counts, against those that the live engine's operations read and write.

A TorchDispatchMode sees every operation of a step: it reads its tensor arguments and writes what it returns or changes;
views cost nothing, and collectives are the links' business. In BF16, of a model with few parameters besides matrices.
"""

import dataclasses
import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chinchilla_ds.budget.deepspeed_json import resolve as ds_config
from chinchilla_ds.budget.speed.step_time import BYTES_PER_PARAM, BYTES_PER_STATE, copied_elements
from chinchilla_ds.run_plan import Precision, RunPlan
from chinchilla_ds.testing import run_on_ranks, tiny_plan
from tests.distributed.memory_cases import SHAPE
from tests.parity.harness import own_micro_batches

TOLERANCE = 0.06
WIDTH = 2
LATER = 2
"""Micro-batches after the first, in the longer of two runs."""
_OVERWRITES = ("aten.copy_", "aten.zero_", "aten.fill_")


def size(values: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


class MovedBytes(TorchDispatchMode):
    """Counts what operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        name, schema = str(func), func._schema
        is_view = schema.returns and all(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if is_view or "empty" in name or name.startswith("c10d"):
            return output
        for place, argument in enumerate(schema.arguments):
            value = size(args[place] if place < len(args) else kwargs.get(argument.name))
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            is_written = is_written and argument.name != "grads"  # of fused AdamW, which may unscale them, and does not
            is_read = not (is_written and name.startswith(_OVERWRITES))
            self.total += value * (is_read + is_written)
        outputs = output if isinstance(output, tuple) else (output,)
        self.total += sum(size(v) for r, v in zip(schema.returns, outputs, strict=False) if r.alias_info is None)
        return output


def moved(plan: RunPlan) -> tuple[int, int]:
    """Return rank 0's bytes of the third train step: of `engine.step`, and of the passes before it."""

    def run() -> tuple[int, int]:
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        from chinchilla_ds.distributed import groups
        from chinchilla_ds.engine.zero import TrainingEngine

        groups.initialize(layout=plan.layout)
        engine = TrainingEngine(plan=plan, ds_config=ds_config.emit(plan))
        for step in range(2):
            engine.train_step(own_micro_batches(plan, step), learning_rate=1e-3)
        in_step, everything, real = MovedBytes(), MovedBytes(), engine.engine.step

        def counted() -> None:
            with in_step:
                real()

        engine.engine.step = counted
        batches = own_micro_batches(plan, 2)
        with everything:
            engine.train_step(batches, learning_rate=1e-3)
        return in_step.total, everything.total - in_step.total

    return run_on_ranks(run, plan.layout.world_size, timeout_s=280)[0]


def plan_of(zero_stage: int, data: int, micro_batches: int) -> RunPlan:
    shape = dataclasses.replace(SHAPE, num_layers=2, hidden_size=256, ffn_hidden_size=704, kv_channels=64)
    return tiny_plan(
        shape=shape,
        zero_stage=zero_stage,
        data_parallel_size=data,
        gradient_accumulation_steps=micro_batches,
        micro_batch_size=1,
        precision=Precision.BF16,
    )


def per_param(zero_stage: int, data: int) -> tuple[float, float, float]:
    """Return bytes per parameter: of the step, and of the first and of each later micro-batch."""
    plan = plan_of(zero_stage, data, 1)
    step, first = moved(plan)
    _, all_of_them = moved(plan_of(zero_stage, data, 1 + LATER))
    return step / plan.num_params, first / plan.num_params, (all_of_them - first) / LATER / plan.num_params


@pytest.fixture(scope="module")
def passes() -> float:
    """Bytes per parameter of one micro-batch's passes alone: those of ZeRO-0 on one rank, which copies nothing."""
    plan = plan_of(0, 1, 1)
    return moved(plan)[1] / plan.num_params


@pytest.mark.parametrize(
    ("zero_stage", "data"),
    [(0, 1), (3, 1), *(pytest.param(zero, data, marks=pytest.mark.slow) for zero, data in [(1, 1), (2, 1)])]
    + [pytest.param(zero, 2, marks=pytest.mark.slow) for zero in range(4)],
)
def test_the_engine_moves_the_bytes_that_are_counted(zero_stage, data, passes):
    step, first, later = per_param(zero_stage, data)
    share = 1 if zero_stage == 0 else 1 / data
    assert step == pytest.approx(share * (BYTES_PER_PARAM[zero_stage] + 2 * BYTES_PER_STATE), rel=TOLERANCE)
    copies = [WIDTH * elements for elements in copied_elements(zero_stage=zero_stage, data=data)]
    assert [first - passes, later - passes] == pytest.approx(copies, rel=TOLERANCE, abs=1.0)


def test_control_the_counter_sees_one_copy_more(passes):
    with MovedBytes() as counter:
        torch.zeros(1000, dtype=torch.bfloat16).float()
    assert counter.total == 1000 * (2 + 2 + 4), "zeros written, then read and written in FP32"
    assert passes > 10
