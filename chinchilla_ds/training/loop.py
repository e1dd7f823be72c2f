"""The training loop: tokens, not epochs. The loop owns the steps; callbacks own everything else."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from chinchilla_ds.budget.speed.devices import peak_flops_per_s
from chinchilla_ds.config import CheckpointConfig, GuardConfig
from chinchilla_ds.data.feeding.loader import TokenBatch, TokenLoader
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.distributed import cpu_backend, groups
from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.evaluation.bits_per_byte import bits_per_byte
from chinchilla_ds.files import write_durably
from chinchilla_ds.objective import Objective
from chinchilla_ds.processes.stopping import STOP_FILE, StopRequest
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.training import samples
from chinchilla_ds.training.callback import Callback, EvaluationResult, StepResult, TrainingState
from chinchilla_ds.training.guards import Guards
from chinchilla_ds.training.lr_schedule import learning_rate
from chinchilla_ds.training.saving import Saver
from chinchilla_ds.training.spikes import Rewind
from chinchilla_ds.training.watchdog import Watchdog

EVALUATION_TOKENS = 32_768
"""Held-out tokens of the evaluations within a run; the last one reads all of it, in whole global batches."""
SAVE_SCALE = 3.0
"""Time limit of a checkpoint, in multiples of a step's."""
START_SCALE = 6.0
"""Time limit of building the engine and loading a checkpoint, in multiples of a step's."""


def pretrain(
    *,
    plan: RunPlan,
    ds_config: dict[str, Any],
    prepared: PreparedData,
    run_folder: Path,
    artifacts: dict[str, str],
    callbacks: Sequence[Callback],
    saved_callbacks: Mapping[str, Callback] | None = None,
    guards: GuardConfig | None = None,
    saving: CheckpointConfig | None = None,
    resume_from: Path | None = None,
    stop: StopRequest | None = None,
    sample_interval_tokens: int | None = None,
    leave: Callable[[int], object] = os._exit,
    objective: Objective | None = None,
) -> TrainingState:
    """Train to the end of the plan's token budget, evaluate, save; or stop and save when asked to.

    Args:
        plan: The resolved plan; its process groups must be initialised.
        ds_config: The resolved DeepSpeed JSON.
        prepared: The tokenised corpus.
        run_folder: Receives the checkpoints.
        artifacts: Name to path of the files that the run has written so far.
        callbacks: Called on every rank, in this order.
        saved_callbacks: Those whose state the checkpoints hold, by name.
        guards: What to do about bad batches and the like; None for the defaults.
        saving: When to save and where to start; None for the defaults.
        resume_from: A run's folder or one checkpoint, to resume from its newest intact one.
        stop: Receives stop requests by signal; None: only the file STOP is checked.
        sample_interval_tokens: Trained tokens between samples of text; None samples only at the end.
        leave: Ends the process with an exit code when something hangs.
        objective: Computes the loss; None: the one that the plan names.

    Returns:
        The state at the end; `stopped_by` is None if that is the plan's end.

    Raises:
        DivergedError: losses or gradients are non-finite, batch after batch.
        CheckpointError: no checkpoint in `resume_from` is intact, it belongs to other text, or the optimizer keeps
            states that cannot be saved.
        ConfigError: a callback changes the training state, or its own state is not JSON.
        OutputError: a checkpoint cannot be written.
    """
    guards, saving, stop = guards or GuardConfig(), saving or CheckpointConfig(), stop or StopRequest()
    watched = partial(
        Watchdog, timeout_s=guards.hang_timeout_s, run_folder=run_folder, rank=groups.global_rank(), leave=leave
    )
    try:
        with watched() as start, start.phase("the start", scale=START_SCALE):
            run = _Run(
                plan, ds_config, prepared, run_folder, artifacts, callbacks, saved_callbacks, guards, saving, stop,
                sample_interval_tokens, watched(), objective,
            )  # fmt: skip
            run.begin(resume_from, init_from=saving.init_from)
        return run.train()
    finally:
        for callback in callbacks:
            callback.on_close()


