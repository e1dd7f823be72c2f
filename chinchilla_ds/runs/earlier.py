"""The run that a command resumes: the last one of the same command, or the one that is named."""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.plan_checks import plan_problems
from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState, plan_of_checkpoint, state_problems
from chinchilla_ds.config import LayoutConfig, RunConfig, field_path
from chinchilla_ds.errors import CheckpointError, ChinchillaError
from chinchilla_ds.plugins import PluginSpec
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.command import TrainCommand
from chinchilla_ds.runs.initial_weights import small_problems
from chinchilla_ds.runs.plan_file import given_plan
from chinchilla_ds.runs.request import (
    FREE_FIELDS,
    PLAN_NAME,
    REQUEST_NAME,
    RunRequest,
    SavedRequest,
    learning_part,
    plain_config,
)

_ADVICE = "leave it out to resume that run, or start another with `checkpoint.resume=none`"


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A run to resume."""

    folder: Path
    checkpoint: Path
    """Its newest with an intact plan and state; tensors may turn out to be damaged. Or the requested one."""
    request: RunRequest
    plan: RunPlan
    """The checkpoint's plan, with the layout under which it was saved."""
    state: CheckpointState
    """The checkpoint's state."""
    all_checkpoints: bool = True
    """Whether an older checkpoint may be used if the newest is damaged."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do: the run has reached its plan's end and been evaluated there."""
        return self.state.complete


def find_run(request: RunRequest) -> Continued | None:
    """Return the newest run of the same command below its output folder that has a checkpoint; None: there is none.

    With a name it is the run of that name, or of that name and a number.

    Raises:
        CheckpointError: all of its checkpoints are damaged; or the request of some run with checkpoints cannot be
            read, so that it may be the one; or the name belongs to a run of another command.
    """
    runs, name = request.config.output, request.config.run_name
    if not runs.is_dir():
        return None
    with folders.reported_as(runs):
        saved = [path for path in runs.iterdir() if folders.list_checkpoints(path / folders.CHECKPOINTS_NAME)]
        newest_first = sorted(saved, key=_saved_at, reverse=True)
    if name is not None:
        newest_first = [path for path in newest_first if is_named(path, name)]
    key = request.key
    match = next((folder for folder in newest_first if _key_of(folder) == key), None)
    if match is None and name is not None and newest_first:
        raise CheckpointError(
            f"`run_name={name}` is the name of {newest_first[0]}, which was asked for something else; choose another "
            f"name, or resume that run with `checkpoint.resume={newest_first[0]}`"
        )
    return None if match is None else continued(match)


def is_named(folder: Path, name: str) -> bool:
    """Return whether a run's folder has a name, or that name with the number of a second or later attempt."""
    return re.fullmatch(rf"{re.escape(name)}(-[0-9]+)?", folder.name) is not None


def _saved_at(folder: Path) -> int:
    """Return when a run saved last; the time of the run's folder also changes with an evaluation."""
    return (folder / folders.CHECKPOINTS_NAME).stat().st_mtime_ns


def _key_of(folder: Path) -> str | None:
    """Return the key of a run when it started; None for folders that are not runs, such as an import."""
    if not (folder / REQUEST_NAME).exists() and not (folder / PLAN_NAME).exists():
        return None
    try:
        return SavedRequest.load(folder).key
    except CheckpointError as error:
        advice = (
            f"it is unknown whether the run {folder} is the one to resume: restore the file, move the folder "
            "elsewhere, or start another run with `checkpoint.resume=none`"
        )
        raise CheckpointError([*error.problems, advice]) from None


def continued(path: Path, /) -> Continued:
    """Return the run of `path`: its folder, or one of its checkpoints.

    Raises:
        CheckpointError: it is not a run, or has no checkpoint with a readable plan.
    """
    checkpoints = folders.find_checkpoints(path)
    folder = checkpoints[0].parent.parent
    if not (folder / REQUEST_NAME).exists():
        raise CheckpointError(
            f"{path} belongs to no run that can be resumed: there is no {folder / REQUEST_NAME}; "
            f"`checkpoint.init_from={path}` starts a new run with its weights"
        )
    request = SavedRequest.load(folder).request
    problems: list[str] = []
    for checkpoint in checkpoints:
        if damaged := small_problems(checkpoint):
            problems += damaged
            continue
        try:
            plan, state = plan_of_checkpoint(checkpoint), CheckpointState.load(checkpoint / folders.STATE_NAME)
        except ChinchillaError as error:
            problems += error.problems
            continue
        if contradictions := [*plan_problems(plan), *state_problems(state, plan)]:
            problems += [f"{checkpoint}: {problem}" for problem in contradictions]
            continue
        return Continued(
            folder=folder,
            checkpoint=checkpoint,
            request=request,
            plan=plan,
            state=state,
            all_checkpoints=checkpoint != path,
        )
    raise CheckpointError(
        [*problems, f"no checkpoint of {folder} is intact; `checkpoint.resume=none` starts another run"]
    )


