"""Checkpoints of a training engine: saved by every rank, at once or in the background, and loaded under any layout.

They are written through torch.distributed.checkpoint, with global names and boxes of whole weights, not in DeepSpeed's
own or universal format: those are written per layout and converted by another program, which reads the model-parallel
rank as the tensor-parallel one and therefore loses pipeline stages under ZeRO-3.
"""

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.contents import read_contents
from chinchilla_ds.checkpoint.index import WEIGHT
from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.checkpoint.state import LOSS_SCALER_FIELDS, CheckpointState, objective_problems, shape_problems
from chinchilla_ds.checkpoint.tensors import Block, load_blocks, save_blocks
from chinchilla_ds.checkpoint.writer import library_versions, write_small_files
from chinchilla_ds.distributed.rank_zero import run_on_rank_zero
from chinchilla_ds.engine import rehearsal
from chinchilla_ds.engine.owned_states import OwnedState, blocks_of, catch_up, owned_states, publish
from chinchilla_ds.engine.zero import TrainingEngine
from chinchilla_ds.errors import CheckpointError, ChinchillaError, OutputError, reason
from chinchilla_ds.model.initialization import global_named_parameters
from chinchilla_ds.objective import is_own
from chinchilla_ds.optimizers import checkpoint_bytes
from chinchilla_ds.units import format_bytes


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints are kept."""

    keep: int = 3
    """Number of newest checkpoints that are kept."""
    milestone_iters: int | None = None
    """Checkpoints at multiples of this many steps are kept permanently."""


class Checkpointer:
    """Saves one engine, one checkpoint at a time. All methods are called on every rank."""

    def __init__(
        self,
        engine: TrainingEngine,
        *,
        folder: Path,
        ds_config: dict[str, Any],
        tokenizer: Path | None = None,
        retention: Retention | None = None,
    ) -> None:
        """Prepare to save.

        Args:
            engine: The engine to save.
            folder: Receives the checkpoints; all ranks share it.
            ds_config: The resolved DeepSpeed JSON.
            tokenizer: Copied into every checkpoint.
            retention: Which checkpoints are kept.
        """
        self.engine, self.folder, self.tokenizer = engine, folder, tokenizer
        self._ds_config, self._retention = ds_config, retention or Retention()
        # A separate group: a save in the background must not interfere with the training's collectives.
        self._group = dist.new_group(backend="gloo")
        self._writing: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._buffers: list[dict[str, torch.Tensor]] = []

    def save(self, state: CheckpointState, *, in_background: bool = False) -> Path:
        """Write a checkpoint; return when it is complete, or in the background as soon as the states have been copied.

        Args:
            state: The state of the run; the engine's part is filled in here.
            in_background: Whether training continues while the copy is written. States on NVMe are written at once.

        Returns:
            The checkpoint's folder.

        Raises:
            OutputError: it, or the previous one, cannot be written; nothing incomplete has the name.
        """
        self.wait()
        checkpoint = self.folder / folders.checkpoint_name(state.iteration)
        self._begin(checkpoint)
        states = self._states()
        state = self._completed(state, states)
        in_background = in_background and not any(owned.swapped for owned in states)
        blocks = self._copied_blocks(states) if in_background else _blocks(states)

        def write() -> None:
            self._write(checkpoint, blocks=blocks, state=state)

        if in_background:
            self._start(write)
        else:
            write()
        return checkpoint

    def rehearse(self, state: CheckpointState) -> None:
        """Write a checkpoint of a few values with the real writer, read it back, and remove it, before the first step.

        What cannot be saved, written, or read by every rank is found then, not after an hour of training.

        Args:
            state: As for `save`.

        Raises:
            CheckpointError: the optimizer keeps states that a checkpoint cannot hold.
            OutputError: the folder cannot be written, is too full for a checkpoint, is not shared by all ranks, or
                returns something else.
        """
        states, rank = self._states(), dist.get_rank(self._group)
        self._agree(rehearsal.precision_problems(states), kind=CheckpointError)
        folder = self.folder / rehearsal.FOLDER_NAME
        checkpoint = folder / folders.checkpoint_name(0)
        run_on_rank_zero(lambda: shutil.rmtree(folder, ignore_errors=True))  # of a process that was killed
        self._begin(checkpoint)
        values = rehearsal.sample_values(states)
        self._write(checkpoint, blocks=rehearsal.sample_blocks(values, rank=rank), state=self._completed(state, states))
        problems = rehearsal.read_back(checkpoint, values=values, rank=rank, plan=self.engine.plan)
        where = f"rank {rank} cannot read back a small checkpoint that all ranks wrote; they must share its folder"
        try:
            self._agree([f"{where}: {problem}" for problem in problems], kind=OutputError)
        except OutputError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        run_on_rank_zero(lambda: shutil.rmtree(folder))

    def _agree(self, problems: list[str], *, kind: type[ChinchillaError]) -> None:
        """Raise the problems of all ranks on every rank, if there are any."""
        gathered: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(gathered, problems, group=self._group)
        if distinct := sorted({problem for part in gathered for problem in part}):
            raise kind(distinct)

    def _begin(self, checkpoint: Path) -> None:
        num_bytes = checkpoint_bytes(self.engine.plan)
        run_on_rank_zero(lambda: _begin(checkpoint, num_bytes=num_bytes))

    def _states(self) -> list[OwnedState]:
        return owned_states(self.engine.engine, self.engine.stage, plan=self.engine.plan)

    def _completed(self, state: CheckpointState, states: list[OwnedState]) -> CheckpointState:
        """Return the state of the run with the engine's part filled in."""
        return dataclasses.replace(
            state,
            optimizer_step=max((owned.step for owned in states), default=0),
            loss_scaler=_loss_scaler(self.engine.engine),
            objective_state=self.engine.objective.state_dict(),
            world_size=dist.get_world_size(),
            versions=library_versions(),
        )

    def wait(self) -> None:
        """Wait for the save in the background.

        Raises:
            OutputError: it could not be written.
        """
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _start(self, write: Callable[[], None]) -> None:
        def run() -> None:
            try:
                write()
            except BaseException as failure:  # raised in the main thread, by `wait`
                self._failure = failure

        self._writing = threading.Thread(target=run, name="checkpoint", daemon=True)
        self._writing.start()

    def _copied_blocks(self, states: list[OwnedState]) -> list[Block]:
        """Return blocks over copies on the host, whose memory is reused from save to save."""
        tensors = [owned.tensors() for owned in states]
        if not self._buffers:
            pinned = torch.cuda.is_available()
            self._buffers = [
                {kind: torch.empty(flat.shape, dtype=flat.dtype, pin_memory=pinned) for kind, flat in flats.items()}
                for flats in tensors
            ]
        for buffers, flats in zip(self._buffers, tensors, strict=True):
            for kind, flat in flats.items():
                buffers[kind].copy_(flat, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return [
            block
            for owned, buffers in zip(states, self._buffers, strict=True)
            for block in blocks_of(owned, tensors=buffers, copies=False)
        ]

    def _write(self, checkpoint: Path, *, blocks: Iterable[Block], state: CheckpointState) -> None:
        """Write this rank's part, and on rank 0 the shared files; then give the checkpoint its name."""
        aside, rank = folders.aside_of(checkpoint), dist.get_rank(self._group)
        tensors = aside / folders.TENSORS_NAME
        try:
            save_blocks(blocks, folder=tensors, group=self._group)
        except CheckpointException as error:
            if rank == 0:
                folders.abandon(checkpoint)
            raise _output_error(checkpoint, error.failures.values()) from None
        mine = {str(path.relative_to(aside)): folders.record_file(path) for path in tensors.glob(f"__{rank}_*")}
        gathered: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(gathered, mine, group=self._group)
        outcome: list[ChinchillaError | None] = [None]
        if rank == 0:
            records = {name: record for part in gathered for name, record in part.items()}
            outcome[0] = self._commit(checkpoint, records=records, state=state)
        dist.broadcast_object_list(outcome, src=0, group=self._group)
        if outcome[0] is not None:
            raise outcome[0]

    def _commit(
        self, checkpoint: Path, *, records: dict[str, folders.FileRecord], state: CheckpointState
    ) -> ChinchillaError | None:
        """Finish a checkpoint whose tensors are written; return the error, if any."""
        aside = folders.aside_of(checkpoint)
        try:
            write_small_files(
                aside, plan=self.engine.plan, ds_config=self._ds_config, state=state, tokenizer=self.tokenizer
            )
            for path in (path for path in aside.rglob("*") if path.is_file()):
                name = str(path.relative_to(aside))
                if name not in records:
                    records[name] = folders.record_file(path)
            folders.commit(checkpoint, records=records)
            folders.prune(checkpoint.parent, keep=self._retention.keep, milestone_iters=self._retention.milestone_iters)
        except OSError as error:
            folders.abandon(checkpoint)
            return _output_error(checkpoint, [error])
        return None


def _begin(checkpoint: Path, *, num_bytes: int) -> None:
    try:
        folders.begin(checkpoint)
        free = shutil.disk_usage(checkpoint.parent).free
    except OSError as error:
        raise _output_error(checkpoint, [error]) from None
    if free < num_bytes:
        folders.abandon(checkpoint)
        raise OutputError(
            f"cannot write the checkpoint {checkpoint}: it takes {format_bytes(num_bytes)} and {format_bytes(free)} "
            "are free; free some and start the same command again, which resumes from the last checkpoint"
        )


def _output_error(checkpoint: Path, failures: Iterable[Any]) -> OutputError:
    """Return the error to report for failures in writing; other failures are raised."""
    errors = [failure[0] if isinstance(failure, tuple) else failure for failure in failures]
    for error in errors:
        if isinstance(error, OSError):
            return OutputError(
                f"cannot write the checkpoint {checkpoint}: {reason(error)}; the earlier checkpoints are intact, and "
                "the same command resumes from the last one"
            )
    raise errors[0]


def _blocks(states: list[OwnedState]) -> list[Block]:
    """Return blocks over the live states; those on NVMe are read as they are written."""
    blocks, on_nvme = [], _OnNvme()
    for owned in states:
        if owned.swapped:
            blocks += on_nvme.blocks(owned)
        else:
            blocks += list(blocks_of(owned, tensors=owned.tensors(), copies=False))
    return blocks


class _OnNvme:
    """Streams states on NVMe into a checkpoint: one sub-group is on the host at a time, since not all may fit."""

    def __init__(self) -> None:
        self._held: OwnedState | None = None
        self._tensors: dict[str, torch.Tensor] = {}

    def blocks(self, owned: OwnedState) -> list[Block]:
        """Return blocks that are read when they are written, one after another."""
        numel = max((piece.flat_start + piece.numel for piece in owned.pieces), default=0)
        places = {kind: torch.empty(numel, device="meta") for kind in (WEIGHT, *owned.spec.states)}
        return [
            dataclasses.replace(block, read=lambda part: self._read(owned, part))
            for block in blocks_of(owned, tensors=places, copies=False)
        ]

    def _read(self, owned: OwnedState, part: Block) -> torch.Tensor:
        if self._held is not owned:
            self._tensors = {}
            with owned.resident():
                self._tensors = {kind: flat.clone() for kind, flat in owned.tensors().items()}
            self._held = owned
        kind, place = part.key.partition("/")[0], part.values
        return self._tensors[kind].as_strided(place.shape, place.stride(), place.storage_offset())


def _loss_scaler(engine: Any) -> dict[str, Any]:
    holder = _scaler_of(engine)
    return {name: getattr(holder, name) for name in LOSS_SCALER_FIELDS if hasattr(holder, name)}


def _scaler_of(engine: Any) -> Any:
    """Return the object with FP16's dynamic loss scale; None in other precisions."""
    if not engine.fp16_enabled():
        return None
    return getattr(engine.optimizer, "loss_scale_config", None) or engine.optimizer.loss_scaler


# ---- loading ---------------------------------------------------------------------------------------------------------


def newest_whole(path: Path, *, warn: Callable[[str], None]) -> Path:
    """Return the newest checkpoint below `path` whose files match its manifest; every rank calls this.

    The ranks read the files together, each some of them.

    Args:
        path: A checkpoint, a folder of them, or a run's folder.
        warn: Called on rank 0 with the problems of newer ones.

    Raises:
        CheckpointError: there is none.
    """
    damaged: list[str] = []
    for checkpoint in run_on_rank_zero(lambda: folders.find_checkpoints(path)):
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, _problems_of_share(checkpoint))
        problems = sorted({problem for part in of_ranks for problem in part})
        if not problems:
            if damaged and dist.get_rank() == 0:
                for problem in (*damaged, f"resuming from {checkpoint}, the newest that is intact"):
                    warn(problem)
            return Path(checkpoint)
        damaged += problems
    raise CheckpointError([*damaged, f"{path} holds no intact checkpoint"])


