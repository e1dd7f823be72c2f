"""The picture of a fit: the loss against N at each compute level, and the best N against compute."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chinchilla_ds.budget.laws.fitting.frontier import MIN_SIZES, FrontierFit, Level, find_levels
from chinchilla_ds.budget.laws.fitting.result import INTERVAL_LEVEL, FitReport, constants
from chinchilla_ds.budget.laws.fitting.runs import Floats, RunTable
from chinchilla_ds.budget.laws.fitting.surface import Surface
from chinchilla_ds.budget.laws.lookup import LAWS
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.files import write_output

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (12.0, 5.2)
DOTS_PER_INCH = 150
MAX_LEVELS = 9
"""Compute levels that are drawn: those with the most runs."""
COMPARED_LAWS = ("besiroglu2024", "hoffmann2022")
FORMATS = (".png", ".svg", ".pdf")
_LINE_POINTS = 200
_FRONTIER_COLOUR = "#c2410c"
_PARABOLA_COLOUR = "#15803d"
_GREY = "#6b7280"

_Colour = Callable[[float], Any]


def check_picture_name(path: Path, /) -> None:
    """Check that a picture can be written under this name.

    Raises:
        ConfigError: a suffix that is not in FORMATS.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"`picture={path}` must end in one of {', '.join(FORMATS)}")


def write_picture(report: FitReport, path: Path, /) -> None:
    """Write IsoFLOP profiles and the frontier side by side, in the format that the file's suffix names.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    profiles, frontier = figure.subplots(1, 2)
    colour = _colours(report.runs.flops)
    _draw_profiles(profiles, report, colour)
    _draw_frontier(frontier, report, colour)
    figure.suptitle(_title(report), fontsize=11)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lower().removeprefix("."))
    write_output(path, content=picture.getvalue(), named="picture")


def _colours(flops: Floats) -> _Colour:
    """Return the colour of a compute level, dark to light by rising FLOPs."""
    import matplotlib as mpl

    low, width = np.log(flops.min()), max(np.ptp(np.log(flops)), 1e-9)
    return lambda value: mpl.colormaps["viridis"](0.9 * (np.log(value) - low) / width)


def _title(report: FitReport) -> str:
    head = f"{len(report.runs)} runs of {report.source}"
    if report.law is None:
        return head
    named = {name: value for name, value in constants(report.law).items() if name != "k" or value != 1}
    return head + ":  " + "   ".join(f"{_SYMBOLS.get(name, name)} = {value:.4g}" for name, value in named.items())


_SYMBOLS = {"alpha": r"$\alpha$", "beta": r"$\beta$"}


def drawn_levels(report: FitReport) -> list[Level]:
    """Return the compute levels with the most runs, by rising FLOPs."""
    levels = [level for level in find_levels(report.runs) if level.num_sizes >= MIN_SIZES]
    most = sorted(levels, key=lambda level: -len(level.rows))[:MAX_LEVELS]
    return sorted(most, key=lambda level: level.flops)


def _draw_profiles(axes: "Axes", report: FitReport, colour: _Colour) -> None:
    runs, levels = report.runs, drawn_levels(report)
    for level in levels:
        shade = [colour(level.flops)]
        axes.scatter(runs.num_params[level.rows], runs.loss[level.rows], s=14, c=shade, zorder=3)
        sizes, losses = _profile(report, level)
        label = f"{level.flops:.1e} FLOPs"
        axes.plot(sizes, losses, color=shade[0], lw=1.3, label=label, zorder=2)
    _draw_minima(axes, report, levels)
    if not levels:
        axes.scatter(runs.num_params, runs.loss, s=14, c=[colour(flops) for flops in runs.flops])
        axes.text(0.5, 0.95, "no compute level has four sizes", ha="center", transform=axes.transAxes, color=_GREY)
    _limit_losses(axes, runs.loss[np.concatenate([level.rows for level in levels])] if levels else runs.loss)
    axes.set(xscale="log", xlabel="parameters N", ylabel="loss (nats per token)", title="IsoFLOP profiles")
    axes.grid(alpha=0.25)
    if levels:
        axes.legend(fontsize=7.5, reverse=True)


def _draw_minima(axes: "Axes", report: FitReport, levels: list[Level]) -> None:
    """Mark the best N of each level: approach 2's parabola, and above it approach 3's surface."""
    runs, budgets = report.runs, [level.flops for level in levels]
    if report.isoflop is not None:
        shown = [point for point in report.isoflop.points if np.isclose(point.flops, budgets, rtol=1e-6).any()]
        minima = [point.num_params for point in shown], [point.loss for point in shown]
        axes.plot(*minima, "D", color="white", mec=_PARABOLA_COLOUR, ms=5, zorder=4, label="minimum, approach 2")
    if report.law is not None and budgets:
        optima = [report.law.optimal(compute_budget_flops=_law_budget(runs, level)) for level in levels]
        minima = [best.num_params for best in optima], [best.loss or 0.0 for best in optima]
        axes.plot(
            *minima, "*", color=_FRONTIER_COLOUR, ms=9, mec="white", mew=0.5, zorder=5, label="minimum, approach 3"
        )


def _profile(report: FitReport, level: Level) -> tuple[Floats, Floats]:
    """Return the curve through a level's runs: the surface's, or approach 2's parabola if there is none."""
    runs = report.runs
    params = runs.num_params[level.rows]
    if report.law is not None:
        sizes = np.geomspace(params.min() / 1.4, params.max() * 1.4, _LINE_POINTS)
        return sizes, _surface_losses(report.law, sizes, _law_budget(runs, level))
    sizes = np.geomspace(params.min(), params.max(), _LINE_POINTS)
    centre = np.log(params).mean()
    parabola = np.polyfit(np.log(params) - centre, runs.loss[level.rows], 2)
    return sizes, np.polyval(parabola, np.log(sizes) - centre)


