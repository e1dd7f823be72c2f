"""A plan's decoder over ZeRO for your own training loop, in your own DeepSpeed script."""

import copy
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.budget.deepspeed_json import resolve as ds_json
from chinchilla_ds.distributed.launch import settle
from chinchilla_ds.errors import ConfigError, LayoutError
from chinchilla_ds.objective import Objective
from chinchilla_ds.processes.libraries import quieten_training, use_cores
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.plan_file import checked_plan

if TYPE_CHECKING:
    from chinchilla_ds.data.feeding.loader import TokenBatch
    from chinchilla_ds.engine.result import StepResult
    from chinchilla_ds.engine.zero import TrainingEngine


_log = logging.getLogger(__name__)


def initialize(
    plan: RunPlan,
    *,
    ds_config: str | Path | Mapping[str, Any],
    objective: Objective | None = None,
    eod_id: int | None = None,
) -> "Engine":
    """Build a plan's decoder over a DeepSpeed engine on the ranks that were started, for your own loop.

    Every rank calls this. The process group is started here, unless the script has started one; it is split into the
    plan's tensor-, pipeline- and data-parallel groups.

    Args:
        plan: The result of `plan`, for the current number of ranks.
        ds_config: The DeepSpeed JSON: a file, a shipped one by its name such as `zero3`, or its content.
        objective: What makes the loss; None is what the plan names.
        eod_id: The end-of-document token; required if the plan masks documents.

    Raises:
        DsConfigError: the JSON contradicts the plan, or DeepSpeed refuses it.
        LayoutError: the plan is for another number of ranks, or they cannot meet.
        ConfigError: numbers of the plan contradict one another, or a document mask without `eod_id`.
    """
    place = settle()
    plan = checked_plan(plan, named="the plan", world_size=place.world_size)
    if plan.layout.world_size != place.world_size:
        raise LayoutError(
            f"the plan is for {plan.layout.world_size} ranks, and {place.world_size} were started; plan with "
            f"`plan.gpus={place.world_size}`"
        )
    if plan.document_mask and eod_id is None:
        raise ConfigError("document_mask needs eod_id, the token that ends a document: give the tokenizer's")
    given = ds_json.load_ds_config(ds_config) if isinstance(ds_config, str | Path) else copy.deepcopy(dict(ds_config))
    resolved = ds_json.resolve(given, plan)
    quieten_training()
    use_cores(place.local_size)
    from chinchilla_ds.distributed.extensions import use_private_extensions_folder

    use_private_extensions_folder()
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.engine.deepspeed_check import check_with_deepspeed
    from chinchilla_ds.engine.zero import TrainingEngine

    groups.initialize(layout=plan.layout)
    check_with_deepspeed(resolved, plan)
    engine = TrainingEngine(plan=plan, ds_config=resolved, eod_id=eod_id, objective=objective)
    return Engine(engine, ds_config=resolved)