def _problems_of_share(checkpoint: Path) -> list[str]:
    """Return the problems of this rank's share of a checkpoint's files, on rank 0 also of the small files' content."""
    rank = dist.get_rank()
    try:
        names = sorted(folders.read_manifest(checkpoint).files)
        if problems := list(folders.damage(checkpoint, names=frozenset(names[rank :: dist.get_world_size()]))):
            return problems
        if rank == 0:
            read_contents(checkpoint)
    except CheckpointError as error:
        return list(error.problems)
    return []


@torch.no_grad()
def load(engine: TrainingEngine, *, checkpoint: Path, weights_only: bool = False) -> CheckpointState:
    """Read a checkpoint into an engine of any layout; every rank reads what it holds.

    Args:
        engine: Its plan must have the checkpoint's shape.
        checkpoint: A checkpoint whose files are known to be intact.
        weights_only: Whether to leave optimizer and counters unchanged: to start a new run from these weights.

    Returns:
        The saved state of the run.

    Raises:
        CheckpointError: it belongs to another model, or to another optimizer.
    """
    reader = CheckpointReader(checkpoint)
    problems = shape_problems(reader.plan.shape, engine.plan.shape, checkpoint=checkpoint)
    if not weights_only:
        problems += objective_problems(reader.plan, engine.plan, checkpoint=checkpoint)
    saved, here = reader.plan.optimizer.plugin, engine.plan.optimizer.plugin
    if saved != here and not weights_only:
        problems.append(
            f"the checkpoint {checkpoint} was trained by the optimizer {saved}, and the plan says {here}: resume with "
            f"`optimizer={saved}`, or start a new run from its weights with `checkpoint.init_from={checkpoint}`"
        )
    if problems:
        raise CheckpointError(problems)
    absent = _absent_weights(engine, reader, weights_only=weights_only)
    states = owned_states(engine.engine, engine.stage, plan=engine.plan)
    resumes = reader.has_optimizer and not weights_only
    kinds = (WEIGHT, *engine.plan.optimizer.states) if resumes else (WEIGHT,)
    of_states: tuple[str, ...] = ()
    try:
        for owned in states:
            _load_state(owned, reader=reader, kinds=kinds, absent=absent)
    except CheckpointError as error:
        of_states = error.problems
    _raise_together(of_states)
    if states and resumes:
        catch_up(states[0].optimizer, step=reader.state.optimizer_step)
    publish(engine.engine, zero_stage=engine.plan.layout.zero_stage)
    if not weights_only:
        _restore_counters(engine.engine, reader.state)
        engine.objective.load_state_dict(reader.state.objective_state)
    dist.barrier()
    return reader.state


