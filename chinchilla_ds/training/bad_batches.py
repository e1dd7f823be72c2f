"""Batches with a non-finite loss or gradients: passed over, counted, recorded; too many in a row end the run."""

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.distributed import groups
from chinchilla_ds.engine.nonfinite import FirstBad
from chinchilla_ds.errors import DivergedError
from chinchilla_ds.run_plan import BatchPlan, ParallelLayout, Precision, RunPlan
from chinchilla_ds.training.callback import StepResult, TrainingState

SAME_SCALE_OVERFLOWS = 8
"""FP16 overflows in a row with an unchanged loss scale after which the batch is bad: more than the 2 that
DeepSpeed's hysteresis waits by default. The scale is then static, or at its smallest."""


@dataclass(frozen=True, kw_only=True)
class BadBatch:
    """One batch that was passed over, as a line of bad_batches.jsonl."""

    step: int
    """The optimizer step that it would have been, counted from 1."""
    data_step: int
    """The global batch, counted from 0."""
    loss: str
    """The loss: a number, "nan" or "inf"."""
    ranks: tuple[int, ...]
    """Global ranks that saw it first: those of the first pipeline stage with a non-finite output, otherwise of the last
    one with a non-finite gradient. Empty if there is neither: the sum over data-parallel ranks became non-finite."""
    samples: tuple[tuple[int, int], ...]
    """Training sequences of those ranks' micro-batches: first, and one past the last. Empty if `ranks` is."""

    def __str__(self) -> str:
        """Return `step 12: loss nan, samples 96-99, first seen on ranks 2, 3`."""
        where = "in the sum over data-parallel ranks"
        if self.ranks:
            ranges = ", ".join(f"{first}-{last - 1}" for first, last in self.samples)
            names = ", ".join(map(str, self.ranks))
            where = f"samples {ranges}, first seen on rank{'s' if len(self.ranks) > 1 else ''} {names}"
        return f"step {self.step}: loss {self.loss}, {where}"


class BadBatches:
    """The bad batches of a run: the same on every rank, except the file, which one rank writes."""

    def __init__(self, *, plan: RunPlan, limit: int, file: Path | None) -> None:
        """Watch a run.

        Args:
            plan: the run's plan.
            limit: bad batches in a row that end the run.
            file: receives a line per bad batch; None: none is written.
        """
        self._plan, self._limit, self._file = plan, limit, file
        self._row: list[BadBatch] = []
        self._scale, self._same_scale = math.nan, 0

    def is_repeated(self, step: StepResult) -> bool:
        """Return whether a skipped step is an ordinary FP16 overflow: only of gradients, and the scale still falls."""
        if self._plan.precision is not Precision.FP16 or not step.is_finite:
            return False
        self._same_scale = self._same_scale + 1 if step.loss_scale == self._scale else 0
        self._scale = step.loss_scale
        return self._same_scale < SAME_SCALE_OVERFLOWS

    def add(self, seen: Sequence[FirstBad], *, step: StepResult, state: TrainingState) -> BadBatch:
        """Record a batch that is passed over, and return the record; every rank calls this.

        Args:
            seen: What every rank saw, by global rank.
            step: The skipped step.
            state: The state when the batch was read.

        Raises:
            DivergedError: there are too many in a row.
        """
        bad = locate(seen, step=step, number=state.iteration + 1, data_step=state.data_step, plan=self._plan)
        self._row.append(bad)
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(bad)) + "\n")
        if len(self._row) >= self._limit:
            groups.wait_for_all()  # the first rank that exits ends the others: the line must be written before
            raise DivergedError(
                [
                    f"{len(self._row)} batches in a row had a non-finite loss or gradients (learning rate "
                    f"{step.learning_rate:.3g}, {state.plan.precision}); lower `learning_rate`, or check the samples "
                    f"listed in {state.run_folder / 'bad_batches.jsonl'}",
                    *map(str, self._row),
                ]
            )
        return bad

    def end_row(self) -> None:
        """Record a step that was taken."""
        self._row.clear()
        self._same_scale = 0


def locate(seen: Sequence[FirstBad], *, step: StepResult, number: int, data_step: int, plan: RunPlan) -> BadBatch:
    """Return the record of a bad batch.

    Args:
        seen: what every rank saw, by global rank.
        step: the skipped step.
        number: the optimizer step that it would have been, counted from 1.
        data_step: the global batch, counted from 0.
        plan: the run's plan.
    """
    ranks: list[int] = []
    samples: set[tuple[int, int]] = set()
    for replica in range(plan.layout.data_parallel_size):
        culprits = _first_in_replica(seen, replica=replica, layout=plan.layout)
        for rank, micro_batch in culprits:
            ranks.append(rank)
            samples.add(_samples(plan.batch, data_step=data_step, micro_batch=micro_batch, replica=replica, plan=plan))
    return BadBatch(
        step=number,
        data_step=data_step,
        loss=f"{step.loss:.4f}" if math.isfinite(step.loss) else f"{step.loss:g}",
        ranks=tuple(sorted(ranks)),
        samples=tuple(sorted(samples)),
    )


def _first_in_replica(seen: Sequence[FirstBad], *, replica: int, layout: ParallelLayout) -> list[tuple[int, int]]:
    """Return the ranks of a replica where it started, and their first bad micro-batch.

    Non-finite values flow forward through the chunks, each over all stages, and then back: they started in the first
    chunk with a non-finite output or, if all outputs are finite, in the last one with a non-finite gradient.
    """
    stages = range(layout.pipeline_model_parallel_size)
    order = list(itertools.product(range(layout.virtual_pipeline_model_parallel_size), stages))
    for direction, way in (("forward", order), ("backward", order[::-1])):
        for chunk, stage in way:
            ranks = ranks_of_stage(layout, stage=stage, replica=replica)
            places = [(rank, getattr(seen[rank], direction)) for rank in ranks]
            culprits = [
                (rank, place.micro_batch) for rank, place in places if place is not None and place.chunk == chunk
            ]
            if culprits:
                return culprits
    return []


def ranks_of_stage(layout: ParallelLayout, *, stage: int, replica: int) -> range:
    """Return the tensor-parallel ranks of one stage of one replica, in megatron-core's order: tp, dp, pp.

    Args:
        layout: the parallel layout.
        stage: the pipeline stage, counted from 0.
        replica: the data-parallel rank.
    """
    tensor = layout.tensor_model_parallel_size
    first = tensor * (replica + layout.data_parallel_size * stage)
    return range(first, first + tensor)


def _samples(batch: BatchPlan, *, data_step: int, micro_batch: int, replica: int, plan: RunPlan) -> tuple[int, int]:
    """Return the training sequences of a micro-batch, as distributed by `data.feeding.loader.TokenLoader`."""
    place = micro_batch * plan.layout.data_parallel_size + replica
    first = data_step * batch.global_batch_size + place * batch.micro_batch_size
    return first, first + batch.micro_batch_size
