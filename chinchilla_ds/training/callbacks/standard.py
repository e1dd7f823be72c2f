"""The callbacks of an ordinary run."""

from collections.abc import Mapping
from pathlib import Path

from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.distributed import cpu_backend, groups
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.jsonl import jsonl_tracker
from chinchilla_ds.tracking.mlflow import mlflow_tracker
from chinchilla_ds.tracking.tracker import CompositeTracker, NullTracker, Tracker
from chinchilla_ds.training.callback import Callback
from chinchilla_ds.training.callbacks.progress import ProgressCallback
from chinchilla_ds.training.callbacks.summary import SampleCallback, SummaryCallback
from chinchilla_ds.training.callbacks.tracking import TrackingCallback


def standard_callbacks(
    *, output: Path, run_folder: Path, prepared: PreparedData, text: Mapping[str, object], started_s: float
) -> tuple[Callback, ...]:
    """Return progress, tracking (MLflow and metrics.jsonl), sample and summary, in the order of their output.

    Args:
        output: Holds mlflow.db, unless MLFLOW_TRACKING_URI names another store.
        run_folder: Receives metrics.jsonl; its name is the MLflow run's.
        prepared: Provides the unigram loss for comparison.
        text: Parameters that tell the text and the tokenizer from others.
        started_s: `time.monotonic()` when the command began.
    """
    destination = MlflowDestination.resolve(output=output, run_name=run_folder.name)
    tracker: Tracker = NullTracker()
    if groups.owns_loss():
        file = jsonl_tracker(run_folder=run_folder, followed_by=destination)
        mlflow = mlflow_tracker(destination=destination, run_folder=run_folder)
        tracker = CompositeTracker([file, mlflow])  # closed in this order: the second reads what the first writes
    return (
        ProgressCallback(),
        TrackingCallback(tracker=tracker, device_type=cpu_backend.device().type, params=text),
        SampleCallback(),
        SummaryCallback(unigram_loss=prepared.unigram_loss, mlflow=destination, started_s=started_s),
    )
