"""From a config to a trained model: called by the launcher, a search over mixtures and your own script.

All checks run before torch is imported, or at least before anything is built or written.
"""

import copy
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.budget.checks import config_problems
from chinchilla_ds.budget.deepspeed_json import resolve as ds_json
from chinchilla_ds.budget.layout.relayout import is_laid_out, lay_out, lay_out_again
from chinchilla_ds.budget.memory.peak import estimate_stages
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.budget.report import format_memory, format_plan
from chinchilla_ds.config import RunConfig, field_path
from chinchilla_ds.data.prepare import check_source, describe_text, prepare, vocab_size_of_text
from chinchilla_ds.distributed.devices import device_type
from chinchilla_ds.distributed.launch import Place, read_place, settle
from chinchilla_ds.errors import EXIT_CODE_STOPPED, ChinchillaError, ConfigError, DataError, PlanError, reworded
from chinchilla_ds.objective import Objective, make_objective, spec_of
from chinchilla_ds.optimizers import checkpoint_bytes
from chinchilla_ds.processes.endings import at_ending, end_well, follow, leave_hung, no_library_exits, raise_well
from chinchilla_ds.processes.libraries import quieten_training, use_cores
from chinchilla_ds.processes.packages import missing_packages
from chinchilla_ds.processes.stopping import StopRequest
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.command import BESIDE_A_PLAN, TrainCommand, checked_config, set_fields
from chinchilla_ds.runs.corpus import with_prepared_corpus
from chinchilla_ds.runs.disk import check_output, output_errors
from chinchilla_ds.runs.earlier import Continued, find_run, named_run, take_over
from chinchilla_ds.runs.initial_weights import check_initial_tokenizer, check_initial_weights
from chinchilla_ds.runs.plan_file import given_plan
from chinchilla_ds.runs.request import RunLock, RunRequest, known_problems, learning_part
from chinchilla_ds.training.callbacks.outside import check_same, make_callbacks, with_state

if TYPE_CHECKING:
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.distributed.peers import Peers
    from chinchilla_ds.distributed.rendezvous import Store
    from chinchilla_ds.runs.status import StatusFile
    from chinchilla_ds.training.callback import Callback, TrainingState


def train(
    config: RunConfig | None = None,
    *,
    ds_config: str | Path | Mapping[str, Any],
    plan: str | Path | RunPlan | None = None,
    callbacks: Sequence["Callback"] = (),
    objective: Objective | None = None,
) -> "TrainingState":
    """Plan a run, train it on the ranks that were started, evaluate and save it, as launchers/pretrain.py does.

    The same call resumes its last unfinished run. A signal, or the file STOP in the run's folder, ends it early: it
    saves, and `stopped_by` of the result says who asked.

    Args:
        config: The configuration; None is the default run.
        ds_config: The DeepSpeed JSON: a file, a shipped one by its name such as `zero3`, or its content.
        plan: A plan to run unchanged, or its file; None makes one from `config`.
        callbacks: Called on every rank after our own and after those of the config, in this order.
        objective: Computes the loss; None: the one that the config names. Class and plain fields are stored in the
            plan, the request and the checkpoints, so the class must be reconstructible from them.

    Returns:
        The state at the end: iterations, losses, `run_folder`, and the paths of what was written, on every rank.

    Raises:
        ChinchillaError: what the user can fix, on every rank: a config, plan or ds_config that contradicts
            itself, missing text, a full disk, a loss that diverges.
    """
    config = _with_objective(checked_config(config), objective)
    command = TrainCommand(
        config=config,
        ds_config=Path(ds_config) if isinstance(ds_config, str) else ds_config,
        plan=Path(plan) if isinstance(plan, str) else plan,
        explicit=set_fields(config),
    )
    stop = StopRequest()
    work = partial(
        train_command, command, callbacks=callbacks, objective=objective, started_s=time.monotonic(), stop=stop
    )
    try:
        return raise_well(work, stop=stop, exit_code_of=_exit_code)
    except BaseException:
        _leave_groups()
        raise


