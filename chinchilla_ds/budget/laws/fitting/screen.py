"""The report that `chinchilla-ds fit` prints."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from textwrap import wrap

from chinchilla_ds.budget.laws.fitting.frontier import FrontierFit
from chinchilla_ds.budget.laws.fitting.hold_out import HoldOut
from chinchilla_ds.budget.laws.fitting.predict import Predicted
from chinchilla_ds.budget.laws.fitting.result import INTERVAL_LEVEL, FitReport, constants, exponent_spread
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, Form, Prior, SurfaceFit
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.units import format_count

WIDTH = 120
_NAME = 22
_FORMULAS = {Form.ADDITIVE: "L = E + A / N^alpha + B / D^beta", Form.SKALING: "L = E + (A / N^alpha + B / D^beta)^k"}
_SKEWED = ("A", "B")
"""Constants whose draws spread over factors of ten where k is free: their standard deviation says nothing."""

_Row = tuple[str, ...]


def fit_text(report: FitReport) -> str:
    """Return one screen of text: the runs, the fits, their uncertainty, and the optimum of a budget."""
    sections = (
        _read(report), _surface(report), _frontiers(report), _optimum(report), _predictions(report), _held_out(report),
        _warnings(report),
    )  # fmt: skip
    return "\n\n".join(text for lines in sections if (text := "\n".join(lines)))


def _line(name: str, text: str) -> Iterator[str]:
    """Yield a name and its text, wrapped beside it."""
    rows = wrap(text, WIDTH - _NAME, break_long_words=False, break_on_hyphens=False)
    yield from (f"{name if index == 0 else '':<{_NAME}}{row}" for index, row in enumerate(rows))


def _read(report: FitReport) -> Iterator[str]:
    runs = report.runs
    yield from _line("runs", f"{len(runs)} of {report.source}")
    for name, values, write, unit in (
        ("  N", runs.num_params, format_count, "parameters"),
        ("  D", runs.num_tokens, format_count, f"{runs.unit}s"),
        ("  C", runs.flops, _flops, "FLOPs"),
        ("  loss", runs.loss, _loss, f"nats per {runs.unit}"),
    ):
        if unit != "FLOPs" or runs.unit is LossUnit.TOKEN:
            yield f"{name:<{_NAME}}{write(float(values.min()))} to {write(float(values.max()))} {unit}"
    if report.dropped is not None:
        yield f"{'  left out':<{_NAME}}{len(report.dropped) or 'none'} by the outlier rule"
        yield from chain.from_iterable(_line("", text) for text in report.dropped)


def _surface(report: FitReport) -> Iterator[str]:
    fit = report.surface
    if fit is None:
        return
    yield from _line("approach 3", f"{_FORMULAS[fit.form]}, {_objective(fit)}")
    yield f"{'  objective':<{_NAME}}{fit.objective_value:.10g}, gradient norm {fit.gradient_norm:.1e}"
    if fit.prior_ratios is not None:
        shares = ", ".join(f"{name} {ratio:.2f}" for name, ratio in fit.prior_ratios.items())
        yield from _line("  spread / prior's", f"{shares} (near 1 the weak prior decides, near 0 the runs)")
    if fit.hold_out is not None:
        yield from _line("  hold-out", _hold_out(fit.hold_out, fit.form))
    if report.law is None:
        yield f"{'  constants':<{_NAME}}not identified: see below"
        return
    yield ""
    yield from _table(list(_constant_rows(report)))


def _hold_out(held: HoldOut, form: Form) -> str:
    gain = held.additive_error - held.skaling_error
    verdict = "is free" if form is Form.SKALING else "stays 1"
    return (
        f"runs held out in turn are missed by {held.additive_error:.3%} with k = 1, by {held.skaling_error:.3%} with "
        f"k free (mean absolute log residual; gain {gain:.3%}, standard error {held.standard_error:.3%}): k {verdict}"
    )


def _objective(fit: SurfaceFit) -> str:
    words = {
        FitLoss.HUBER: f"Huber loss (delta {fit.delta:g}) of the log residual, summed"
        + (", with weak priors" if fit.prior is Prior.WEAK else ""),
        FitLoss.LAD: "absolute log residual, summed",
        FitLoss.SQUARED: "half the squared log residual, summed",
    }
    return words[fit.objective]


def _constant_rows(report: FitReport) -> Iterator[_Row]:
    assert report.law is not None
    draws = report.draws
    yield ("", "value", "standard error", f"{INTERVAL_LEVEL:.0%} interval") if draws else ("", "value")
    errors = {} if draws is None else draws.standard_errors
    intervals = {} if draws is None else draws.interval(level=INTERVAL_LEVEL)
    for name, value in constants(report.law).items():
        if name in errors:
            skewed = name in _SKEWED and report.surface is not None and report.surface.prior is Prior.WEAK
            error = "-" if skewed else f"{errors[name]:.4g}"
            yield f"  {name}", f"{value:.6g}", error, _between(intervals[name], _four)
        elif draws is None and (name != "k" or value != 1):
            yield f"  {name}", f"{value:.6g}"
    a = report.law.beta / (report.law.alpha + report.law.beta)
    yield "  a of N* ~ C^a", f"{a:.6g}", *_exponent_spread(report, "a")
    yield "  b of D* ~ C^b", f"{1 - a:.6g}", *_exponent_spread(report, "b")


def _exponent_spread(report: FitReport, name: str) -> _Row:
    spread = exponent_spread(report)
    return () if spread is None else (f"{spread.standard_errors[name]:.4g}", _between(spread.interval[name], _four))


def _frontiers(report: FitReport) -> Iterator[str]:
    names = {1: "best run at each compute value", 2: "parabola per compute level"}
    for fit in report.frontiers:
        law = f"N* = {fit.params_law.coefficient:.4g} C^{fit.params_law.exponent:.4f}, "
        law += f"D* = {fit.tokens_law.coefficient:.4g} C^{fit.tokens_law.exponent:.4f}"
        yield from _line(f"approach {fit.approach}", f"{law} ({names[fit.approach]}, {len(fit.points)} points)")
        if len(fit.draws):
            yield from _line("", _exponents(fit))
    if report.bias is not None:
        yield from _line(
            "  bias of approach 2",
            f"on the surface of approach 3 without noise, these runs' design would put N* at "
            f"{report.bias.compute_budget_flops:.3g} FLOPs {report.bias.num_params:+.1%} and D* "
            f"{report.bias.num_tokens:+.1%} off the truth",
        )


def _exponents(fit: FrontierFit) -> str:
    spans = fit.exponent_intervals(level=INTERVAL_LEVEL)
    return f"{INTERVAL_LEVEL:.0%} intervals: a {_between(spans['a'], _four)}, b {_between(spans['b'], _four)}"


def _optimum(report: FitReport) -> Iterator[str]:
    budget = report.compute_budget_flops
    if budget is None or (report.law is None and not report.frontiers):
        return
    yield f"at {budget:.3g} FLOPs the best model has"
    rows: list[_Row] = [("", "N", "D", "D / N", "loss")]
    if report.law is not None:
        best = report.law.optimal(compute_budget_flops=budget)
        rows.append(_optimum_row(3, best.num_params, best.num_tokens, loss=best.loss))
        if (interval := report.optimal_interval(compute_budget_flops=budget)) is not None:
            spans = (interval.num_params, interval.num_tokens, interval.tokens_per_param)
            rows.append((_SPAN, *map(_between, spans, _COUNTS), _between(interval.loss, _loss)))
    for fit in report.frontiers:
        params = fit.params_law.at(compute_budget_flops=budget)
        rows.append(_optimum_row(fit.approach, params, fit.tokens_law.at(compute_budget_flops=budget)))
        if len(fit.draws):
            at = fit.intervals_at(compute_budget_flops=budget, level=INTERVAL_LEVEL)
            rows.append((_SPAN, *map(_between, at.values(), _COUNTS), ""))
    yield from _table(rows)


_SPAN = f"    {INTERVAL_LEVEL:.0%} interval"


def _optimum_row(approach: int, params: float, tokens: float, *, loss: float | None = None) -> _Row:
    tail = "" if loss is None else _loss(loss)
    return f"  approach {approach}", format_count(params), format_count(tokens), _three(tokens / params), tail


def _predictions(report: FitReport) -> Iterator[str]:
    if report.predictions:
        rows: list[_Row] = [("predicted loss", "N", "D", "loss", f"{INTERVAL_LEVEL:.0%} interval of one run")]
        rows += [("", *_model(predicted), _interval(predicted)) for predicted in report.predictions]
        yield from _table(rows)


def _held_out(report: FitReport) -> Iterator[str]:
    if report.held_out is None:
        return
    runs = report.held_out.runs
    yield from _line("hold-out", f"{report.held_out.test}")
    rows: list[_Row] = [("", "N", "D", "predicted", f"{INTERVAL_LEVEL:.0%} interval", "measured", "error", "beyond")]
    for run in runs[-MOST_HELD_OUT_ROWS:]:
        mark = "" if run.inside else " outside"
        measured = (_loss(run.measured), f"{run.error:+.2%}", f"{run.times:.3g}x{mark}")
        rows.append(("", *_model(run.predicted), _interval(run.predicted), *measured))
    yield from _table(rows)
    if len(runs) > MOST_HELD_OUT_ROWS:
        yield from _line("", f"the {MOST_HELD_OUT_ROWS} most expensive of {len(runs)}; all are in the JSON")


MOST_HELD_OUT_ROWS = 12


def _model(predicted: Predicted) -> _Row:
    return format_count(predicted.num_params), format_count(predicted.num_tokens), _loss(predicted.loss)


def _interval(predicted: Predicted) -> str:
    if predicted.low is None or predicted.high is None:
        return "-"
    return _between((predicted.low, predicted.high), _loss)


def _warnings(report: FitReport) -> Iterator[str]:
    yield from chain.from_iterable(_line("warning", text) for text in report.warnings)


def _table(rows: Sequence[_Row]) -> Iterator[str]:
    """Yield rows with their columns aligned."""
    count = max(map(len, rows))
    full = [(*row, *[""] * (count - len(row))) for row in rows]
    widths = [_NAME, *(max(len(row[column]) for row in full) + 3 for column in range(1, count))]
    for row in full:
        yield "".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _between(span: tuple[float, float], write: Callable[[float], str]) -> str:
    return f"{write(span[0])} to {write(span[1])}"


def _flops(value: float) -> str:
    return f"{value:.3g}"


def _loss(value: float) -> str:
    return f"{value:.4f}"


def _three(value: float) -> str:
    return f"{value:.3g}"


def _four(value: float) -> str:
    return f"{value:.4g}"


_COUNTS = (format_count, format_count, _three)
"""Formats of N, D and D / N."""
