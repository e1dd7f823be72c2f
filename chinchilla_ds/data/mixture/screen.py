"""A mixture search as a printed report, as JSON, and as a blend to train with."""

import json
from collections.abc import Mapping
from typing import Any

from chinchilla_ds.data.feeding.blend_file import WEIGHTS
from chinchilla_ds.data.mixture.search import Estimate, MixtureFit
from chinchilla_ds.data.mixture.table import DECIMALS, rounded_weights


def fit_text(fit: MixtureFit, /) -> str:
    """Return the search as a printed report."""
    percent = f"{100 * fit.level:.0f} %"
    target = "loss" if fit.runs.targets == ("loss",) else "mean of " + ", ".join(fit.runs.targets)
    best_run = fit.runs.losses.argmin()
    lines = [
        f"runs                {len(fit.runs.losses)} on {len(fit.runs.sources)} sources; {target} "
        f"{fit.runs.losses[best_run]:.4f} to {fit.runs.losses.max():.4f}",
        *(f"note                {note}" for note in fit.runs.notes),
        "",
        f"{'regression':<20}{'error, left out':>16}{'rank correlation':>18}",
        *(
            f"{score.name:<20}{score.error:>16.4f}{score.rank_correlation:>18.3f}"
            + ("   chosen" if score.name == fit.chosen else "")
            for score in fit.scores
        ),
        "",
        f"{'source':<28}{'natural':>9}{'best run':>10}{'best':>9}   {percent} interval   {'may be':>16}",
        *_source_lines(fit),
        "",
        f"predicted loss      {_estimate(fit.loss, percent)} at the best mixture",
        f"                    {_estimate(fit.natural_loss, percent)} at the natural mixture",
        f"gain                {_estimate(fit.gain, percent)}",
        f"verdict             {_verdict(fit, percent)}",
    ]
    return "\n".join(lines) + "\n"


def _source_lines(fit: MixtureFit) -> list[str]:
    best_run = fit.runs.weights[fit.runs.losses.argmin()]
    lines = []
    for index, name in enumerate(fit.runs.sources):
        lower, upper = fit.bounds.lower[index], fit.bounds.upper[index]
        lines.append(
            f"{name:<28}{fit.natural[index]:>9.4f}{best_run[index]:>10.4f}{fit.best[index]:>9.4f}   "
            f"{fit.best_low[index]:.4f}-{fit.best_high[index]:.4f}   {lower:>7.4f}-{upper:.4f}"
            + ("   at its limit" if fit.best[index] > upper - 1e-6 and upper < 1 else "")
        )
    return lines


def _estimate(estimate: Estimate, percent: str) -> str:
    return f"{estimate.value:.4f}, {percent} interval {estimate.low:.4f} to {estimate.high:.4f}"


def _verdict(fit: MixtureFit, percent: str) -> str:
    if fit.is_better:
        return f"better than the natural mixture: the gain exceeds its uncertainty ({percent})"
    return f"no evidence that it is better than the natural mixture: the gain is within its uncertainty ({percent})"


def fit_data(fit: MixtureFit, /) -> dict[str, Any]:
    """Return the search as plain data; weights are by source."""

    def by_source(values: Any) -> dict[str, float]:
        return dict(zip(fit.runs.sources, values.tolist(), strict=True))

    def interval(estimate: Estimate) -> dict[str, Any]:
        return {"value": estimate.value, "interval": [estimate.low, estimate.high]}

    best_run = fit.runs.losses.argmin()
    return {
        "num_runs": len(fit.runs.losses),
        "targets": list(fit.runs.targets),
        "notes": list(fit.runs.notes),
        "regressions": {
            score.name: {"error": score.error, "rank_correlation": score.rank_correlation} for score in fit.scores
        },
        "chosen": fit.chosen,
        "level": fit.level,
        "num_draws": fit.num_draws,
        "natural": by_source(fit.natural),
        "best": by_source(rounded_weights(fit.best, upper=fit.bounds.upper)),
        "best_interval": {
            name: [low, high]
            for name, low, high in zip(fit.runs.sources, fit.best_low.tolist(), fit.best_high.tolist(), strict=True)
        },
        "bounds": {
            name: [low, high]
            for name, low, high in zip(
                fit.runs.sources, fit.bounds.lower.tolist(), fit.bounds.upper.tolist(), strict=True
            )
        },
        "best_run": {"weights": by_source(fit.runs.weights[best_run]), "loss": float(fit.runs.losses[best_run])},
        "loss": interval(fit.loss),
        "natural_loss": interval(fit.natural_loss),
        "gain": interval(fit.gain),
        "is_better": fit.is_better,
    }


def blend_yaml(fit: MixtureFit, /) -> str:
    """Return the best mixture as YAML; the weights sum to 1."""
    better = "" if fit.is_better else "; no evidence that it is better than the natural mixture"
    note = f"predicted from {len(fit.runs.losses)} runs: loss {fit.loss.value:.4f}, gain {fit.gain.value:.4f}{better}"
    weights = rounded_weights(fit.best, upper=fit.bounds.upper).tolist()
    return blend_text(dict(zip(fit.runs.sources, weights, strict=True)), note=note)


def blend_text(weights: Mapping[str, float], /, *, note: str) -> str:
    """Return weights by source as YAML for `read_blend`, under a one-line note."""
    rows = (f"  {json.dumps(name, ensure_ascii=False)}: {weight:.{DECIMALS}f}" for name, weight in weights.items())
    return "\n".join([f"# {note}", f"{WEIGHTS}:", *rows]) + "\n"
