import dataclasses
import math
from pathlib import Path

import pytest
from megatron.core.parallel_state import RankGenerator

from chinchilla_ds.engine.nonfinite import FirstBad, NonFinitePlace
from chinchilla_ds.engine.result import StepResult
from chinchilla_ds.run_plan import Precision
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.training.bad_batches import SAME_SCALE_OVERFLOWS, BadBatches, locate, ranks_of_stage

FINE = FirstBad(forward=None, backward=None)
LAYOUT = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "data_parallel_size": 2, "zero_stage": 1}
PLAN = tiny_plan(**LAYOUT, gradient_accumulation_steps=4, micro_batch_size=3)


def at(forward: int | None, backward: int | None, *, chunk: int = 0) -> FirstBad:
    """What a rank saw, by micro-batch."""
    places = [
        None if micro_batch is None else NonFinitePlace(chunk, micro_batch) for micro_batch in (forward, backward)
    ]
    return FirstBad(forward=places[0], backward=places[1])


def result(*, loss: float = math.nan, scale: float = 1.0) -> StepResult:
    return StepResult(loss=loss, grad_norm=math.nan, learning_rate=1e-3, skipped=True, loss_scale=scale)


def test_ranks_stand_in_megatrons_order() -> None:
    order = RankGenerator(tp=2, ep=1, dp=2, pp=2, cp=1, order="tp-cp-ep-dp-pp")
    ours = [
        list(ranks_of_stage(PLAN.layout, stage=stage, replica=replica)) for stage in range(2) for replica in range(2)
    ]
    assert ours == order.get_ranks("tp")


@pytest.mark.parametrize(
    ("seen", "ranks", "samples"),
    [
        # replica 1 is ranks 2, 3 (stage 0) and 6, 7 (stage 1); its micro-batch 2 is the 5th of 8 in the batch of 24
        ({2: (2, 2), 3: (2, 2), 6: (2, 2), 7: (2, 2)}, (2, 3), ((63, 66),)),  # forward, from stage 0 on
        ({2: (None, 2), 3: (None, 2), 6: (2, 2), 7: (2, 2)}, (6, 7), ((63, 66),)),  # forward, in stage 1
        ({2: (None, 2), 3: (None, 2), 6: (None, 2)}, (6,), ((63, 66),)),  # backward, in stage 1
        ({2: (None, 0), 3: (None, 0)}, (2, 3), ((51, 54),)),  # backward, in stage 0
        ({0: (1, 1), 2: (0, 0)}, (0, 2), ((51, 54), (54, 57))),  # both replicas
        ({}, (), ()),
    ],
)
def test_it_is_found_where_it_began(
    seen: dict[int, tuple[int | None, int | None]], ranks: tuple[int, ...], samples: tuple[tuple[int, int], ...]
) -> None:
    ranks_seen = [FINE] * 8
    for rank, (forward, backward) in seen.items():
        ranks_seen[rank] = at(forward, backward)
    found = locate(ranks_seen, step=result(), number=3, data_step=2, plan=PLAN)
    assert (found.ranks, found.samples) == (ranks, samples)
    assert (found.step, found.data_step, found.loss) == (3, 2, "nan")


def test_chunks_come_before_stages() -> None:
    """Two stages of two chunks: a micro-batch passes stage 0, 1, 0, 1."""
    plan = tiny_plan(
        pipeline_model_parallel_size=2,
        virtual_pipeline_model_parallel_size=2,
        zero_stage=1,
        gradient_accumulation_steps=2,
    )
    second_rank_first_chunk = [at(1, 1, chunk=1), at(1, 1, chunk=0)]
    assert locate(second_rank_first_chunk, step=result(), number=1, data_step=0, plan=plan).ranks == (1,)
    first_rank_second_chunk = [at(1, 1, chunk=1), at(1, 1, chunk=1)]
    assert locate(first_rank_second_chunk, step=result(), number=1, data_step=0, plan=plan).ranks == (0,)
    backward_from_there = [at(None, 1, chunk=1), at(None, 1, chunk=0)]
    assert locate(backward_from_there, step=result(), number=1, data_step=0, plan=plan).ranks == (0,)


def test_the_samples_are_the_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Truth: what the loader reads for that rank and micro-batch."""
    from chinchilla_ds.data.feeding.loader import TokenLoader

    read: list[list[int]] = []
    monkeypatch.setattr(
        "chinchilla_ds.data.feeding.loader._micro_batch", lambda _, samples, **__: read.append(list(samples))
    )
    loader = object.__new__(TokenLoader)
    loader._plan, loader._prepared = PLAN, None  # type: ignore[assignment]
    loader._train = []  # type: ignore[assignment]
    list(loader.micro_batches(2, 1))
    for index, samples in enumerate(read):
        seen = [at(index, index) if rank in (2, 3) else FINE for rank in range(8)]
        found = locate(seen, step=result(), number=1, data_step=2, plan=PLAN)
        assert found.samples == ((samples[0], samples[-1] + 1),)


def test_an_fp16_overflow_is_repeated_while_the_scale_falls() -> None:
    plan = dataclasses.replace(PLAN, precision=Precision.FP16)
    batches = BadBatches(plan=plan, limit=5, file=None)
    assert all(batches.is_repeated(result(loss=5.0, scale=2.0**power)) for power in range(24, 0, -1))
    again = [batches.is_repeated(result(loss=5.0, scale=1.0)) for _ in range(20)]
    assert again == [True] * SAME_SCALE_OVERFLOWS + [False] * (20 - SAME_SCALE_OVERFLOWS)
    assert not batches.is_repeated(result(loss=math.inf, scale=2.0**10)), "a loss that overflows is the batch's"
    assert not BadBatches(plan=PLAN, limit=5, file=None).is_repeated(result(loss=5.0)), "fp32 has no scale"


def test_the_record_reads_as_a_sentence(tmp_path: Path) -> None:
    seen = [at(0, 0) if rank in (0, 1) else FINE for rank in range(8)]
    text = str(locate(seen, step=result(loss=math.inf), number=7, data_step=6, plan=PLAN))
    assert text == "step 7: loss inf, samples 144-146, first seen on ranks 0, 1"
    nowhere = str(locate([FINE] * 8, step=result(loss=2.5), number=7, data_step=6, plan=PLAN))
    assert nowhere == "step 7: loss 2.5000, in the sum over data-parallel ranks"