def _law_budget(runs: RunTable, level: Level) -> float:
    """Return 6 N D of a level, the law's budget; the runs' own FLOPs may differ."""
    return float(6 * np.exp(np.log(runs.num_params[level.rows] * runs.num_tokens[level.rows]).mean()))


def _surface_losses(surface: Surface, sizes: Floats, flops: float) -> Floats:
    return np.array([surface.loss(num_params=size, num_tokens=flops / 6 / size) for size in sizes.tolist()])


def _limit_losses(axes: "Axes", losses: Floats) -> None:
    """Limit the axis to the runs, however far the curves rise beyond them."""
    margin = 0.06 * max(float(np.ptp(losses)), 0.02)
    axes.set_ylim(losses.min() - margin, losses.max() + margin)


def _draw_frontier(axes: "Axes", report: FitReport, colour: _Colour) -> None:
    runs, budget = report.runs, report.compute_budget_flops
    low, high = float(runs.flops.min()) / 2, max(float(runs.flops.max()), budget or 0.0) * 2
    flops = np.geomspace(low, high, _LINE_POINTS)
    axes.scatter(runs.flops, runs.num_params, s=9, c=[colour(value) for value in runs.flops], alpha=0.55, label="runs")
    for name, style in zip(COMPARED_LAWS, (":", "--"), strict=True):
        optima = [LAWS[name].optimal(compute_budget_flops=value).num_params for value in flops.tolist()]
        axes.plot(flops, optima, style, color=_GREY, lw=1, label=name, zorder=1)
    if report.law is not None:
        _draw_surface_frontier(axes, report, report.law, flops)
    for fit, marker, shade in ((report.envelope, "^", "#0369a1"), (report.isoflop, "D", _PARABOLA_COLOUR)):
        if fit is not None:
            _draw_points(axes, fit, flops, marker=marker, shade=shade, band=report.law is None)
    if budget is not None:
        axes.axvline(budget, color=_GREY, lw=0.8)
        axes.annotate(f" {budget:.3g} FLOPs", (budget, 0.02), xycoords=axes.get_xaxis_transform(), fontsize=7.5,
                      rotation=90, ha="right", color=_GREY)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="training compute C (FLOPs)", ylabel="parameters N")
    axes.set(title="compute-optimal frontier", xlim=(low, high))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7.5, loc="upper left")


def _law_label(approach: int, exponent: float) -> str:
    return rf"approach {approach}, $N^* \propto C^{{{exponent:.3f}}}$"


def _draw_surface_frontier(axes: "Axes", report: FitReport, surface: Surface, flops: Floats) -> None:
    optima = [surface.optimal(compute_budget_flops=value).num_params for value in flops.tolist()]
    exponent = surface.beta / (surface.alpha + surface.beta)
    axes.plot(flops, optima, color=_FRONTIER_COLOUR, lw=2, label=_law_label(3, exponent), zorder=4)
    intervals = [report.optimal_interval(compute_budget_flops=value) for value in flops.tolist()]
    bounds = [interval.num_params for interval in intervals if interval is not None]
    if not bounds:
        return
    low, high = np.array(bounds).T
    axes.fill_between(
        flops, low, high, color=_FRONTIER_COLOUR, alpha=0.2, lw=0, label=f"{INTERVAL_LEVEL:.0%} interval of approach 3"
    )


def _draw_points(axes: "Axes", fit: FrontierFit, flops: Floats, *, marker: str, shade: str, band: bool) -> None:
    points = fit.points[:: max(1, len(fit.points) // 40)]
    optima = [fit.params_law.at(compute_budget_flops=value) for value in flops.tolist()]
    axes.plot(flops, optima, color=shade, lw=1.2, label=_law_label(fit.approach, fit.params_law.exponent))
    axes.plot([point.flops for point in points], [point.num_params for point in points], marker, color=shade, ms=4)
    if band and len(fit.draws):
        log_params = fit.draws[:, :1] + fit.draws[:, 1:2] * np.log(flops)
        low, high = np.exp(np.quantile(log_params, [(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2], axis=0))
        axes.fill_between(flops, low, high, color=shade, alpha=0.15, lw=0)
