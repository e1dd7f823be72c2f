"""When a run is saved, and how it resumes from a checkpoint."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chinchilla_ds.checkpoint.folder import CHECKPOINTS_NAME, iteration_of, list_checkpoints, remove
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.config import CheckpointConfig
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.distributed import groups
from chinchilla_ds.distributed.rank_zero import run_on_rank_zero
from chinchilla_ds.engine import checkpoint
from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.training.callback import Callback, TrainingState
from chinchilla_ds.training.callbacks import outside
from chinchilla_ds.training.spikes import Rewind

_log = logging.getLogger(__name__)


class Saver:
    """Saves and restores a run. All methods are called on every rank."""

    def __init__(
        self,
        engine: TrainingEngine,
        *,
        state: TrainingState,
        saving: CheckpointConfig,
        ds_config: dict[str, Any],
        prepared: PreparedData,
        callbacks: Mapping[str, Callback] | None = None,
    ) -> None:
        """Connect an engine and its state to a run's checkpoints.

        Args:
            engine: the engine to save and restore.
            state: the run's state, which `resume` writes.
            saving: when to save, and which checkpoints are kept.
            ds_config: the resolved DeepSpeed JSON.
            prepared: the tokenised corpus.
            callbacks: the callbacks whose state is saved, by name.
        """
        self.engine, self.state = engine, state
        self._saving, self._prepared, self._callbacks = saving, prepared, callbacks or {}
        self._checkpointer = checkpoint.Checkpointer(
            engine,
            folder=state.run_folder / CHECKPOINTS_NAME,
            ds_config=ds_config,
            tokenizer=prepared.tokenizer_path,
            retention=checkpoint.Retention(keep=saving.keep, milestone_iters=saving.milestone_every),
        )
        self._saved_at_s = time.monotonic()
        self._saved_tokens = 0
        self._saved_data_step: int | None = None
        """Step of the newest checkpoint; None: there is none yet."""

    def time_is_up(self) -> bool:
        """Return whether, by this rank's clock, it is time to save."""
        seconds = self._saving.save_every.seconds
        return seconds is not None and groups.is_rank_zero() and time.monotonic() - self._saved_at_s >= seconds

    def save_if_due(self) -> None:
        """Save after a step if a save is due: by time, by tokens, or by steps."""
        state, every = self.state, self._saving.save_every
        step = state.step
        if step is None or step.skipped:
            return
        by_steps = every.iters is not None and state.iteration % every.iters == 0
        by_tokens = every.tokens is not None and state.consumed_tokens - self._saved_tokens >= every.tokens
        is_milestone = self._saving.milestone_every and state.iteration % self._saving.milestone_every == 0
        if step.save or by_steps or by_tokens or is_milestone:
            self.save(in_background=self._saving.save_in_background)

    def save_last_step(self) -> None:
        """Save after the last step, unless a save was due anyway: the evaluation that follows takes long.

        Raises:
            OutputError: it cannot be written.
        """
        if self._saved_data_step != self.state.data_step:
            self.save()

    def save(self, *, complete: bool = False, in_background: bool = False) -> None:
        """Save now.

        Args:
            complete: Whether the run has reached its end.
            in_background: Whether to return as soon as the states have been copied.

        Raises:
            OutputError: this checkpoint, or the one before, cannot be written.
        """
        state = self.state
        folder = self._checkpointer.save(self._stands(complete=complete), in_background=in_background)
        self._saved_at_s, self._saved_tokens = time.monotonic(), state.consumed_tokens
        self._saved_data_step = state.data_step
        state.artifacts["checkpoint"] = str(folder)

    def _stands(self, *, complete: bool) -> CheckpointState:
        """Return the state to save; a non-finite loss is left out, since JSON has no such number."""
        state, prepared, evaluation = self.state, self._prepared, self.state.evaluation
        return CheckpointState(
            iteration=state.iteration,
            data_step=state.data_step,
            attempts=state.attempts,
            bad_batches=state.bad_batches,
            rewinds=state.rewinds,
            elapsed_s=state.elapsed_s,
            tokenizer_sha256=prepared.tokenizer_sha256,
            data_key=prepared.content_key,
            run_name=state.run_folder.name,
            complete=complete,
            loss=None if state.step is None else _finite(state.step.loss),
            held_out_loss=None if evaluation is None else _finite(evaluation.loss),
            held_out_bits_per_byte=None if evaluation is None else _finite(evaluation.bits_per_byte),
            callbacks=outside.states_of(self._callbacks),
        )

    def rehearse(self) -> None:
        """Save a few values, read them back and remove them: a save that cannot work is found before the first step.

        Raises:
            CheckpointError: the optimizer keeps states that cannot be saved.
            OutputError: the run's folder cannot be written, or not all ranks see it.
        """
        self._checkpointer.rehearse(self._stands(complete=False))

    def finish(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            OutputError: it cannot be written.
        """
        self._checkpointer.wait()

    def resume(self, path: Path) -> None:
        """Resume from the newest intact checkpoint of a run, or from a given one.

        Raises:
            CheckpointError: there is none, or it was trained on other text, with another tokenizer or with other
                callbacks.
        """
        newest = checkpoint.newest_whole(path, warn=_log.warning)
        saved = checkpoint.load(self.engine, checkpoint=newest)
        check_text(saved, where=newest, prepared=self._prepared)
        outside.load_states(self._callbacks, saved.callbacks, where=newest)
        state = self.state
        state.iteration, state.data_step, state.attempts = saved.iteration, saved.data_step, saved.attempts
        state.bad_batches, state.rewinds, state.elapsed_s = saved.bad_batches, saved.rewinds, saved.elapsed_s
        state.resumed_at = saved.iteration
        state.artifacts["checkpoint"] = str(newest)
        self._saved_tokens, self._saved_data_step = state.consumed_tokens, state.data_step

    def rewind(self, rewind: Rewind) -> bool:
        """Go back to the newest intact checkpoint from before a loss spike; return whether there is one.

        The data continues where it is, and so do the counts of attempts. Checkpoints from within the spike are
        removed, and the new state is saved: a run that is interrupted now does not meet the spike again.

        Raises:
            CheckpointError: those before the spike are damaged.
            OutputError: the new state cannot be saved.
        """
        self.finish()
        state = self.state
        if not run_on_rank_zero(lambda: _keep_before(rewind.before, folder=state.run_folder / CHECKPOINTS_NAME)):
            state.notes += (f"no checkpoint of at most {rewind.before} steps to go back to: training continues",)
            return False
        to_keep = (state.attempts, state.elapsed_s, state.bad_batches)
        rewinds = state.rewinds + 1
        left = state.iteration
        self.resume(state.run_folder / CHECKPOINTS_NAME)
        state.attempts, state.elapsed_s, state.bad_batches = to_keep
        state.data_step, state.rewinds = rewind.data_step, rewinds
        state.step, self.engine.attempts = None, state.attempts
        self.save()
        _log.warning("went back from step %d to %d, and passed over the batches since", left, state.iteration)
        return True

    def take_weights(self, path: Path) -> None:
        """Start with the weights of the newest intact checkpoint below `path`, and with a fresh optimizer.

        Raises:
            CheckpointError: there is none, or it has another shape or another tokenizer.
        """
        newest = checkpoint.newest_whole(path, warn=_log.warning)
        saved = checkpoint.load(self.engine, checkpoint=newest, weights_only=True)
        check_tokenizer(saved, where=newest, prepared=self._prepared)


def check_tokenizer(saved: CheckpointState, *, where: Path, prepared: PreparedData) -> None:
    """Check that the text was prepared with the tokenizer of a checkpoint.

    Args:
        saved: the checkpoint's state.
        where: the checkpoint.
        prepared: the current text.

    Raises:
        CheckpointError: it was not; both are named.
    """
    if problems := _tokenizer_problems(saved, where=where, prepared=prepared):
        raise CheckpointError(problems)


def check_text(saved: CheckpointState, *, where: Path, prepared: PreparedData) -> None:
    """Check that a run resumes with the text and the tokenizer of its checkpoint.

    Args:
        saved: The checkpoint's state.
        where: The checkpoint.
        prepared: The current text.

    Raises:
        CheckpointError: one of them differs; both are named.
    """
    problems = []
    if saved.data_key is not None and saved.data_key != prepared.content_key:
        problems.append(
            f"the checkpoint {where} was trained on text with key {saved.data_key}, and {prepared.folder} has "
            f"key {prepared.content_key}: text or preparation have changed, so the remaining samples are not "
            "known; give the same text, or start a new run with `checkpoint.resume=none` and "
            f"`checkpoint.init_from={where}`"
        )
    problems += _tokenizer_problems(saved, where=where, prepared=prepared)
    if problems:
        raise CheckpointError(problems)


def _tokenizer_problems(saved: CheckpointState, *, where: Path, prepared: PreparedData) -> list[str]:
    known, here = saved.tokenizer_sha256, prepared.tokenizer_sha256
    if known is None or known == here:
        return []
    tokenizer = next(where.glob("tokenizer*"), where)
    return [
        f"the checkpoint {where} was trained with tokenizer {known}, and {prepared.folder} was made with {here}; "
        f"prepare the text with the checkpoint's: `prepare.tokenizer={tokenizer}`"
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _keep_before(iteration: int, *, folder: Path) -> bool:
    """Remove the checkpoints of more than `iteration` steps, if there are others; return whether there are."""
    newest_first = list_checkpoints(folder)
    newer = [path for path in newest_first if iteration_of(path) > iteration]
    if len(newer) == len(newest_first):
        return False
    for path in newer:
        remove(path)
    return True