def _with_objective(config: RunConfig, objective: Objective | None) -> RunConfig:
    """Return the config of a run with this objective.

    Raises:
        ConfigError: the config names another one, or its class cannot be reconstructed from its plain fields.
    """
    if objective is None:
        return config
    spec = spec_of(objective)
    make_objective(spec)
    if config.objective not in (RunConfig().objective, spec):
        raise ConfigError(
            f"`objective` is {config.objective} in the config and {spec} as an argument: give one of them"
        )
    return dataclasses.replace(config, objective=spec)


def train_and_end(read: Callable[[], TrainCommand], /) -> int:
    """Train the request of `read`, and return the exit code of a process that does nothing else.

    Errors are printed and signals handled by `processes.endings`: 0, 2 for a user's error, 85 stopped on request;
    docs/faults.md has them all.
    """
    started_s, stop = time.monotonic(), StopRequest()

    def work() -> int:
        command = read()
        with no_library_exits(), missing_packages("pretrain"), reworded(command.words):
            if command.dry_run:
                dry_run(command)
                return 0
            return _exit_code(train_command(command, started_s=started_s, stop=stop))

    return end_well(work, stop=stop)


def _exit_code(state: "TrainingState") -> int:
    return 0 if state.stopped_by is None else EXIT_CODE_STOPPED


def train_command(
    command: TrainCommand,
    /,
    *,
    callbacks: Sequence["Callback"] = (),
    objective: Objective | None = None,
    started_s: float,
    stop: StopRequest,
) -> "TrainingState":
    """Train a command's request and return the final state; the caller handles signals and exits the process.

    Args:
        command: What to train.
        callbacks: Called on every rank after our own.
        objective: The objective that the command's config names; None: it is created here.
        started_s: `time.monotonic()` when the command started.
        stop: Receives stop requests by signal.

    Raises:
        ChinchillaError: as `train`.
    """
    place = settle()
    run, command, ds = _asked(command)
    if run is not None and run.is_finished:
        return _finished(run, place=place, words=command.words)
    plan, resolved, named = _planned(command, run=run, ds=ds, place=place)
    saved = named | with_state(callbacks)
    if run is not None:
        check_same(saved, run.state.callbacks, where=run.checkpoint)
    quieten_training()
    use_cores(place.local_size)
    launch = _Launch(
        command=command,
        run=run,
        plan=plan,
        resolved=resolved,
        callbacks=[*named.values(), *callbacks],
        saved_callbacks=saved,
        objective=objective,
        started_s=started_s,
        stop=stop,
    )
    return launch.on_ranks(place)


def dry_run(command: TrainCommand, /) -> None:
    """Print what a command would train: its plan, memory, DeepSpeed JSON and text; write nothing.

    Raises:
        ChinchillaError: what `train` raises before ranks meet, and the problems of a prepared corpus.
    """
    place = settle()
    run, command, ds = _asked(command)
    if run is not None and run.is_finished:
        _finished(run, place=place, words=command.words)
        return
    plan, resolved, _ = _planned(command, run=run, ds=ds, place=place)
    if place.rank != 0:
        return
    stages = estimate_stages(
        shape=plan.shape, layout=plan.layout, batch=plan.batch, precision=plan.precision, device=plan.device
    )
    print(f"\n{format_memory(plan, stages=stages)}\n\nds_config\n{ds_json.to_json(resolved)}")
    text = describe_text(
        command.config.data,
        vocab_size=plan.shape.vocab_size,
        seq_length=plan.shape.seq_length,
        num_tokens=plan.num_tokens,
    )
    print(f"data          {text}\ndry run       nothing was written", flush=True)


def _ds_config(given: Path | Mapping[str, Any]) -> dict[str, Any]:
    return ds_json.load_ds_config(given) if isinstance(given, Path) else copy.deepcopy(dict(given))


def _leave_groups() -> None:
    """Let this process start another run; with other ranks, tearing down would wait for ranks that are gone."""
    groups = sys.modules.get("chinchilla_ds.distributed.groups")
    if groups is not None and read_place().world_size == 1:
        groups.shut_down()


# ---- the request -----------------------------------------------------------------------------------------------------


