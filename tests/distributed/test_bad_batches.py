"""A micro-batch of one rank that makes numbers that are none: every rank skips the step, and nothing remains of it.

Truth: the run that never had that batch, bit for bit. Control: with DeepSpeed's check away, the same fault ruins the
weights.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from chinchilla_ds.config import GuardConfig
from chinchilla_ds.errors import DivergedError
from chinchilla_ds.run_plan import Precision
from chinchilla_ds.testing import RankError
from chinchilla_ds.training.loop import _Run
from tests.parity import harness
from tests.parity.layouts import Case

BAD_STEP, BAD_MICRO_BATCH = 2, 1
STEPS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fault:
    """Where numbers break."""

    rank: int
    kind: str
    """"forward": what the first layer's MLP returns; "backward": the gradient of that; "weight": the gradient of one
    weight and nothing else; "loss": the loss alone."""
    steps: tuple[int, ...] = (BAD_STEP,)


class Loader:
    """Stands in for TokenLoader; reads the batches of `order`, and notes which is read."""

    def __init__(self, plan: Any, order: tuple[int, ...]) -> None:
        self.plan, self.order, self.reads = plan, order, -1

    def micro_batches(self, data_step: int, data_parallel_rank: int) -> Any:
        self.reads = self.order[data_step]
        return harness.micro_batches_of_rank(self.plan, self.reads, data_parallel_rank)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one rank sends home."""

    skipped: list[bool]
    shards: dict[str, harness.Shard]
    iteration: int
    data_step: int
    bad_batches: int
    notes: list[str]
    loss: float


def _inject(engine: Any, loader: Loader, fault: Fault) -> None:
    import deepspeed.runtime.zero.partition_parameters  # noqa: F401
    import torch.distributed as dist

    if dist.get_rank() != fault.rank:
        return
    calls = {"reads": -1, "count": -1}

    def is_due() -> bool:
        calls["count"] = calls["count"] + 1 if calls["reads"] == loader.reads else 0
        calls["reads"] = loader.reads
        return loader.reads in fault.steps and calls["count"] == BAD_MICRO_BATCH

    layer = engine.stage.decoders[0].decoder.layers[0]
    if fault.kind == "forward":
        layer.mlp.register_forward_hook(lambda _m, _i, out: (out[0] * math.nan, *out[1:]) if is_due() else None)
    elif fault.kind == "backward":
        layer.mlp.register_forward_hook(
            lambda _m, _i, out: out[0].register_hook(lambda grad: grad * math.inf) and None if is_due() else None
        )
    elif fault.kind == "weight":
        layer.mlp.linear_fc1.weight.register_hook(lambda grad: grad * math.inf if is_due() else None)
    else:
        # an infinite loss with finite gradients
        engine.stage.register_forward_hook(lambda _m, _i, out: out + math.inf if is_due() else None)


class NeverSaves:
    """Stands in for Saver."""

    def time_is_up(self) -> bool:
        return False


def run_steps(engine: Any, folder: Path, fault: Fault | None, order: tuple[int, ...], limit: int = 5) -> Outcome:
    """A body for `on_engine`: the training loop's own steps over the batches in `order`."""
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.processes.stopping import StopRequest
    from chinchilla_ds.training.callback import TrainingState
    from chinchilla_ds.training.guards import Guards
    from chinchilla_ds.training.watchdog import Watchdog

    plan = engine.plan
    run = object.__new__(_Run)
    run.saver = NeverSaves()
    run.plan, run.callbacks, run.engine, run.stop = plan, (), engine, StopRequest()
    run.loader, run.data_parallel_rank = Loader(plan, order), groups.data_parallel_rank()
    run.watchdog = Watchdog(timeout_s=60.0, run_folder=folder, rank=groups.global_rank())
    run.guards = Guards(
        GuardConfig(max_bad_batches=limit), plan=plan, stage=engine.stage, run_folder=folder, writes=groups.owns_loss()
    )
    run.state = state = TrainingState(plan=plan, run_folder=folder, owns_loss=groups.owns_loss(), peak_flops_per_s=None)
    if fault is not None:
        _inject(engine, run.loader, fault)
    skipped, notes, before = [], [], harness.shards_of(engine.stage)
    while state.data_step < len(order):
        run._step()
        skipped.append(state.step.skipped)
        notes += state.notes
        after = harness.shards_of(engine.stage)
        same = all(torch.equal(after[name].value, shard.value) for name, shard in before.items())
        assert same == state.step.skipped, "weights moved on a skipped step, or stood on another"
        before = after
    return Outcome(
        skipped=skipped,
        shards=before,
        iteration=state.iteration,
        data_step=state.data_step,
        bad_batches=state.bad_batches,
        notes=notes,
        loss=state.step.loss,
    )


