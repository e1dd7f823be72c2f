"""The folder of one run: made once everything that can be refused has been."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from chinchilla_ds.checkpoint.folder import write_durably
from chinchilla_ds.cli.run_request import REQUEST_NAME, Continued, RunRequest, state_of
from chinchilla_ds.cli.run_text import DATA_NAME, place_of_text
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import OutputError, reason
from chinchilla_ds.plan import RunPlan
from chinchilla_ds.training.saving import check_text


def make_run_folder(
    *,
    output: Path,
    plan: RunPlan,
    ds_config: dict[str, Any],
    prepared: PreparedData,
    request: RunRequest,
    now: datetime,
) -> tuple[Path, dict[str, str]]:
    """Make `output/<budget>-<time>` and write the request, the plan and the resolved ds_config into it.

    Returns:
        The folder, and name to path of what a tracker should keep.

    Raises:
        OutputError: it cannot be written.
    """
    folder = _new_folder(output, name=f"{plan.compute_budget_flops:.3g}-{now:%Y%m%d-%H%M%S}".replace("+", ""))
    try:
        (folder / REQUEST_NAME).write_text(request.to_json(), encoding="utf-8")
        _write_plan(folder, plan=plan, ds_config=ds_config, prepared=prepared)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(f"cannot write to the run's folder {folder}: {reason(error)}") from None
    return folder, _artifacts(folder, prepared=prepared)


def open_run_folder(
    run: Continued, /, *, plan: RunPlan, ds_config: dict[str, Any], prepared: PreparedData
) -> tuple[Path, dict[str, str]]:
    """Write plan and ds_config, whose layout may be new, into the folder of a run that goes on.

    Returns:
        As `make_run_folder`.

    Raises:
        CheckpointError: the run was trained on other text or with another tokenizer; nothing has been written.
        OutputError: it cannot be written.
    """
    folder = run.folder
    check_text(state_of(run.checkpoint), where=run.checkpoint, prepared=prepared)
    try:
        _write_plan(folder, plan=plan, ds_config=ds_config, prepared=prepared)
    except OSError as error:
        raise OutputError(f"cannot write to the run's folder {folder}: {reason(error)}") from None
    return folder, _artifacts(folder, prepared=prepared)


def _write_plan(folder: Path, *, plan: RunPlan, ds_config: dict[str, Any], prepared: PreparedData) -> None:
    write_durably(folder / DATA_NAME, place_of_text(prepared, run_folder=folder))
    write_durably(folder / "plan.json", plan.to_json())
    write_durably(folder / "ds_config.json", json.dumps(ds_config, indent=2) + "\n")


def _artifacts(folder: Path, *, prepared: PreparedData) -> dict[str, str]:
    return {
        "plan": str(folder / "plan.json"),
        "ds_config": str(folder / "ds_config.json"),
        "tokenizer": str(prepared.tokenizer_path),
    }


def _new_folder(output: Path, *, name: str) -> Path:
    """Make a folder that was not there; a second run in the same second gets a number."""
    for attempt in range(1, 100):
        folder = output / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(f"cannot make the run's folder {folder}: {reason(error)}") from None
        return folder
    raise OutputError(f"{output} holds a hundred runs named {name}")
