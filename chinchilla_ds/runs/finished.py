"""The output of a command whose run is already finished: the run's table, from its last checkpoint."""

from pathlib import Path

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.runs.earlier import Continued
from chinchilla_ds.tracking.destination import MlflowDestination
from chinchilla_ds.tracking.record import RunRecord
from chinchilla_ds.training.callback import EvaluationResult, TrainingState
from chinchilla_ds.training.callbacks.summary import footnote, loss_rows, model_rows, place_rows, plain_table, spent
from chinchilla_ds.units import format_duration


def finished_state(run: Continued) -> TrainingState:
    """Return the final state of the run, as far as its last checkpoint records it."""
    saved, plan, folder = run.state, run.plan, run.folder
    return TrainingState(
        plan=plan,
        run_folder=folder,
        owns_loss=True,
        peak_flops_per_s=None,
        iteration=saved.iteration,
        data_step=saved.data_step,
        attempts=saved.attempts,
        bad_batches=saved.bad_batches,
        rewinds=saved.rewinds,
        elapsed_s=saved.elapsed_s,
        evaluation=_evaluation(run),
        artifacts={"checkpoint": str(run.checkpoint), "plan": str(folder / "plan.json")},
    )


def describe_finished(run: Continued) -> str:
    """Return the table that the run printed at its end, and how to start another."""
    saved, folder, state = run.state, run.folder, finished_state(run)
    rows = [
        *model_rows(state),
        *loss_rows(state, train_losses=[] if saved.loss is None else [saved.loss], unigram_loss=None),
        ("FLOPs spent", spent(state)),
        ("training time", format_duration(saved.elapsed_s)),
        *place_rows(state, mlflow=_mlflow(folder)),
    ]
    return (
        f"finished      {folder}: the run of this command has reached its plan's end, and nothing is left "
        f"to do; `checkpoint.resume=none` starts another\n{plain_table(rows, note=footnote(state))}"
    )


def _mlflow(folder: Path) -> MlflowDestination | None:
    """Return where the run was tracked; None if that is no longer known."""
    try:
        return MlflowDestination.resolve(output=folder.parent, run_name=folder.name, record=RunRecord.load(folder))
    except TrackingError:
        return None


def _evaluation(run: Continued) -> EvaluationResult | None:
    loss, bits = run.state.held_out_loss, run.state.held_out_bits_per_byte
    return None if loss is None or bits is None else EvaluationResult(loss=loss, bits_per_byte=bits, num_tokens=0)