# ---- a run that is named ---------------------------------------------------------------------------------------------


def named_run(name: str) -> Continued:
    """Return the run of a path, relative to the working directory; raises as `continued` does."""
    return continued(Path(os.path.abspath(name)))


def take_over(command: TrainCommand, run: Continued, *, config: RunConfig) -> TrainCommand:
    """Return a command that names a run, completed with that run's request.

    Output, text and tracking are the run's own. ZeRO and the micro-batch are this command's, by its ds_config.

    Args:
        command: The command that names the run.
        run: The run that it names.
        config: The command's config, with its ds_config applied.

    Raises:
        CheckpointError: some flags contradict the run; each is named with both values.
    """
    explicit = command.explicit
    problems = [*_different_flags(config, run, explicit=explicit), *_different_place(config, run, explicit=explicit)]
    if command.plan is not None:
        problems += _different_plan(command.plan, run)
    if problems:
        raise CheckpointError(problems)
    before = run.request.config
    plan = command.plan or (run.folder / PLAN_NAME if run.request.plan is not None else None)
    return dataclasses.replace(
        command,
        plan=plan,
        config=dataclasses.replace(
            before,
            layout=_layout(config.layout, before.layout, explicit=explicit),
            micro_batch_size=config.micro_batch_size,
            output=run.folder.parent,
            run_name=before.run_name,
            guards=_given(config.guards, before.guards, explicit=explicit),
            checkpoint=_given(config.checkpoint, before.checkpoint, explicit=explicit),
            sample_interval_tokens=_given(config, before, explicit=explicit).sample_interval_tokens,
        ),
    )


def _given(here: Any, before: Any, *, explicit: frozenset[str]) -> Any:
    """Return `before` with the fields set here by flags."""
    names = (field.name for field in dataclasses.fields(here) if field.name in explicit)
    return dataclasses.replace(before, **{name: getattr(here, name) for name in names})


def _layout(here: LayoutConfig, before: LayoutConfig, *, explicit: frozenset[str]) -> LayoutConfig:
    """Return the layout requested here, with the run's own for what neither a flag nor the ds_config sets."""
    default, always_said = LayoutConfig(), ("zero_stage", "offload_optimizer", "offload_param")
    unsaid = [
        field.name
        for field in dataclasses.fields(here)
        if field.name not in explicit.union(always_said) and getattr(here, field.name) == getattr(default, field.name)
    ]
    return dataclasses.replace(here, **{name: getattr(before, name) for name in unsaid})


def _different_flags(config: RunConfig, run: Continued, *, explicit: frozenset[str]) -> Iterator[str]:
    here, there = _flat(config), _flat(run.request.config)
    for name in sorted(explicit & here.keys()):
        if here[name] != there.get(name):
            values = f"{_shown(here[name])} here and {_shown(there.get(name))} in the run {run.folder}"
            yield f"`{field_path(name)}` is {values}; {_ADVICE}"


def _different_place(config: RunConfig, run: Continued, *, explicit: frozenset[str]) -> Iterator[str]:
    if "run_name" in explicit and config.run_name is not None and not is_named(run.folder, config.run_name):
        yield f"`run_name` is {config.run_name} here, and the run {run.folder} keeps its name; {_ADVICE}"
    if "output" in explicit and config.output.resolve() != run.folder.resolve().parent:
        yield f"`output` is {config.output} here, and the run {run.folder} keeps its place; {_ADVICE}"


def _different_plan(plan: Path | RunPlan, run: Continued) -> Iterator[str]:
    """Yield the differences of a plan from the run's plan in what decides learning; its layout may differ."""
    given = given_plan(plan)
    here, there = learning_part(given), learning_part(run.plan)
    if names := [name for name in here if here[name] != there[name]]:
        named = f"`plan={plan}`" if isinstance(plan, Path) else "the plan"
        if "callbacks" in names:
            values = [_shown([str(spec) for spec in compared.callbacks]) for compared in (given, run.plan)]
            names[names.index("callbacks")] = f"callbacks ({values[0]} here and {values[1]} in the run)"
        yield f"{named} differs from the plan of the run {run.folder} in {', '.join(names)}; {_ADVICE}"


def _flat(config: RunConfig) -> Mapping[str, Any]:
    values = plain_config(config) | {"callbacks": [str(spec) for spec in config.callbacks]}
    flat: dict[str, Any] = values["data"]
    return {name: value for name, value in values.items() if name not in (*FREE_FIELDS, "data")} | flat


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, dict):
        return str(PluginSpec(**value))
    if isinstance(value, list):
        return " ".join(map(str, value)) or "not given"
    if isinstance(value, dict):
        return str(PluginSpec(**value))
    return f"{value:g}" if isinstance(value, float) else str(value)
