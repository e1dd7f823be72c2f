"""Folders of runs that were made before, without tensors."""

import json
import os
from pathlib import Path
from typing import Any

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.request import RunRequest
from chinchilla_ds.testing import tiny_plan

TRAIN_ITERS = 9


def state_at(iteration: int, **more: Any) -> CheckpointState:
    values = {"iteration": iteration, "data_step": iteration, "attempts": iteration, "elapsed_s": 1.0}
    return CheckpointState(**(values | more))


def save(run: Path, iteration: int, *, plan: RunPlan | None = None, edits: Any = None, **state: Any) -> Path:
    """Write a checkpoint that holds no tensors; `edits` are made to the JSON of its state."""
    checkpoint = run / folders.CHECKPOINTS_NAME / folders.checkpoint_name(iteration)
    aside = folders.begin(checkpoint)
    files = {
        folders.STATE_NAME: json.dumps(json.loads(state_at(iteration, **state).to_json()) | (edits or {})),
        folders.PLAN_NAME: (plan or tiny_plan(train_iters=TRAIN_ITERS)).to_json(),
    }
    for name, text in files.items():
        (aside / name).write_text(text)
    folders.commit(checkpoint, records={name: folders.record_file(aside / name) for name in files})
    return checkpoint


def begin(request: RunRequest, name: str, *, at_s: int, saved: tuple[int, ...] = (4,), complete: bool = False) -> Path:
    """Make the folder of a run that saved last at a given time."""
    folder = request.config.output / name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(request.to_json())
    (folder / "plan.json").write_text(tiny_plan(train_iters=TRAIN_ITERS).to_json())
    for iteration in saved:
        save(folder, iteration, complete=complete)
    if saved:
        os.utime(folder / folders.CHECKPOINTS_NAME, (at_s, at_s))
    return folder