def _asked(command: TrainCommand) -> tuple[Continued | None, TrainCommand, dict[str, Any]]:
    """Return the run that this command resumes, if any, the command with that run's request, and the DeepSpeed JSON."""
    ds = _ds_config(command.ds_config)
    return *_run_to_continue(command, ds), ds


def _planned(
    command: TrainCommand, *, run: Continued | None, ds: Mapping[str, Any], place: Place
) -> tuple[RunPlan, dict[str, Any], dict[str, "Callback"]]:
    """Return the plan, after every check that needs no other rank; rank 0 prints it.

    Returns:
        Plan, resolved DeepSpeed JSON, and the callbacks that the plan names.
    """
    config = command.config
    vocab_size = partial(_vocab_size, config, run=run, place=place)
    plan = _plan(command, world_size=place.world_size, vocab_size=vocab_size)
    if run is not None:
        is_asked = config.micro_batch_size is not None or command.plan is not None
        plan = lay_out_again(run.plan, like=plan, micro_batch_is_asked=is_asked)
    elif config.checkpoint.init_from is not None:
        check_initial_weights(config.checkpoint.init_from, plan=plan)
    resolved, named = ds_json.resolve(ds, plan), make_callbacks(plan.callbacks)
    if place.rank == 0:
        _check_places(config, plan=plan, place=place)
        print(format_plan(plan), flush=True)
        if run is not None:
            print(f"continuing    {run.folder} from {run.checkpoint.name}", flush=True)
    return plan, resolved, named


def _run_to_continue(command: TrainCommand, ds: Mapping[str, Any]) -> tuple[Continued | None, TrainCommand]:
    """Return the run that this command resumes, if any, and the command with that run's request.

    Raises:
        CheckpointError: `checkpoint.resume` names no run, or one with another request.
    """
    config = with_prepared_corpus(ds_json.apply_to_config(command.config, ds, explicit=command.explicit))
    if problems := list(known_problems(config)):
        raise ConfigError(problems)
    named, run = config.checkpoint.resume, None
    if named not in ("none", "latest"):
        run = named_run(named)
        return run, take_over(command, run, config=config)
    if named == "latest":
        run = find_run(RunRequest(config=config, plan=command.plan))
    return run, dataclasses.replace(command, config=config)


def _finished(run: Continued, *, place: Place, words: Callable[[str], str]) -> "TrainingState":
    from chinchilla_ds.runs.finished import describe_finished, finished_state

    if place.rank == 0:
        print(words(describe_finished(run)), flush=True)
    return dataclasses.replace(finished_state(run), owns_loss=place.rank == 0)


def _vocab_size(config: RunConfig, *, run: Continued | None, place: Place) -> int | None:
    """Return the vocabulary to plan with: the requested one, the resumed run's, or that of the text; None: by budget.

    Raises:
        DataError: the text cannot be found on this rank.
    """
    if config.vocab_size is not None or config.shape is not None:
        return config.vocab_size
    if run is not None:
        return run.plan.shape.vocab_size
    try:
        return vocab_size_of_text(config.data)
    except DataError:
        if place.rank == 0 or not place.on_one_machine:
            raise
        return None  # rank 0 reports it, and ends this one


def _plan(command: TrainCommand, *, world_size: int, vocab_size: Callable[[], int | None]) -> RunPlan:
    config = command.config
    if command.plan is not None:
        plan = given_plan(command.plan, world_size=world_size)
        answered = sorted(name for name in command.explicit - BESIDE_A_PLAN if not _agree(config, plan, name))
        if answered and not _makes(config, plan, explicit=command.explicit):
            fields = ", ".join(f"`{field_path(name)}`" for name in answered)
            raise ConfigError(
                f"{fields} cannot be combined with `plan`, which fixes that: drop it, or make another plan"
            )
        if is_laid_out(plan):
            return plan
        return lay_out(plan, config=config, world_size=world_size, device=device_type())
    # Problems on any device are reported before torch is imported.
    if problems := list(config_problems(config, world_size=world_size, device="cpu")):
        raise ConfigError(problems)
    return _new_plan(config, world_size=world_size, vocab_size=vocab_size())