class Engine:
    """This rank's part of a decoder in training. Every rank calls every method."""

    def __init__(self, engine: "TrainingEngine", *, ds_config: dict[str, Any]) -> None:
        """Wrap the engine built by `initialize`."""
        self.engine = engine
        self.plan = engine.plan
        self.iteration = 0
        """Optimizer steps taken; skipped ones do not count."""
        self.attempts = 0
        """Optimizer steps tried."""
        self._ds_config = ds_config
        self._started_s = time.monotonic()

    @property
    def data_parallel_rank(self) -> int:
        """Which of `plan.layout.data_parallel_size` shares of every global batch this rank reads."""
        from chinchilla_ds.distributed import groups

        return groups.data_parallel_rank()

    @property
    def owns_loss(self) -> bool:
        """Whether this rank reports for the run: it prints whatever should be printed once."""
        from chinchilla_ds.distributed import groups

        return groups.owns_loss()

    def train_step(self, batches: "Sequence[TokenBatch]", *, learning_rate: float | None = None) -> "StepResult":
        """Take one optimizer step; one with a non-finite loss or gradients is skipped on every rank.

        Args:
            batches: This data-parallel rank's micro-batches of the step, `plan.batch.gradient_accumulation_steps` many;
                model-parallel ranks of one data-parallel rank give the same ones. A `data.feeding.loader.TokenBatch`
                each, or your own dataclass with `tokens` and `labels`, int64 [micro_batch_size, seq_length].
            learning_rate: Learning rate of this step; None: the plan's schedule at `iteration`.

        Returns:
            Loss, what was optimised where that is another, gradient norm, and whether the step was skipped; the same on
            every rank.

        Raises:
            ConfigError: another number or shape of micro-batches than the plan has.
        """
        from chinchilla_ds.training.lr_schedule import learning_rate as planned_rate

        plan, moved = self.plan, self._on_device(batches)
        wanted = plan.batch.gradient_accumulation_steps
        if len(moved) != wanted:
            raise ConfigError(
                f"{len(moved)} micro-batches were given, and the plan's step has {wanted} for each rank "
                "(batch.gradient_accumulation_steps)"
            )
        if learning_rate is None:
            learning_rate = planned_rate(
                self.iteration,
                schedule=plan.schedule,
                peak=plan.optimizer.learning_rate,
                train_iters=plan.batch.train_iters,
            )
        result = self.engine.train_step(moved, learning_rate=learning_rate)
        self.attempts += 1
        self.iteration += not result.skipped
        return result

    def evaluate(self, batches: "Sequence[TokenBatch]") -> float:
        """Return the mean loss of all data-parallel ranks' micro-batches, nats per token.

        Args:
            batches: This rank's micro-batches, the same number on every rank; under a pipeline with several chunks
                per stage a multiple of its length.

        Raises:
            ConfigError: there are none, or their shape differs from the plan's.
        """
        moved = self._on_device(batches)
        if not moved:
            raise ConfigError("there is no micro-batch to evaluate; give at least one on every rank")
        return self.engine.evaluate(moved)

    def save(self, folder: str | Path, *, tokenizer: str | Path | None = None, keep: int = 3) -> Path:
        """Write a checkpoint `step_N` into a folder that all ranks share.

        Args:
            folder: Receives the checkpoints, of which the newest `keep` are kept.
            tokenizer: Copied into the checkpoint: `load`, `generate` and `export` need one.
            keep: At least 1.

        Returns:
            The checkpoint, which `load` reads under any layout.

        Raises:
            OutputError: it cannot be written; nothing incomplete has the name.
        """
        from chinchilla_ds.checkpoint.state import CheckpointState
        from chinchilla_ds.engine.checkpoint import Checkpointer, Retention

        checkpointer = Checkpointer(
            self.engine,
            folder=Path(folder),
            ds_config=self._ds_config,
            tokenizer=None if tokenizer is None else Path(tokenizer),
            retention=Retention(keep=keep),
        )
        elapsed_s = time.monotonic() - self._started_s
        return checkpointer.save(
            CheckpointState(
                iteration=self.iteration, data_step=self.attempts, attempts=self.attempts, elapsed_s=elapsed_s
            )
        )

    def load(self, path: str | Path, *, weights_only: bool = False) -> None:
        """Load weights, optimizer states and counts from a checkpoint of any layout.

        Args:
            path: A checkpoint, or a folder whose newest intact one is used.
            weights_only: Whether to leave optimizer and counts unchanged.

        Raises:
            CheckpointError: there is no intact one, or it belongs to another model.
        """
        from chinchilla_ds.engine import checkpoint

        newest = checkpoint.newest_whole(Path(path), warn=_log.warning)
        saved = checkpoint.load(self.engine, checkpoint=newest, weights_only=weights_only)
        if not weights_only:
            self.iteration, self.attempts = saved.iteration, saved.attempts

    def close(self) -> None:
        """Wait for all ranks and leave the process groups; the last call of the script."""
        from chinchilla_ds.distributed import groups

        groups.wait_for_all()
        groups.shut_down()

    def _on_device(self, batches: "Sequence[TokenBatch]") -> "list[TokenBatch]":
        """Return the micro-batches on this rank's device.

        Raises:
            ConfigError: the shape of one differs from the plan's.
        """
        from chinchilla_ds.distributed import cpu_backend

        device, moved = cpu_backend.device(), []
        wanted = (self.plan.batch.micro_batch_size, self.plan.shape.seq_length)
        for number, batch in enumerate(batches, start=1):
            for name in ("tokens", "labels"):
                if (shape := tuple(getattr(batch, name).shape)) != wanted:
                    raise ConfigError(
                        f"{name} of micro-batch {number} have shape {shape}; the plan's are {wanted}: micro_batch_size "
                        "sequences of seq_length tokens"
                    )
            tokens, labels = (part.to(device, non_blocking=True) for part in (batch.tokens, batch.labels))
            moved.append(dataclasses.replace(batch, tokens=tokens, labels=labels))
        return moved
