"""`chinchilla-ds track`: send MLflow what it lacks of a run's folder."""

import argparse
import fcntl
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.cli.arguments import flag, path
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import CheckpointError, ConfigError, TrackingError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.request import LOCK_NAME
from chinchilla_ds.runs.status import STATUS_NAME, State
from chinchilla_ds.structured import read_bytes, read_json
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.metrics_file import METRICS_FILE, describe_skipped, read_metrics
from chinchilla_ds.tracking.record import RunRecord, plan_params
from chinchilla_ds.tracking.tracker import RunStatus

if TYPE_CHECKING:
    from chinchilla_ds.tracking.mlflow import MlflowMirror

COMMAND = Command(
    name="track",
    group="train",
    summary="synchronise MLflow with a run's metrics.jsonl",
    examples=("chinchilla-ds track runs/first",),
)

_ENDED: dict[str, RunStatus] = {
    State.FINISHED: RunStatus.FINISHED,
    State.STOPPED: RunStatus.KILLED,
    State.FAILED: RunStatus.FAILED,
}
_FILES = ("plan.json", "ds_config.json", "environment.json", "sample.txt")
"""What runs from before tracking.json have in their folder and in MLflow."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("run", type=path, metavar="RUN", help="a run's folder")
    text = "MLflow server or database (default: MLFLOW_TRACKING_URI, otherwise the run's, or mlflow.db next to it)"
    flag(parser, "tracking-uri", _uri, text, metavar="URI")
    parser.add_argument("--uri", dest="tracking_uri", type=_uri, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> str:
    """Send what MLflow lacks; return a description of the result.

    Raises:
        TrackingError: the folder holds no metrics, or MLflow cannot be reached, read or written.
    """
    folder: Path = arguments.run
    _check_run(folder)
    notes = _begin_record(folder)
    place = folder.resolve()
    destination = MlflowDestination.resolve(
        output=place.parent, run_name=place.name, tracking_uri=arguments.tracking_uri, record=RunRecord.load(folder)
    )
    from chinchilla_ds.tracking.mlflow import track

    try:
        status = status_of(folder)
    except TrackingError as error:
        status = None
        notes.append(f"how the run ended is unknown: {error.problems[0]}")
    mirror = track(destination=destination, run_folder=folder, status=status)
    notes += mirror.notes
    if mirror.skipped:
        notes.append(describe_skipped(folder / METRICS_FILE, mirror.skipped))
    return _as_json(mirror, destination, notes) if arguments.json else _as_text(mirror, destination, notes)


def status_of(folder: Path, /) -> RunStatus | None:
    """Return a run's status from its folder; None if it has ended and the folder does not say how.

    Raises:
        TrackingError: its status file cannot be read.
    """
    if _is_being_trained(folder):
        return RunStatus.RUNNING
    file = folder / STATUS_NAME
    if file.is_file():
        status = read_json(file, what="status", error=TrackingError)
        state = status.get("state") if isinstance(status, dict) else None
        return _ENDED.get(
            str(state), RunStatus.FAILED
        )  # a run whose status is "running" although no process trains it was killed
    try:
        newest = folders.find_checkpoints(folder)[0]
        return RunStatus.FINISHED if CheckpointState.load(newest / folders.STATE_NAME).complete else None
    except CheckpointError:
        return None


def _check_run(folder: Path) -> None:
    if (folder / METRICS_FILE).exists():
        return
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise TrackingError(f"{folder} {what}; name the folder of a run")
    runs = sorted(metrics.parent for metrics in folder.glob(f"*/{METRICS_FILE}"))
    hint = f"; name one of the runs in it, such as {runs[-1]}" if runs else "; name the folder of a run"
    raise TrackingError(f"{folder} holds no {METRICS_FILE}{hint}")


def _begin_record(folder: Path) -> list[str]:
    """Write the record of a run that is older than such records; return notes for the user."""
    if RunRecord.load(folder) is not None:
        return []
    notes = []
    first = next(read_metrics(folder / METRICS_FILE), None)
    record = RunRecord.new(started_s=None if first is None else first.time_s)
    try:
        content = read_bytes(folder / "plan.json", what="plan")
        record = record.with_params(plan_params(RunPlan.from_json(content.decode("utf-8", "replace"))))
    except ConfigError as error:
        notes.append(f"no parameters: {error.problems[0]}")
    for file in (*(folder / name for name in _FILES), *sorted(folder.glob("samples/sample_*.txt"))):
        if file.is_file():
            record = record.with_artifact(file, run_folder=folder)
    try:
        record.save(folder)
    except OSError as error:
        raise TrackingError(f"{folder} cannot be written, and has no record of the run yet: {error.strerror}") from None
    return notes


def _is_being_trained(folder: Path) -> bool:
    """Return whether a process holds the lock of the run's folder."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


def _as_text(mirror: "MlflowMirror", destination: MlflowDestination, notes: list[str]) -> str:
    values = "1 value" if mirror.num_sent == 1 else f"{mirror.num_sent:,} values"
    sent = f"{values} that it lacked" if mirror.num_sent else "nothing: it has every value"
    lines = [
        f"MLflow run    {destination.run_name}, {mirror.status}, in {destination.short_uri}, "
        f"experiment {mirror.experiment}",
        f"sent          {sent}",
        f"MLflow UI     {destination.ui_command}",
        *(f"note          {note}" for note in notes),
    ]
    return "\n".join(lines)


def _as_json(mirror: "MlflowMirror", destination: MlflowDestination, notes: list[str]) -> str:
    facts = {
        "run": destination.run_name,
        "mlflow_run_id": mirror.run_id,
        "tracking_uri": destination.short_uri,
        "experiment": mirror.experiment,
        "status": mirror.status,
        "values_sent": mirror.num_sent,
        "unreadable_lines": mirror.skipped,
        "notes": notes,
    }
    return json.dumps(facts, indent=2)


def _uri(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a URI cannot be empty")
    return text
