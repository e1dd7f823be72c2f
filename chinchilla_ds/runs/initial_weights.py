"""Checks, before anything slow, that a run can start with the weights of a checkpoint."""

from pathlib import Path

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState, plan_of_checkpoint, shape_problems
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import CheckpointError
from chinchilla_ds.run_plan import RunPlan

_READ = frozenset({folders.PLAN_NAME, folders.STATE_NAME})


def check_initial_weights(path: Path, /, *, plan: RunPlan) -> None:
    """Check that the newest checkpoint of `path` exists and computes the same function as the plan's decoder.

    Its tensors are read later, and its tokenizer is compared when the text has been prepared.

    Raises:
        CheckpointError: there is none, it is damaged, or its shape differs; every difference is named.
    """
    problems: list[str] = []
    try:
        checkpoint = newest_readable(path)
        problems = shape_problems(plan_of_checkpoint(checkpoint).shape, plan.shape, checkpoint=checkpoint)
        CheckpointState.load(checkpoint / folders.STATE_NAME)
    except CheckpointError as error:
        problems += error.problems
    if problems:
        raise CheckpointError([f"`checkpoint.init_from={path}`: {problem}" for problem in problems])


def check_initial_tokenizer(path: Path, /, *, prepared: PreparedData) -> None:
    """Check that the text was prepared with the tokenizer of the checkpoint's weights.

    Raises:
        CheckpointError: it was not; both are named.
    """
    from chinchilla_ds.training.saving import check_tokenizer

    checkpoint = newest_readable(path)
    check_tokenizer(CheckpointState.load(checkpoint / folders.STATE_NAME), where=checkpoint, prepared=prepared)


def newest_readable(path: Path, /) -> Path:
    """Return the newest checkpoint of `path` whose files have their sizes, and whose plan and state are intact.

    Raises:
        CheckpointError: there is none; damaged ones are named.
    """
    problems: list[str] = []
    for checkpoint in folders.find_checkpoints(path):
        if not (own_problems := small_problems(checkpoint)):
            return checkpoint
        problems += own_problems
    raise CheckpointError(problems)


def small_problems(checkpoint: Path, /) -> list[str]:
    """Return the problems of the sizes of a checkpoint's files, and of the content of plan and state."""
    try:
        return list(folders.damage(checkpoint, names=_READ))
    except CheckpointError as error:
        return list(error.problems)
