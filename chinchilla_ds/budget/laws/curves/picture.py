"""The picture of a fit of curves: measured and predicted losses, and the learning rates below them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chinchilla_ds.budget.laws.curves.analysis import CurveReport, PredictedCurve
from chinchilla_ds.budget.laws.curves.band import BAND_LEVEL
from chinchilla_ds.budget.laws.curves.read import CurveFile
from chinchilla_ds.budget.laws.fitting.picture import DOTS_PER_INCH
from chinchilla_ds.files import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (9.0, 7.0)
_FITTED_COLOUR = "#9ca3af"
_MARGIN = 0.06


def write_curves_picture(report: CurveReport, path: Path, /) -> None:
    """Write the curves that were fitted, in grey, and those predicted with their bands, over the learning rates.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for file in (*report.fitted, *report.anchors):
        losses.plot(file.curve.step, file.curve.loss, color=_FITTED_COLOUR, lw=1)
        rates.plot(file.curve.step, file.rate, color=_FITTED_COLOUR, lw=1)
    losses.plot([], [], color=_FITTED_COLOUR, lw=1, label="measured, fitted")
    for index, prediction in enumerate(report.predicted):
        _draw(losses, rates, prediction, colour=f"C{index % 10}")
    losses.set_ylim(*_limits(report))
    losses.set(ylabel="loss (nats per token)", title=f"predicted curves, and their {BAND_LEVEL:.0%} bands")
    rates.set(xlabel="step", ylabel="learning rate")
    for axes in (losses, rates):
        axes.grid(alpha=0.25)
    losses.legend(fontsize=7.5)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."))
    write_output(path, content=picture.getvalue(), named="picture")


def _draw(losses: "Axes", rates: "Axes", prediction: PredictedCurve, *, colour: str) -> None:
    file, wide = prediction.file, np.exp(prediction.half_width)
    losses.fill_between(file.curve.step, prediction.loss / wide, prediction.loss * wide, color=colour, alpha=0.2, lw=0)
    losses.plot(file.curve.step, prediction.loss, color=colour, lw=1.3, label=file.name)
    if file.has_loss:
        losses.plot(file.curve.step, file.curve.loss, ".", color=colour, ms=2)
    rates.plot(file.curve.step, file.rate, color=colour, lw=1)


def _limits(report: CurveReport) -> tuple[float, float]:
    """Return the range of the losses after the first tenth of each run, where they fall fastest."""
    low, high = np.inf, -np.inf
    for losses in _losses(report):
        late = losses[len(losses) // 10 :]
        low, high = min(low, float(late.min())), max(high, float(late.max()))
    margin = _MARGIN * (high - low)
    return low - margin, high + margin


def _losses(report: CurveReport) -> Iterator[np.ndarray]:
    files: tuple[CurveFile, ...] = (*report.fitted, *report.anchors)
    yield from (file.curve.loss for file in files)
    yield from (prediction.loss for prediction in report.predicted)
    yield from (prediction.loss / np.exp(prediction.half_width) for prediction in report.predicted)