def _plan(case: Case, precision: Precision) -> Any:
    return case.plan(precision=precision, warmup_iters=2, learning_rate=1e-3, train_iters=STEPS)


TP2_PP2 = {"tp": 2, "pp": 2, "accumulation": 2}
FAST = [
    (Case(zero=0, dp=2, accumulation=2), Precision.FP32, Fault(rank=1, kind="backward")),
    (Case(zero=1, **TP2_PP2), Precision.FP32, Fault(rank=1, kind="forward")),
    (Case(zero=3, **TP2_PP2), Precision.BF16, Fault(rank=2, kind="backward")),
]
SLOW = [
    (Case(zero=0, dp=2, accumulation=2), Precision.BF16, Fault(rank=1, kind="forward")),
    (Case(zero=0, dp=2, accumulation=2), Precision.FP32, Fault(rank=0, kind="loss")),
    (Case(zero=1, dp=2, accumulation=2), Precision.BF16, Fault(rank=1, kind="loss")),
    (Case(zero=1, dp=2, accumulation=2), Precision.FP32, Fault(rank=0, kind="backward")),
    (Case(zero=2, dp=2, accumulation=2), Precision.FP32, Fault(rank=1, kind="loss")),
    (Case(zero=2, dp=2, accumulation=2), Precision.BF16, Fault(rank=0, kind="weight")),
    (Case(zero=2, dp=2, accumulation=2, offload="optimizer"), Precision.FP32, Fault(rank=1, kind="forward")),
    (Case(zero=2, dp=2, accumulation=2, offload="optimizer"), Precision.BF16, Fault(rank=0, kind="backward")),
    (Case(zero=3, dp=2, accumulation=2), Precision.FP32, Fault(rank=1, kind="weight")),
    (Case(zero=3, dp=2, accumulation=2), Precision.BF16, Fault(rank=0, kind="loss")),
    (Case(zero=3, dp=2, accumulation=2, offload="all"), Precision.FP32, Fault(rank=1, kind="forward")),
    (Case(zero=3, dp=2, accumulation=2, offload="all"), Precision.BF16, Fault(rank=1, kind="backward")),
    (Case(zero=0, tp=2, dp=2, accumulation=2), Precision.FP32, Fault(rank=2, kind="forward")),
    (Case(zero=1, **TP2_PP2), Precision.BF16, Fault(rank=0, kind="backward")),
    (Case(zero=2, **TP2_PP2), Precision.FP32, Fault(rank=3, kind="loss")),
    (Case(zero=3, **TP2_PP2), Precision.FP32, Fault(rank=3, kind="forward")),
    (Case(zero=1, tp=2, dp=2, accumulation=2, sequence_parallel=True), Precision.BF16, Fault(rank=3, kind="forward")),
    (Case(zero=1, pp=2, virtual=2, accumulation=2), Precision.FP32, Fault(rank=1, kind="forward")),
]
_CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


def _name(value: object) -> str:
    return f"{value.kind}-on-{value.rank}" if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(("case", "precision", "fault"), _CASES, ids=_name)
