"""The batch sizes that DeepSpeed is told, against DeepSpeed's own rule: train = micro x accumulation x data ranks."""

import copy
import random
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json.resolve import emit
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.errors import ChinchillaError
from chinchilla_ds.run_plan import Precision, Recompute, RunPlan

DRAWS = 120
TRIANGLE = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def drawn_plan(seed: int) -> RunPlan | None:
    """Return the plan for a random layout and random batch sizes, or None where there is none."""
    draw = random.Random(seed)
    tensor, pipeline, data = draw.choice([1, 1, 2]), draw.choice([1, 1, 2]), draw.choice([1, 2, 3, 4, 6, 8])
    layout = LayoutConfig(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=draw.choice([1, 1, 2]) if pipeline > 1 else 1,
        zero_stage=draw.randrange(int(pipeline > 1), 4),
        sequence_parallel=tensor > 1 and draw.random() < 0.5,
        recompute=draw.choice(list(Recompute)),
    )
    config = RunConfig(
        compute_budget_flops=10 ** draw.uniform(12.5, 15),
        precision=draw.choice(list(Precision)),
        global_batch_size=draw.choice(
            [None, draw.randrange(1, 97), 12 * draw.randrange(1, 17), 24 * draw.randrange(1, 9)]
        ),
        micro_batch_size=draw.choice([None, None, 1, 2, 3, 4]),
        layout=layout,
    )
    try:
        return make_plan(config, world_size=tensor * pipeline * data, device="cpu")
    except ChinchillaError:
        return None


@pytest.fixture(scope="module")
def plans() -> list[RunPlan]:
    return [plan for plan in map(drawn_plan, range(DRAWS)) if plan is not None]


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return DeepSpeed's reading of a JSON on a number of data-parallel ranks, as `deepspeed.initialize` reads it."""
    from deepspeed.runtime import config as deepspeed_config

    class Ranks:
        def __init__(self, data_parallel_size: int) -> None:
            self.get_data_parallel_world_size = lambda: data_parallel_size

    def parse_on(ds: dict[str, Any], data_parallel_size: int) -> Any:
        return deepspeed_config.DeepSpeedConfig(copy.deepcopy(ds), mpu=Ranks(data_parallel_size))

    monkeypatch.setattr(deepspeed_config.dist, "get_rank", lambda: 0)
    return parse_on


def test_the_draws_reach_every_kind_of_plan(plans: list[RunPlan]) -> None:
    assert len(plans) >= 60
    assert {plan.layout.data_parallel_size for plan in plans} == {1, 2, 3, 4, 6, 8}
    assert {plan.layout.zero_stage for plan in plans} == {0, 1, 2, 3}
    assert {plan.layout.virtual_pipeline_model_parallel_size for plan in plans} == {1, 2}
    assert len({plan.batch.gradient_accumulation_steps for plan in plans}) >= 8
    assert any(plan.layout.pipeline_model_parallel_size == 2 and plan.layout.zero_stage == 3 for plan in plans)


def test_deepspeed_accepts_every_emitted_triangle(plans: list[RunPlan], parse: Any) -> None:
    for plan in plans:
        ds, batch, data = emit(plan), plan.batch, plan.layout.data_parallel_size
        parsed = parse(ds, data)
        sizes = (batch.global_batch_size, batch.micro_batch_size, batch.gradient_accumulation_steps)
        assert tuple(ds[key] for key in TRIANGLE) == sizes
        assert tuple(getattr(parsed, key) for key in TRIANGLE) == sizes
        assert parsed.world_size == data
        assert sizes[0] == sizes[1] * sizes[2] * data


def test_control_deepspeed_refuses_a_triangle_that_is_off(plans: list[RunPlan], parse: Any) -> None:
    for plan in plans[:20]:
        data = plan.layout.data_parallel_size
        with pytest.raises(AssertionError, match="train_batch_size is not equal"):
            parse(emit(plan), data + 1)
        for key in TRIANGLE:
            ds = emit(plan)
            with pytest.raises(AssertionError, match="train_batch_size is not equal"):
                parse(ds | {key: ds[key] + 1}, data)


def test_engine_tells_a_pipeline_one_accumulation_step(plans: list[RunPlan], parse: Any) -> None:
    """Megatron averages over the micro-batches there, so for DeepSpeed every one is a batch; the plan has the rest."""
    from chinchilla_ds.engine.zero import for_deepspeed

    piped = 0
    for plan in plans:
        batch, data = plan.batch, plan.layout.data_parallel_size
        told = parse(for_deepspeed(emit(plan), plan), data)
        assert told.train_micro_batch_size_per_gpu == batch.micro_batch_size
        if plan.layout.pipeline_model_parallel_size > 1:
            assert told.gradient_accumulation_steps == 1
            assert told.train_batch_size * batch.gradient_accumulation_steps == batch.global_batch_size
            piped += batch.gradient_accumulation_steps > 1
        else:
            assert told.gradient_accumulation_steps == batch.gradient_accumulation_steps
            assert told.train_batch_size == batch.global_batch_size
    assert piped >= 10
