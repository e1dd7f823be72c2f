"""Guards of the steps: bad batches, loss spikes, slow ranks, a loss that leaves its band.

Every rank makes the same decisions; the band is only watched, by the rank that owns the loss.

The loop calls them around every step, because some use collectives and all decide what the next step reads;
callbacks may do neither.
"""

import math
from pathlib import Path

from chinchilla_ds.config import GuardConfig, OnSpike
from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.errors import DivergedError
from chinchilla_ds.model.decoder import PipelineStage
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.training.bad_batches import BadBatches
from chinchilla_ds.training.callback import StepResult, TrainingState
from chinchilla_ds.training.loss_monitor import LossMonitor
from chinchilla_ds.training.spikes import SpikeDetector, Verdict, rewind_of
from chinchilla_ds.training.stragglers import WORTH_SAYING, Stragglers

BAD_BATCHES_FILE = "bad_batches.jsonl"


class Guards:
    """Called on every rank."""

    def __init__(
        self, config: GuardConfig, /, *, plan: RunPlan, stage: PipelineStage, run_folder: Path, writes: bool
    ) -> None:
        """Watch a run.

        Args:
            config: What to do.
            plan: The run's plan.
            stage: This rank's stage.
            run_folder: Receives bad_batches.jsonl.
            writes: Whether this rank writes it, and watches the loss.
        """
        self._config, self._plan = config, plan
        file = run_folder / BAD_BATCHES_FILE if writes else None
        self._bad_batches = BadBatches(plan=plan, limit=config.max_bad_batches, file=file)
        self._spikes = SpikeDetector()
        self._loss_monitor = LossMonitor(plan) if writes else None
        self._stragglers = Stragglers(stage)

    def start_step(self, state: TrainingState) -> None:
        """Forget the last step."""
        state.notes = ()
        self._stragglers.start_step(state.attempts)

    def end_step(self, state: TrainingState, *, engine: TrainingEngine) -> None:
        """Judge `state.step`, and count it as a step taken, a batch passed over, or neither.

        Raises:
            DivergedError: batch after batch is bad.
        """
        step = state.step
        assert step is not None
        state.stragglers = self._stragglers.end_step()
        if state.stragglers is not None and state.stragglers.ratio > WORTH_SAYING:
            state.notes += (str(state.stragglers),)
        if not step.skipped:
            self._count(step, state)
        elif not self._bad_batches.is_repeated(step):
            bad = self._bad_batches.add(engine.first_bad_micro_batches(), step=step, state=state)
            state.notes += (f"{bad}; the batch is passed over",)
            state.bad_batches += 1
            state.data_step += 1

    def resumed(self, state: TrainingState) -> None:
        """Take over what an earlier process knew of the run."""
        if self._loss_monitor is not None:
            self._loss_monitor.resume(state)

    def rewound(self) -> None:
        """Start from scratch on weights from before a spike."""
        self._spikes = SpikeDetector()

    def _count(self, step: StepResult, state: TrainingState) -> None:
        if not (step.is_finite and math.isfinite(step.grad_norm)):
            raise DivergedError(
                f"the loss is {step.loss:g} and the gradient norm {step.grad_norm:g} at step {state.iteration + 1} of "
                f"{self._plan.batch.train_iters}, and DeepSpeed took the step; leave bf16.check_grad_overflow on"
            )
        self._bad_batches.end_row()
        state.iteration += 1
        state.data_step += 1
        if self._spikes.add(step.loss, iteration=state.iteration) is Verdict.SPIKE:
            self._meet_spike(state)
        if self._loss_monitor is not None:
            self._loss_monitor.add(state)

    def _meet_spike(self, state: TrainingState) -> None:
        spike = self._spikes.spike
        assert spike is not None
        state.notes += (str(spike),)
        if self._config.on_spike is OnSpike.REWIND:
            state.rewind = rewind_of(spike, data_step=state.data_step, rewinds=state.rewinds)
            if state.rewind is None:
                state.notes += (f"{state.rewinds} rewinds did not help: training continues",)