def _new_plan(config: RunConfig, *, world_size: int, vocab_size: int | None) -> RunPlan:
    """Return a plan with this vocabulary, and say where it comes from unless the config has it."""
    is_of_text = vocab_size != config.vocab_size
    config = dataclasses.replace(config, vocab_size=vocab_size)
    try:
        plan = make_plan(config, world_size=world_size, device=device_type())
    except PlanError as error:
        hint = "; the vocabulary is that of a text of this size: a smaller `vocab_size` leaves more for the layers"
        raise PlanError([f"{problem}{hint if is_of_text else ''}" for problem in error.problems]) from None
    why = f"Vocabulary {vocab_size}: by the size of the text, so that runs of other budgets on it can be compared."
    return dataclasses.replace(plan, reasons=(*plan.reasons, why)) if is_of_text else plan


def _agree(config: RunConfig, plan: RunPlan, name: str) -> bool:
    """Return whether a field, such as the seed or the objective, is the same in a config and in a plan."""
    return hasattr(plan, name) and hasattr(config, name) and bool(getattr(config, name) == getattr(plan, name))


def _makes(config: RunConfig, plan: RunPlan, *, explicit: frozenset[str]) -> bool:
    """Return whether a plan matches a config: the same learning, in the layout that it names."""
    here = dataclasses.asdict(plan.layout) | {"micro_batch_size": plan.batch.micro_batch_size}
    there = dataclasses.asdict(config.layout) | {"micro_batch_size": config.micro_batch_size}
    if any(here[name] != there[name] for name in explicit & here.keys()):
        return False
    # a plan's vocabulary may be that of a text
    config = dataclasses.replace(config, vocab_size=config.vocab_size or plan.shape.vocab_size)
    try:
        made = make_plan(config, world_size=plan.layout.world_size, device=plan.device)
    except ChinchillaError:
        return False
    return learning_part(made) == learning_part(plan)


def _check_places(config: RunConfig, *, plan: RunPlan, place: Place) -> None:
    """Check text and output before the slow imports, on rank 0 only: it ends the others."""
    if place.on_one_machine:
        check_output(config.output, num_bytes=checkpoint_bytes(plan))
        check_source(config.data, vocab_size=plan.shape.vocab_size)


