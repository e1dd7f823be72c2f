"""From a command line to a trained model: what `launchers/pretrain.py` calls.

Everything that can be refused is refused before torch is imported, or at least before anything is built or written.
"""

import dataclasses
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from chinchilla_ds.budget import ds_config as ds_json
from chinchilla_ds.budget.layout import validate_layout
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.budget.report import format_plan
from chinchilla_ds.cli.arguments import Arguments, parse
from chinchilla_ds.errors import EXIT_CODE_USER_ERROR, ChinchillaError, ConfigError, LayoutError
from chinchilla_ds.plan import RunPlan

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run and return the exit code: 0, 2 for a user's error (one message, no traceback), 130 when interrupted."""
    started_s = time.monotonic()
    _default_to_one_rank()
    try:
        _run(parse(argv), started_s=started_s)
    except ChinchillaError as error:
        _report(error)
        return EXIT_CODE_USER_ERROR
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _report(error: ChinchillaError) -> None:
    """Print the problems once: every rank meets the same ones."""
    if os.environ["RANK"] == "0":
        sys.stdout.flush()
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr, flush=True)


def _default_to_one_rank() -> None:
    """Stand in for the deepspeed launcher where the script is run by itself."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def _run(arguments: Arguments, *, started_s: float) -> None:
    ds = ds_json.load_ds_config(arguments.ds_config)
    config = ds_json.apply_to_config(arguments.config, ds, explicit=arguments.explicit)
    arguments = dataclasses.replace(arguments, config=config)
    plan = _plan(arguments)
    resolved = ds_json.resolve(ds, plan)
    if os.environ["RANK"] == "0":
        print(format_plan(plan), flush=True)
    _quieten()
    _use_cores()
    from chinchilla_ds.distributed.extensions import use_private_extensions_folder

    use_private_extensions_folder()
    from chinchilla_ds.distributed import groups

    groups.initialize(layout=plan.layout)
    _train(arguments, plan=plan, resolved=resolved, started_s=started_s)
    groups.shut_down()


def _plan(arguments: Arguments) -> RunPlan:
    world_size = int(os.environ["WORLD_SIZE"])
    if arguments.plan is None:
        return make_plan(arguments.config, world_size=world_size, device=_device_type())
    return _given_plan(arguments, arguments.plan, world_size=world_size)


def _given_plan(arguments: Arguments, path: Path, *, world_size: int) -> RunPlan:
    """Read a plan file; flags that it answers already are refused."""
    try:
        plan = RunPlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--plan {path} cannot be read: {error}") from None
    answered = sorted(arguments.explicit - {"output"})
    if answered:
        flags = ", ".join("--" + name.replace("_", "-") for name in answered)
        raise ConfigError(f"{flags} given beside --plan, which fixes them: drop the flags, or make another plan")
    if plan.layout.world_size != world_size:
        raise LayoutError(
            f"the plan's layout needs {plan.layout.world_size} ranks and {world_size} were started: "
            f"deepspeed --num_gpus {plan.layout.world_size}"
        )
    validate_layout(shape=plan.shape, layout=plan.layout, batch=plan.batch)
    return plan


def _device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _quieten() -> None:
    """Keep what concerns the developers of the libraries off the user's screen; errors still show."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.")
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _use_cores() -> None:
    """Share the machine's cores between its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_SIZE", "1"))))


def _train(arguments: Arguments, *, plan: RunPlan, resolved: dict[str, Any], started_s: float) -> None:
    from chinchilla_ds.cli.run_folder import make_run_folder
    from chinchilla_ds.data.loader import TokenLoader
    from chinchilla_ds.data.prepare import prepare
    from chinchilla_ds.data.prepared import PreparedData
    from chinchilla_ds.distributed.rank_zero import run_on_rank_zero
    from chinchilla_ds.cli.preparation import describe, show_preparation
    from chinchilla_ds.training.callbacks.standard import standard_callbacks
    from chinchilla_ds.training.loop import pretrain

    config = arguments.config

    def prepare_all() -> tuple[PreparedData, Path, dict[str, str]]:
        with show_preparation() as progress:
            prepared = prepare(
                config.data,
                vocab_size=plan.shape.vocab_size,
                seq_length=plan.shape.seq_length,
                num_tokens=plan.num_tokens,
                seed=plan.seed,
                folder=config.output / "data",
                progress=progress,
            )
        TokenLoader(prepared=prepared, plan=plan)
        folder, artifacts = make_run_folder(
            output=config.output, plan=plan, ds_config=resolved, prepared=prepared, now=datetime.now()
        )
        print(describe(prepared), flush=True)
        return prepared, folder, artifacts

    prepared, run_folder, artifacts = run_on_rank_zero(prepare_all)
    pretrain(
        plan=plan,
        ds_config=resolved,
        prepared=prepared,
        run_folder=run_folder,
        artifacts=artifacts,
        callbacks=standard_callbacks(
            output=config.output, run_folder=run_folder, prepared=prepared, started_s=started_s
        ),
    )
