"""The folder of one run: created once all checks have passed."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from chinchilla_ds.checkpoint.folder import DS_CONFIG_NAME
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.data.preparing.recipe import Recipe
from chinchilla_ds.errors import OutputError, reason
from chinchilla_ds.files import write_durably
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.earlier import Continued
from chinchilla_ds.runs.request import PLAN_NAME, REQUEST_NAME, RunRequest
from chinchilla_ds.runs.text import DATA_NAME, place_of_text, tokenizer_seed_of
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
    """Make `output/<run_name>`, or `<budget>-<time>` there, and write request, plan and resolved ds_config into it.

    Args:
        output: the folder of all runs.
        plan: the run's plan.
        ds_config: the resolved DeepSpeed JSON.
        prepared: the tokenised corpus.
        request: the run's request.
        now: the time in a default name.

    Returns:
        The folder, and name to path of what a tracker should keep.

    Raises:
        OutputError: it cannot be written.
    """
    by_budget = f"{plan.compute_budget_flops:.3g}-{now:%Y%m%d-%H%M%S}".replace("+", "")
    folder = _new_folder(output, name=request.config.run_name or by_budget)
    try:
        write_durably(folder / REQUEST_NAME, request.to_json())
        _write_plan(folder, plan=plan, ds_config=ds_config, prepared=prepared, tokenizer_seed=Recipe().seed)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(f"cannot write to the run's folder {folder}: {reason(error)}") from None
    return folder, _artifacts(folder, prepared=prepared)


def open_run_folder(
    run: Continued, /, *, plan: RunPlan, ds_config: dict[str, Any], prepared: PreparedData
) -> tuple[Path, dict[str, str]]:
    """Write the changed plan and ds_config, whose layout may differ, into the folder of a resumed run.

    Args:
        run: the run to resume.
        plan: its plan, perhaps in another layout.
        ds_config: the resolved DeepSpeed JSON.
        prepared: the tokenised corpus.

    Returns:
        As `make_run_folder`.

    Raises:
        CheckpointError: the run was trained on other text or with another tokenizer; nothing is written.
        OutputError: it cannot be written.
    """
    folder = run.folder
    check_text(run.state, where=run.checkpoint, prepared=prepared)
    seed = tokenizer_seed_of(folder)
    try:
        _write_plan(folder, plan=plan, ds_config=ds_config, prepared=prepared, tokenizer_seed=seed)
    except OSError as error:
        raise OutputError(f"cannot write to the run's folder {folder}: {reason(error)}") from None
    return folder, _artifacts(folder, prepared=prepared)


def _write_plan(
    folder: Path, *, plan: RunPlan, ds_config: dict[str, Any], prepared: PreparedData, tokenizer_seed: int | None
) -> None:
    files = {
        DATA_NAME: place_of_text(prepared, run_folder=folder, tokenizer_seed=tokenizer_seed),
        PLAN_NAME: plan.to_json(),
        DS_CONFIG_NAME: json.dumps(ds_config, indent=2) + "\n",
    }
    for name, text in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_durably(path, text)


def _artifacts(folder: Path, *, prepared: PreparedData) -> dict[str, str]:
    return {
        "plan": str(folder / PLAN_NAME),
        "ds_config": str(folder / DS_CONFIG_NAME),
        "tokenizer": str(prepared.tokenizer_path),
    }


def _new_folder(output: Path, *, name: str) -> Path:
    """Create a new folder; a second run with the same name or start time gets a number."""
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