def _absent_weights(engine: TrainingEngine, reader: CheckpointReader, *, weights_only: bool) -> frozenset[str]:
    """Return the objective's weights that the checkpoint lacks and that may keep their initial values.

    Raises:
        CheckpointError: the checkpoint holds weights that the model lacks, and would be trained without.
    """
    names = [name for name, _ in global_named_parameters(engine.stage)]
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, names)
    wanted, stored = {name for of_rank in of_ranks for name in of_rank}, set(reader.names())
    if unknown := sorted(stored - wanted):
        raise CheckpointError(
            f"{reader.folder} was trained with the objective {reader.plan.objective} and holds {len(unknown)} weights "
            f"that the objective {engine.plan.objective} has no place for, such as {unknown[0]}: without them its "
            "other weights compute something else; train with that objective, or export it first"
        )
    absent = sorted(name for name in wanted - stored if is_own(name))
    return frozenset(name for name in absent if weights_only and engine.objective.may_be_absent(name))


def _load_state(owned: OwnedState, *, reader: CheckpointReader, kinds: tuple[str, ...], absent: frozenset[str]) -> None:
    """Read a rank's weights but for those that are `absent`, and the optimizer's states if among `kinds`."""
    owned = dataclasses.replace(owned, pieces=tuple(piece for piece in owned.pieces if piece.name not in absent))
    with owned.resident(), folders.reported_as(reader.folder):
        tensors = {kind: flat for kind, flat in owned.tensors().items() if kind in kinds}
        blocks = blocks_of(owned, tensors=tensors, copies=True)
        load_blocks(blocks, index=reader.index, folder=reader.folder / folders.TENSORS_NAME)
        if len(kinds) > 1:
            owned.set_step(reader.state.optimizer_step)


def _raise_together(problems: tuple[str, ...]) -> None:
    """Raise on every rank what any rank has found: a single one would leave the others waiting."""
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, problems)
    if distinct := sorted({problem for of_rank in of_ranks for problem in of_rank}):
        raise CheckpointError(distinct)


def _restore_counters(engine: Any, state: CheckpointState) -> None:
    engine.global_steps, engine.skipped_steps = state.attempts, state.attempts - state.iteration
    if (holder := _scaler_of(engine)) is not None:
        for name, value in state.loss_scaler.items():
            setattr(holder, name, value)
