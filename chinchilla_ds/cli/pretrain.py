"""From a command line to a trained model: what `launchers/pretrain.py` calls.

Everything that can be refused is refused before torch is imported, or at least before anything is built or written.
"""

import dataclasses
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from chinchilla_ds.budget.checks import config_problems
from chinchilla_ds.budget.deepspeed_json import resolve as ds_json
from chinchilla_ds.budget.layout.relayout import is_laid_out, lay_out, lay_out_again
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.budget.report import format_plan
from chinchilla_ds.cli.arguments import BESIDE_A_PLAN, Arguments, flag_of, parse
from chinchilla_ds.config import RunConfig
from chinchilla_ds.data.prepare import check_source, prepare
from chinchilla_ds.distributed.devices import device_type
from chinchilla_ds.distributed.launch import Place, settle
from chinchilla_ds.errors import EXIT_CODE_STOPPED, ConfigError
from chinchilla_ds.optimizers import checkpoint_bytes
from chinchilla_ds.processes.endings import at_ending, end_well, follow, leave_hung, no_library_exits
from chinchilla_ds.processes.stopping import StopRequest
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.corpus import with_prepared_corpus
from chinchilla_ds.runs.disk import check_output, output_errors
from chinchilla_ds.runs.earlier import Continued, find_run, named_run, take_over
from chinchilla_ds.runs.initial_weights import check_initial_tokenizer, check_initial_weights
from chinchilla_ds.runs.plan_file import read_plan
from chinchilla_ds.runs.request import RunLock, RunRequest, known_problems

if TYPE_CHECKING:
    from chinchilla_ds.distributed.peers import Peers
    from chinchilla_ds.distributed.rendezvous import Store


def run() -> NoReturn:
    """Do what `main` does and end the process, without taking torch down.

    A process group that is left after a failure aborts or hangs in its destructors: the exit code would be lost, and
    ranks would stay.
    """
    try:
        exit_code = main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        exit_code = 1
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0, 2 for a user's error, 85 stopped on request; docs/faults.md has them all."""
    started_s, stop = time.monotonic(), StopRequest()

    def work() -> int:
        arguments = parse(argv)
        with no_library_exits():
            return _run(arguments, place=settle(), started_s=started_s, stop=stop)

    return end_well(work, stop=stop)


def _run(arguments: Arguments, *, place: Place, started_s: float, stop: StopRequest) -> int:
    ds = ds_json.load_ds_config(arguments.ds_config)
    run, arguments = _run_to_continue(arguments, ds)
    if run is not None and run.is_finished:
        return _say_finished(run, place=place)
    config = arguments.config
    plan = _plan(arguments, world_size=place.world_size)
    if run is not None:
        is_asked = config.micro_batch_size is not None or arguments.plan is not None
        plan = lay_out_again(run.plan, like=plan, micro_batch_is_asked=is_asked)
    elif config.checkpoint.init_from is not None:
        check_initial_weights(config.checkpoint.init_from, plan=plan)
    resolved = ds_json.resolve(ds, plan)
    if place.rank == 0:
        _check_places(config, plan=plan, place=place)
        print(format_plan(plan), flush=True)
        if run is not None:
            print(f"continuing    {run.folder} from {run.checkpoint.name}", flush=True)
    _quieten()
    _use_cores(place)
    from chinchilla_ds.distributed.extensions import use_private_extensions_folder

    use_private_extensions_folder()
    store, peers = _meet(place)
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.engine.deepspeed_check import check_with_deepspeed

    groups.initialize(layout=plan.layout, store=store)
    check_with_deepspeed(resolved, plan)
    exit_code = _train(
        arguments, run=run, plan=plan, resolved=resolved, started_s=started_s, stop=stop, store=store, peers=peers
    )
    peers.close()
    groups.wait_for_all()  # the first rank to leave makes the launcher end the others
    groups.shut_down()
    return exit_code


def _meet(place: Place) -> "tuple[Store, Peers]":
    """Wait for all ranks; from here on each of them knows when, and why, another leaves."""
    from chinchilla_ds.distributed.peers import Peers
    from chinchilla_ds.distributed.rendezvous import open_store

    store = open_store(place)
    peers = Peers(store, place=place, leave=partial(follow, place=place))
    at_ending(lambda ending: peers.announce(exit_code=ending.exit_code, reason=ending.reason))
    return store, peers


def _run_to_continue(arguments: Arguments, ds: Mapping[str, Any]) -> tuple[Continued | None, Arguments]:
    """Return the run that this command goes on with, if any, and the arguments as that run was asked for.

    Raises:
        CheckpointError: `--resume` names no run, or one that was asked for something else.
    """
    config = with_prepared_corpus(ds_json.apply_to_config(arguments.config, ds, explicit=arguments.explicit))
    if problems := list(known_problems(config)):
        raise ConfigError(problems)
    named, run = config.checkpoint.resume, None
    if named not in ("none", "latest"):
        run = named_run(named)
        return run, take_over(arguments, run, config=config)
    if named == "latest":
        run = find_run(RunRequest(config=config, plan=arguments.plan))
    return run, dataclasses.replace(arguments, config=config)