# ---- on the ranks ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class _Launch:
    """A run that has passed every check that needs no other rank."""

    command: TrainCommand
    """The command, completed with the request of the run that it resumes."""
    run: Continued | None
    plan: RunPlan
    resolved: dict[str, Any]
    """The resolved DeepSpeed JSON."""
    callbacks: Sequence["Callback"]
    """From outside."""
    saved_callbacks: Mapping[str, "Callback"]
    """Callbacks whose state the checkpoints hold, by name."""
    objective: Objective | None
    """None: the one that the plan names is created."""
    started_s: float
    stop: StopRequest
    statuses: list["StatusFile"] = dataclasses.field(default_factory=list)
    """Hooks of rank 0."""

    def on_ranks(self, place: Place) -> "TrainingState":
        """Meet the other ranks, train, and exit together."""
        from chinchilla_ds.distributed.extensions import use_private_extensions_folder

        use_private_extensions_folder()
        store, peers = _meet(place)
        from chinchilla_ds.distributed import groups
        from chinchilla_ds.engine.deepspeed_check import check_with_deepspeed

        groups.initialize(layout=self.plan.layout, store=store)
        check_with_deepspeed(self.resolved, self.plan)
        state = self._train(store=store, peers=peers)
        peers.close()
        groups.wait_for_all()  # the first rank to exit makes the launcher end the others
        groups.shut_down()
        return state

    def _train(self, *, store: "Store", peers: "Peers") -> "TrainingState":
        from chinchilla_ds.distributed.rank_zero import run_on_rank_zero
        from chinchilla_ds.runs.memory_errors import memory_errors
        from chinchilla_ds.runs.text import text_params
        from chinchilla_ds.training.callbacks.standard import standard_callbacks
        from chinchilla_ds.training.callbacks.started import StartedCallback
        from chinchilla_ds.training.loop import pretrain

        config, run = self.command.config, self.run
        prepared, run_folder, artifacts = run_on_rank_zero(self._prepare, store=store)
        with output_errors(run_folder), memory_errors(self.plan):
            standard = standard_callbacks(
                output=config.output,
                run_folder=run_folder,
                prepared=prepared,
                text=text_params(prepared, data=config.data),
                started_s=self.started_s,
            )
            return pretrain(
                plan=self.plan,
                ds_config=self.resolved,
                prepared=prepared,
                run_folder=run_folder,
                artifacts=artifacts,
                callbacks=[*standard, *self.callbacks, *self.statuses, StartedCallback(peers.begun)],
                saved_callbacks=self.saved_callbacks,
                guards=config.guards,
                saving=config.checkpoint,
                resume_from=None if run is None else run.folder if run.all_checkpoints else run.checkpoint,
                stop=self.stop,
                sample_interval_tokens=config.sample_interval_tokens,
                leave=leave_hung,
                objective=self.objective,
            )

    def _prepare(self) -> "tuple[PreparedData, Path, dict[str, str]]":
        """Prepare the text and the run's folder, on rank 0.

        Returns:
            The text, the folder, and name to path of what a tracker should keep.
        """
        from chinchilla_ds.data.feeding.loader import TokenLoader
        from chinchilla_ds.runs.preparation import describe

        if self.run is not None:
            self._take(self.run.folder)
        prepared = self._text()
        config = self.command.config
        if self.run is None and config.checkpoint.init_from is not None:
            check_initial_tokenizer(config.checkpoint.init_from, prepared=prepared)
        TokenLoader(prepared=prepared, plan=self.plan)
        folder, artifacts = self._folder(prepared)
        if config.data.blend is not None:
            artifacts["blend"] = str(config.data.blend)
        print(describe(prepared), flush=True)
        return prepared, folder, artifacts

    def _text(self) -> "PreparedData":
        from chinchilla_ds.runs.preparation import show_preparation
        from chinchilla_ds.runs.text import find_text, folder_of_texts, tokenizer_seed_of

        config, plan, run = self.command.config, self.plan, self.run
        tokenizer_seed = None
        if run is not None:
            tokenizer_seed = tokenizer_seed_of(run.folder)
            tokenizer_seed = plan.seed if tokenizer_seed is None else tokenizer_seed  # as in earlier versions
        with show_preparation() as progress:
            return prepare(
                config.data,
                vocab_size=plan.shape.vocab_size,
                seq_length=plan.shape.seq_length,
                num_tokens=plan.num_tokens,
                seed=tokenizer_seed,
                folder=config.output / "data" if run is None else folder_of_texts(run.folder),
                earlier=None if run is None else find_text(run.folder),
                progress=progress,
            )

    def _folder(self, prepared: "PreparedData") -> tuple[Path, dict[str, str]]:
        from chinchilla_ds.runs.folder import make_run_folder, open_run_folder

        if self.run is not None:
            return open_run_folder(self.run, plan=self.plan, ds_config=self.resolved, prepared=prepared)
        folder, artifacts = make_run_folder(
            output=self.command.config.output,
            plan=self.plan,
            ds_config=self.resolved,
            prepared=prepared,
            request=RunRequest(config=self.command.config, plan=self.command.plan),
            now=datetime.now(),
        )
        self._take(folder)
        return folder, artifacts

    def _take(self, folder: Path) -> None:
        """Lock the run's folder, and mark it as running, until it is known how it ends."""
        from chinchilla_ds.runs.status import StatusFile

        lock = RunLock(folder)
        self.statuses.append(StatusFile(folder, train_iters=self.plan.batch.train_iters))
        at_ending(self.statuses[0].end)
        at_ending(lambda ending: lock.release())


def _meet(place: Place) -> "tuple[Store, Peers]":
    """Wait for all ranks; from here on each of them learns when, and why, another exits."""
    from chinchilla_ds.distributed.peers import Peers
    from chinchilla_ds.distributed.rendezvous import open_store

    store = open_store(place)
    peers = Peers(store, place=place, leave=partial(follow, place=place))
    at_ending(lambda ending: peers.announce(exit_code=ending.exit_code, reason=ending.reason))
    return store, peers