def test_every_rank_passes_over_the_batch_as_if_it_had_never_been(
    case: Case, precision: Precision, fault: Fault, tmp_path: Path
) -> None:
    plan = _plan(case, precision)
    met = harness.on_engine(plan, run_steps, tmp_path, fault, (0, 1, 2, 3, 4))
    spared = harness.on_engine(plan, run_steps, tmp_path, None, (0, 1, 3, 4))
    for one, other in zip(met, spared, strict=True):
        assert one.skipped == [False, False, True, False, False]
        assert other.skipped == [False] * 4
        assert (one.iteration, one.data_step, one.bad_batches) == (4, 5, 1)
        assert one.loss == other.loss
        for name, shard in one.shards.items():
            assert torch.equal(shard.value, other.shards[name].value), name
    _check_record(tmp_path, plan, fault)


def _check_record(folder: Path, plan: Any, fault: Fault) -> None:
    """The file names step, samples, and ranks: the faulty one, with those that share its layers."""
    (line,) = (folder / "bad_batches.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["step"], record["data_step"]) == (BAD_STEP + 1, BAD_STEP)
    layout, batch = plan.layout, plan.batch
    tensor = layout.tensor_model_parallel_size
    replica = fault.rank // tensor % layout.data_parallel_size
    neighbours = range(fault.rank // tensor * tensor, fault.rank // tensor * tensor + tensor)
    if fault.kind == "weight":  # broken in the last product of all, and summed at once
        assert (record["ranks"], record["samples"]) == ([], [])
        return
    assert record["ranks"], record
    assert set(record["ranks"]) <= set(neighbours), record
    place = BAD_MICRO_BATCH * layout.data_parallel_size + replica
    first = BAD_STEP * batch.global_batch_size + place * batch.micro_batch_size
    assert record["samples"] == [[first, first + batch.micro_batch_size]]


@pytest.mark.parametrize("zero", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_control_without_the_check_the_weights_are_ruined(
    zero: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chinchilla_ds.engine import zero as engine_module

    plan = _plan(Case(zero=zero, dp=2, accumulation=2), Precision.FP32)

    def ruined(engine: Any) -> bool:
        _inject(engine, loader := Loader(plan, (2,)), Fault(rank=1, kind="weight"))
        loader.micro_batches(0, 0)
        engine.train_step(harness.own_micro_batches(plan, 2), learning_rate=1e-3)
        return any(not torch.isfinite(shard.value).all() for shard in harness.shards_of(engine.stage).values())

    monkeypatch.setattr(engine_module.math, "isfinite", lambda _: True)
    monkeypatch.setattr("deepspeed.runtime.zero.stage3.is_invalid_grad_norm", lambda _: False)
    assert harness.on_engine(plan, ruined) == [True, True]


def test_too_many_in_a_row_end_the_run_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_slowly(path: Path, *args: Any, **more: Any) -> Any:
        time.sleep(0.5 if path.name == "bad_batches.jsonl" else 0.0)
        return open(path, *args, **more)

    monkeypatch.setattr(Path, "open", open_slowly)  # the rank that writes is the last one to see the end
    plan = _plan(Case(zero=1, dp=2, accumulation=2), Precision.FP32)
    fault = Fault(rank=1, kind="forward", steps=(1, 2, 3))
    with pytest.raises(RankError) as caught:
        harness.on_engine(plan, run_steps, tmp_path, fault, (0, 1, 2, 3, 4), 3)
    error = caught.value.exception
    assert isinstance(error, DivergedError)
    assert error.problems[0].startswith("3 batches in a row had a non-finite loss or gradients")
    assert error.problems[1:] == (
        "step 2: loss nan, samples 14-15, first seen on rank 1",
        "step 2: loss nan, samples 22-23, first seen on rank 1",
        "step 2: loss nan, samples 30-31, first seen on rank 1",
    )
    assert len((tmp_path / "bad_batches.jsonl").read_text().splitlines()) == 3