def _say_finished(run: Continued, *, place: Place) -> int:
    if place.rank == 0:
        from chinchilla_ds.runs.finished import describe_finished

        print(describe_finished(run), flush=True)
    return 0


def _plan(arguments: Arguments, *, world_size: int) -> RunPlan:
    if arguments.plan is not None:
        if answered := sorted(arguments.explicit - BESIDE_A_PLAN):
            flags = ", ".join(flag_of(name) for name in answered)
            raise ConfigError(f"{flags} beside --plan, which fixes that: drop it, or make another plan")
        plan, device = read_plan(arguments.plan, world_size=world_size), device_type()
        if is_laid_out(plan):
            return plan
        return lay_out(plan, config=arguments.config, world_size=world_size, device=device)
    # What is wrong on any device is said before torch is imported.
    if problems := list(config_problems(arguments.config, world_size=world_size, device="cpu")):
        raise ConfigError(problems)
    return make_plan(arguments.config, world_size=world_size, device=device_type())


def _check_places(config: RunConfig, *, plan: RunPlan, place: Place) -> None:
    """Check text and output before the slow imports, where rank 0 alone can: others on its machine go with it."""
    if place.on_one_machine:
        check_output(config.output, num_bytes=checkpoint_bytes(plan))
        check_source(config.data, vocab_size=plan.shape.vocab_size)


def _quieten() -> None:
    """Keep what concerns the developers of the libraries off the user's screen; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _use_cores(place: Place) -> None:
    """Share the machine's cores between its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // place.local_size))


def _train(
    arguments: Arguments,
    *,
    run: Continued | None,
    plan: RunPlan,
    resolved: dict[str, Any],
    started_s: float,
    stop: StopRequest,
    store: "Store",
    peers: "Peers",
) -> int:
    from chinchilla_ds.data.feeding.loader import TokenLoader
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.distributed.rank_zero import run_on_rank_zero
    from chinchilla_ds.runs.folder import make_run_folder, open_run_folder
    from chinchilla_ds.runs.memory_errors import memory_errors
    from chinchilla_ds.runs.preparation import describe, show_preparation
    from chinchilla_ds.runs.status import RunStatus
    from chinchilla_ds.runs.text import find_text, folder_of_texts
    from chinchilla_ds.training.callbacks.standard import standard_callbacks
    from chinchilla_ds.training.callbacks.started import StartedCallback
    from chinchilla_ds.training.loop import pretrain

    config = arguments.config
    locks: list[RunLock] = []  # of rank 0, until the process ends
    statuses: list[RunStatus] = []  # of rank 0

    def take(folder: Path) -> None:
        locks.append(RunLock(folder))
        statuses.append(RunStatus(folder, train_iters=plan.batch.train_iters))
        at_ending(statuses[0].end)

    def prepare_all() -> tuple[PreparedData, Path, dict[str, str]]:
        if run is not None:
            take(run.folder)
        with show_preparation() as progress:
            prepared = prepare(
                config.data,
                vocab_size=plan.shape.vocab_size,
                seq_length=plan.shape.seq_length,
                num_tokens=plan.num_tokens,
                seed=plan.seed,
                folder=config.output / "data" if run is None else folder_of_texts(run.folder),
                kept=None if run is None else find_text(run.folder),
                progress=progress,
            )
        if run is None and config.checkpoint.init_from is not None:
            check_initial_tokenizer(config.checkpoint.init_from, prepared=prepared)
        TokenLoader(prepared=prepared, plan=plan)
        if run is not None:
            folder, artifacts = open_run_folder(run, plan=plan, ds_config=resolved, prepared=prepared)
        else:
            folder, artifacts = make_run_folder(
                output=config.output,
                plan=plan,
                ds_config=resolved,
                prepared=prepared,
                request=RunRequest(config=config, plan=arguments.plan),
                now=datetime.now(),
            )
            take(folder)
        if config.data.blend is not None:
            artifacts["blend"] = str(config.data.blend)
        print(describe(prepared), flush=True)
        return prepared, folder, artifacts

    prepared, run_folder, artifacts = run_on_rank_zero(prepare_all, store=store)
    with output_errors(run_folder), memory_errors(plan):
        state = pretrain(
            plan=plan,
            ds_config=resolved,
            prepared=prepared,
            run_folder=run_folder,
            artifacts=artifacts,
            callbacks=[
                *standard_callbacks(
                    output=config.output, run_folder=run_folder, prepared=prepared, started_s=started_s
                ),
                *statuses,
                StartedCallback(peers.begun),
            ],
            guards=config.guards,
            saving=config.checkpoint,
            resume_from=None if run is None else run.folder if run.all_checkpoints else run.checkpoint,
            stop=stop,
            sample_interval_tokens=config.sample_interval_tokens,
            leave=leave_hung,
        )
    return 0 if state.stopped_by is None else EXIT_CODE_STOPPED


if __name__ == "__main__":
    run()