class _Run:
    """One run's engine, data and state."""

    def __init__(
        self,
        plan: RunPlan,
        ds_config: dict[str, Any],
        prepared: PreparedData,
        run_folder: Path,
        artifacts: dict[str, str],
        callbacks: Sequence[Callback],
        saved_callbacks: Mapping[str, Callback] | None,
        guards: GuardConfig,
        saving: CheckpointConfig,
        stop: StopRequest,
        sample_interval_tokens: int | None,
        watchdog: Watchdog,
        objective: Objective | None,
    ) -> None:
        self.plan, self.prepared, self.callbacks = plan, prepared, callbacks
        self.loader = TokenLoader(prepared=prepared, plan=plan)
        self.engine = TrainingEngine(plan=plan, ds_config=ds_config, eod_id=prepared.eod_id, objective=objective)
        self.data_parallel_rank = groups.data_parallel_rank()
        self.state = TrainingState(
            plan=plan,
            run_folder=run_folder,
            owns_loss=groups.owns_loss(),
            peak_flops_per_s=_cluster_peak_flops_per_s(plan),
            artifacts=artifacts,
        )
        self.stop = stop
        self.saver = Saver(
            self.engine,
            state=self.state,
            saving=saving,
            ds_config=ds_config,
            prepared=prepared,
            callbacks=saved_callbacks,
        )
        self.sample_interval_tokens = sample_interval_tokens
        self.guards = Guards(
            guards, plan=plan, stage=self.engine.stage, run_folder=run_folder, writes=self.state.owns_loss
        )
        self.watchdog = watchdog

    def begin(self, resume_from: Path | None, *, init_from: Path | None) -> None:
        """Rehearse a save; then resume from a checkpoint, or start with given or with fresh weights."""
        self.saver.rehearse()
        if resume_from is not None:
            self.saver.resume(resume_from)
            self.guards.resumed(self.state)
        elif init_from is not None:
            self.saver.take_weights(init_from)

    def train(self) -> TrainingState:
        self._call("on_train_start")
        with self.watchdog:
            with self.stop.honoured():
                self._take_steps()
            with self.watchdog.phase("the checkpoint", scale=SAVE_SCALE):
                self.saver.finish()
            if self.state.stopped_by is not None:
                self._call("on_stop")
                return self.state
            self._evaluate(max_tokens=None)
            self._sample(self.state.run_folder / "sample.txt")
            with self.watchdog.phase("the checkpoint", scale=SAVE_SCALE):
                self.saver.save(complete=True)
        self._call("on_train_end")
        return self.state

    def _take_steps(self) -> None:
        """Train until the data is consumed, or until a rank was asked to stop and all have saved."""
        while self.state.data_step < self.plan.batch.train_iters:
            self._step()
            if self.state.step is not None and self.state.step.stop:
                reason = self.stop.reason(run_folder=self.state.run_folder)
                with self.watchdog.phase("the checkpoint", scale=SAVE_SCALE):
                    self.saver.save()
                self.state.stopped_by = reason
                self.stop.done()
                if groups.is_rank_zero():
                    (self.state.run_folder / STOP_FILE).unlink(missing_ok=True)  # so that the next start resumes
                return
            if self.state.data_step == self.plan.batch.train_iters:
                break
            if self.state.rewind is not None:
                self._rewind(self.state.rewind)
                continue
            if self._is_due():
                self._evaluate(max_tokens=EVALUATION_TOKENS)
            if self._sample_is_due():
                self._sample(self.state.run_folder / "samples" / f"sample_{self.state.iteration:07d}.txt")
            with self.watchdog.phase("the checkpoint", scale=SAVE_SCALE):
                self.saver.save_if_due()
        with self.watchdog.phase("the checkpoint", scale=SAVE_SCALE):
            self.saver.save_last_step()  # the rest may be long, and signals do not wait for it

    def _rewind(self, rewind: Rewind) -> None:
        """Go back to weights from before a loss spike; the data continues after it."""
        self.state.rewind = None
        with self.watchdog.phase("going back before a loss spike", scale=SAVE_SCALE):
            if self.saver.rewind(rewind):
                self.guards.rewound()

    def _call(self, hook: str) -> None:
        for callback in self.callbacks:
            with self.state.read_by(callback):
                getattr(callback, hook)(self.state)

    def _step(self) -> None:
        """Take one optimizer step.

        A skipped step has trained nothing: its learning rate is used again. The batch of an FP16 overflow is also used
        again; one with a non-finite loss or gradients is passed over.
        """
        state, plan = self.state, self.plan
        started = time.perf_counter()
        rate = learning_rate(
            state.iteration,
            schedule=plan.schedule,
            peak=plan.optimizer.learning_rate,
            train_iters=plan.batch.train_iters,
        )
        asked = self.stop.asked(run_folder=state.run_folder if groups.is_rank_zero() else None)
        with self.watchdog.step(state.iteration + 1):
            self.guards.start_step(state)
            batches = _on_device(self.loader.micro_batches(state.data_step, self.data_parallel_rank))
            result = self.engine.train_step(batches, learning_rate=rate, stop=asked, save=self.saver.time_is_up())
            self._record(result, seconds=time.perf_counter() - started)
        self._call("on_step_end")

    def _record(self, result: StepResult, *, seconds: float) -> None:
        state, plan = self.state, self.plan
        state.step = result
        state.attempts += 1
        self.guards.end_step(state, engine=self.engine)
        state.elapsed_s += seconds
        state.tokens_per_s = plan.tokens_per_iter / seconds
        if state.peak_flops_per_s is not None:
            state.mfu = state.tokens_per_s * plan.flops_per_token / state.peak_flops_per_s

    def _is_due(self) -> bool:
        return not self.state.iteration % self.plan.eval_interval_iters and not (
            self.state.step is not None and self.state.step.skipped
        )

    def _evaluate(self, *, max_tokens: int | None) -> None:
        batches = _on_device(
            self.loader.held_out_batches(data_parallel_rank=self.data_parallel_rank, max_tokens=max_tokens)
        )
        sequences = self.loader.num_held_out_sequences(max_tokens=max_tokens)
        scale = max(1.0, sequences / self.plan.batch.global_batch_size)
        with self.watchdog.phase("the evaluation", scale=scale):
            loss = self.engine.evaluate(batches)
        prepared = self.prepared
        self.state.evaluation = EvaluationResult(
            loss=loss,
            bits_per_byte=bits_per_byte(
                loss_nats_per_token=loss, num_tokens=prepared.held_out_tokens, num_bytes=prepared.held_out_bytes
            ),
            num_tokens=sequences * self.plan.shape.seq_length,
        )
        self._call("on_evaluation_end")

    def _sample_is_due(self) -> bool:
        taken = self.state.step is not None and not self.state.step.skipped
        return taken and samples.is_due(
            consumed_tokens=self.state.consumed_tokens,
            tokens_per_iter=self.plan.tokens_per_iter,
            interval_tokens=self.sample_interval_tokens,
        )

    def _sample(self, path: Path) -> None:
        """Let the model generate a sample, on every rank, and write it to `path`."""
        tokenizer = Tokenizer.load(self.prepared.tokenizer_path, trusted=True)
        with self.watchdog.phase("the sample", scale=samples.NEW_TOKENS):
            sample = samples.draw_sample(
                self.engine.next_token_logits, loader=self.loader, tokenizer=tokenizer, seed=self.plan.seed
            )
        self.state.sample = sample
        if self.state.owns_loss:
            path.parent.mkdir(exist_ok=True)
            write_durably(path, sample.prompt + sample.continuation)
            self.state.artifacts["sample"] = str(path)
        self._call("on_sample")


def _on_device(batches: Iterable[TokenBatch]) -> list[TokenBatch]:
    device = cpu_backend.device()
    return [
        TokenBatch(tokens=batch.tokens.to(device, non_blocking=True), labels=batch.labels.to(device, non_blocking=True))
        for batch in batches
    ]


def _cluster_peak_flops_per_s(plan: RunPlan) -> float | None:
    """Return the peak of all ranks together, assuming equal devices; None if it is unknown."""
    if not cpu_backend.has_cuda():
        return None
    peak = peak_flops_per_s(
        device_name=torch.cuda.get_device_name(),
        precision=plan.precision,
        allow_tf32=torch.backends.cuda.matmul.allow_tf32,
    )
    return None if peak is None else peak * plan.layout.world_size
