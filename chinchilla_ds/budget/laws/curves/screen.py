"""A fit of curves as text and as JSON."""

import math
from collections.abc import Sequence
from typing import Any

from chinchilla_ds.budget.laws.curves.analysis import CurveReport, PredictedCurve
from chinchilla_ds.budget.laws.curves.band import BAND_LEVEL
from chinchilla_ds.budget.laws.curves.equations import MULTI_POWER
from chinchilla_ds.budget.laws.curves.fit import named_constants
from chinchilla_ds.budget.laws.curves.law import CurveLaw
from chinchilla_ds.budget.laws.curves.read import CurveFile
from chinchilla_ds.units import format_count

_EQUATION = {
    "multi_power": "L = L0 + A S1^-alpha - B sum of drops (1 - (1 + C eta^-gamma S)^-beta)",
    "momentum": "L = L0 + A S1^-alpha - B sum of drops (1 - exp(-decay t)) / (1 - exp(-decay))",
}


def curves_data(report: CurveReport, /) -> dict[str, Any]:
    """Return a report as JSON data."""
    first, second = report.laws.laws
    sizes = sorted({file.num_params for file in (*report.fitted, *report.anchors) if file.num_params is not None})
    return {
        "law": first.form.name,
        "constants": first.constants(),
        "constants_by_size": {f"{size:.0f}": named_constants(first.form, first.theta(size)) for size in sizes},
        "momentum": second.constants(),
        "objective": report.objective,
        "fitted": [_fitted(file) for file in report.fitted],
        "anchors": [_fitted(file) for file in report.anchors],
        "level": BAND_LEVEL,
        "misfit": report.laws.misfit,
        "errors": [_errors(prediction) for prediction in report.measured],
        "coverage": {
            "with_disagreement": report.mean_coverage(),
            "without_disagreement": report.mean_coverage(with_disagreement=False),
        },
        "predictions": [_prediction(prediction) for prediction in report.predicted],
        "notes": list(report.notes),
    }


def _fitted(file: CurveFile) -> dict[str, Any]:
    return {"file": str(file.path), "num_params": file.num_params, "points": len(file.curve)}


def _errors(prediction: PredictedCurve) -> dict[str, Any]:
    errors = prediction.errors
    return {
        "file": str(prediction.file.path),
        "mean": float(errors.mean()),
        "worst": float(errors.max()),
        "coverage": prediction.coverage(),
        "coverage_without_disagreement": prediction.coverage(with_disagreement=False),
    }


def _prediction(prediction: PredictedCurve) -> dict[str, Any]:
    wide = [math.exp(value) for value in prediction.half_width.tolist()]
    losses = prediction.loss.tolist()
    return {
        "file": str(prediction.file.path),
        "num_params": prediction.file.num_params,
        "step": prediction.file.curve.step.tolist(),
        "loss": losses,
        "low": [loss / factor for loss, factor in zip(losses, wide, strict=True)],
        "high": [loss * factor for loss, factor in zip(losses, wide, strict=True)],
    }


def curves_text(report: CurveReport, /) -> str:
    """Return a report as text for a terminal."""
    lines = [f"{'fitted' if not i else '':<22}{_described(file)}" for i, file in enumerate(report.fitted)]
    lines += [f"{'anchor' if not i else '':<22}{_described(file)}" for i, file in enumerate(report.anchors)]
    for law in report.laws.laws:
        lines += ["", f"{law.form.name.replace('_', '-') + ' law':<22}{_EQUATION[law.form.name]}", *_constants(law)]
        if law.form is MULTI_POWER:
            lines.append(
                f"  {'objective':<20}{report.objective:.4g}, Huber loss (delta 0.001) of the log residual, summed"
            )
    lines += [
        "",
        f"{f'{BAND_LEVEL:.0%} band':<22}{report.laws.misfit:.2%} of the loss, missed on runs that were left out, and "
        "the laws' disagreement",
        *_predictions(report.predicted),
    ]
    if (coverage := report.mean_coverage()) is not None:
        without = report.mean_coverage(with_disagreement=False) or 0.0
        lines.append(f"  {'band holds':<20}{coverage:.0%} of the points, {without:.0%} without the laws' disagreement")
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _described(file: CurveFile) -> str:
    size = "" if file.num_params is None else f", {format_count(file.num_params)} parameters"
    step = file.curve.step
    return f"{file.name}{size}, {len(step)} points, steps {step[0]:,} to {step[-1]:,}"


def _constants(law: CurveLaw) -> list[str]:
    values = [f"{name} {value:.4g}" for name, value in law.constants().items()]
    return [f"  {'constants' if not i else '':<20}{'  '.join(values[i : i + 6])}" for i in range(0, len(values), 6)]


def _predictions(predicted: Sequence[PredictedCurve]) -> list[str]:
    if not predicted:
        return []
    width = max(len("predicted"), *(len(prediction.file.name) for prediction in predicted)) + 2
    head = f"{'final loss':<11}{'80% band':<19}{'measured':<11}{'mean error':<13}{'worst':<8}"
    rows = []
    for prediction in predicted:
        loss, wide = prediction.loss[-1], math.exp(prediction.half_width[-1])
        row = f"{prediction.file.name:<{width}}{loss:<11.4f}{f'{loss / wide:.4f} to {loss * wide:.4f}':<19}"
        if prediction.file.has_loss:
            errors = prediction.errors
            row += f"{prediction.file.curve.loss[-1]:<11.4f}{errors.mean():<13.2%}{errors.max():<8.2%}"
        rows.append(row.rstrip())
    return ["", f"{'predicted':<{width}}{head}".rstrip(), *rows]
