"""How well fits to cheap runs predict dear ones, and whether their 80 % intervals hold, on public tables.

    python benchmarks/predictions.py FOLDER [--peer FOLDER] [--json FILE]
    python benchmarks/predictions.py --synthetic

FOLDER holds these CSV files, of which those that are there are read:

    datablations_c4_runs.csv: N, D, loss, epochs; Muennighoff et al. 2023 (arXiv:2305.16264), its rows of epochs <= 1
    epoch_chinchilla_245.csv: N, D, loss, excluded_by_epoch; Besiroglu et al. 2024 (arXiv:2404.10102), the rows with 0
    gadre_openlm_rpj_rw.csv: N, D, loss_openlm, dataset; Gadre et al. 2024 (arXiv:2403.08540), each dataset by itself
    porian_isoflop_rw_standard.csv: N, D, loss, hparams, warmup, decay; Porian et al. 2024 (arXiv:2406.19146), each
        group of the last three by itself

A cell is a table and a factor f of 4, 10, 30 and 100: runs of less than a f-th of the dearest run's N D are fitted (at
least 8), and those of at least 4 times the dearest fitted one predicted. The error of a cell is the median of
abs(log(predicted / measured)); coverage is the share of held-out runs within the 80 % interval, pooled over runs.

Beside the default fit: the additive form and `--form auto --prior none` (k freed by interpolation folds, the rule of
`auto` before there were priors), each with percentiles of 100 bootstrap draws; scipy's curve_fit of the additive form
with the delta method on its covariance; and with --peer, a folder into which `pip install --target FOLDER chinchilla`
has put the package of that name, its own fit on three cells (minutes each; it gives no interval).

--synthetic needs no folder: laws with k = 1 and k = 0.47, 0.3 % noise, 400 runs on a 20 x 20 grid; the cheapest that
make a tenth of all FLOPs are fitted, and the seven dearest predicted.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from chinchilla_ds.budget.laws.fitting.analysis import FitRequest, analyse
from chinchilla_ds.budget.laws.fitting.bootstrap import bootstrap_surface
from chinchilla_ds.budget.laws.fitting.runs import RunTable, run_table
from chinchilla_ds.budget.laws.fitting.surface import Form, Surface, fit_surface

FACTORS = (4, 10, 30, 100)
FEWEST_FITTED = 8
BEYOND = 4
"""Held-out runs have at least this many times the compute of the dearest fitted one."""
FEWEST_FOR_THE_MEAN = 3
"""Held-out runs of the cells whose errors are compared with additive's."""
FEWEST_FOR_COVERAGE = 5
"""Held-out runs of a table whose coverage is judged by itself."""
NUM_DRAWS = 100
PEER_CELLS = (("datablations", 30), ("gadre rpj", 100), ("porian base short chinchilla", 100))
Array = NDArray[np.float64]
Prediction = tuple[Array, Array | None, Array | None]
"""Loss, low and high of each held-out run."""
Method = Callable[[RunTable, RunTable], Prediction]
"""From the fitted and the held-out runs."""


# ---- tables ----------------------------------------------------------------------------------------------------------


def read_tables(folder: Path) -> dict[str, RunTable]:
    """Return the tables of a folder by name."""
    rows: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for row in _rows(folder / "datablations_c4_runs.csv"):
        if float(row["epochs"]) <= 1:
            rows["datablations"].append(_run(row))
    for row in _rows(folder / "epoch_chinchilla_245.csv"):
        if row["excluded_by_epoch"] == "0":
            rows["epoch"].append(_run(row))
    for row in _rows(folder / "gadre_openlm_rpj_rw.csv"):
        rows[f"gadre {row['dataset']}"].append(_run(row, loss="loss_openlm"))
    for row in _rows(folder / "porian_isoflop_rw_standard.csv"):
        rows[f"porian {row['hparams']} {row['warmup']} {row['decay']}"].append(_run(row))
    tables = {}
    for name, runs in rows.items():
        num_params, num_tokens, loss = np.array(runs).T
        tables[name] = run_table(num_params=num_params, num_tokens=num_tokens, loss=loss)
    return tables


def _rows(path: Path) -> Iterator[dict[str, str]]:
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as lines:
            yield from csv.DictReader(lines)


def _run(row: dict[str, str], *, loss: str = "loss") -> tuple[float, float, float]:
    return float(row["N"]), float(row["D"]), float(row[loss])


# ---- methods ---------------------------------------------------------------------------------------------------------


def by_default(fitted: RunTable, held_out: RunTable) -> Prediction:
    """Predict with the default fit."""
    points = tuple(zip(held_out.num_params.tolist(), held_out.num_tokens.tolist(), strict=True))
    predictions = analyse(fitted, source="cheap runs", request=FitRequest(points=points)).predictions
    loss, low, high = (
        np.array([getattr(predicted, name) for predicted in predictions]) for name in ("loss", "low", "high")
    )
    return loss, low, high


def by_bootstrap(form: Form) -> Method:
    """Return the prediction of a form without priors, with percentiles of its bootstrap."""

    def predict(fitted: RunTable, held_out: RunTable) -> Prediction:
        fit = fit_surface(fitted, form=form)
        draws = bootstrap_surface(fitted, fit=fit, num_draws=NUM_DRAWS, seed=42).rows
        rows = [
            Surface(
                irreducible_loss=np.exp(log_e),
                params_coefficient=np.exp(log_a),
                tokens_coefficient=np.exp(log_b),
                alpha=alpha,
                beta=beta,
                outer_exponent=np.exp(log_k),
            )
            for log_a, log_b, log_e, alpha, beta, log_k in draws
        ]
        low, high = np.quantile([losses(surface, held_out) for surface in rows], [0.1, 0.9], axis=0)
        return losses(fit.surface, held_out), low, high

    return predict


def losses(surface: Surface, runs: RunTable) -> Array:
    """Return the surface's loss at every run's N and D."""
    pairs = zip(runs.num_params.tolist(), runs.num_tokens.tolist(), strict=True)
    return np.array([surface.loss(num_params=params, num_tokens=tokens) for params, tokens in pairs])


def by_curve_fit(fitted: RunTable, held_out: RunTable) -> Prediction:
    """Predict with scipy's curve_fit of the additive form, from the paper's rounded constants."""
    from scipy.optimize import curve_fit

    def formula(runs: Array, e: float, a: float, b: float, alpha: float, beta: float) -> Array:
        return e + a * runs[0] ** -alpha + b * runs[1] ** -beta

    columns = [np.stack([runs.num_params, runs.num_tokens]) for runs in (fitted, held_out)]
    start, bounds = (1.69, 406.4, 410.7, 0.34, 0.28), ([0, 0, 0, 0, 0], [20, 1e12, 1e12, 3, 3])
    constants, covariance = curve_fit(formula, columns[0], fitted.loss, p0=start, bounds=bounds, max_nfev=20_000)
    loss = formula(columns[1], *constants)
    steps = 1e-6 * np.maximum(np.abs(constants), 1e-9)
    moved = [formula(columns[1], *(constants + move)) for move in np.diag(steps)]
    slopes = (np.array(moved) - loss) / steps[:, None]
    width = 1.2816 * np.sqrt(np.maximum(np.einsum("pn,pq,qn->n", slopes, covariance, slopes), 0))
    return loss, loss - width, loss + width


PEER_CODE = """
import json, sys
import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
folder, (fitted, asked) = sys.argv[1], json.load(sys.stdin)
grid = dict(E=np.linspace(1, 2, 5), a=np.linspace(1, 10, 5), b=np.linspace(1, 10, 5),
            alpha=np.linspace(0.1, 0.7, 5), beta=np.linspace(0.1, 0.7, 5))
law = Chinchilla(folder, param_grid=grid, loss_fn=log_huber, log_level=50)
for n, d, loss in fitted:
    law.append(N=n, D=d, loss=loss)
law.fit()
print(json.dumps([float(law.E + law.A * n ** -law.alpha + law.B * d ** -law.beta) for n, d in asked]))
"""


def by_peer(folder: Path) -> Method:
    """Return the prediction of the PyPI package `chinchilla`, with the grid and the objective of its README."""

    def predict(fitted: RunTable, held_out: RunTable) -> Prediction:
        rows = np.stack([fitted.num_params, fitted.num_tokens, fitted.loss], axis=1).tolist()
        asked = np.stack([held_out.num_params, held_out.num_tokens], axis=1).tolist()
        with tempfile.TemporaryDirectory() as project:
            done = subprocess.run(
                [sys.executable, "-c", PEER_CODE, project],
                input=json.dumps([rows, asked]),
                env={**os.environ, "PYTHONPATH": str(folder), "MPLBACKEND": "Agg"},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        return np.array(json.loads(done.stdout.splitlines()[-1])), None, None

    return predict


METHODS: dict[str, Method] = {
    "default": by_default,
    "additive": by_bootstrap(Form.ADDITIVE),
    "auto, no prior": by_bootstrap(Form.AUTO),
    "curve_fit": by_curve_fit,
}


# ---- cells -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one cut of one table."""

    table: str
    factor: int
    method: str
    num_fitted: int
    errors: tuple[float, ...]
    """log(predicted / measured) of every held-out run."""
    inside: tuple[bool, ...]
    """Whether the interval holds it; empty without intervals."""
    widths: tuple[float, ...]
    """high / low - 1 of every interval."""
    seconds: float

    @property
    def error(self) -> float:
        """Return the median of the absolute errors."""
        return float(np.median(np.abs(self.errors)))


def cuts(runs: RunTable) -> Iterator[tuple[int, RunTable, RunTable]]:
    """Yield the factor, the fitted and the held-out runs of every cell of a table."""
    compute = runs.num_params * runs.num_tokens
    for factor in FACTORS:
        cheap = compute < compute.max() / factor
        if cheap.sum() < FEWEST_FITTED:
            continue
        dear = compute >= BEYOND * compute[cheap].max()
        if dear.any():
            yield factor, runs.select(cheap), runs.select(dear)


def measure(name: str, factor: int, method: str, predict: Method, *, fitted: RunTable, held_out: RunTable) -> Cell:
    """Return what a method makes of a cell."""
    start = time.perf_counter()
    loss, low, high = predict(fitted, held_out)
    seconds = time.perf_counter() - start
    known = low is not None and high is not None
    return Cell(
        table=name,
        factor=factor,
        method=method,
        num_fitted=len(fitted),
        errors=tuple(np.log(loss / held_out.loss).tolist()),
        inside=tuple(((low <= held_out.loss) & (held_out.loss <= high)).tolist()) if known else (),
        widths=tuple((high / low - 1).tolist()) if known else (),
        seconds=seconds,
    )


def all_cells(tables: dict[str, RunTable], *, peer: Path | None) -> list[Cell]:
    """Return every method on every cell; the peer on its three."""
    cells = []
    for name, runs in tables.items():
        for factor, fitted, held_out in cuts(runs):
            methods = dict(METHODS)
            if peer is not None and (name, factor) in PEER_CELLS:
                methods["chinchilla"] = by_peer(peer)
            for method, predict in methods.items():
                cells.append(measure(name, factor, method, predict, fitted=fitted, held_out=held_out))
    return cells


# ---- the report ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A method over all cells."""

    method: str
    num_cells: int
    num_held_out: int
    median_error: float
    """Median over the cells of their errors."""
    worst_error: float
    """The worst of any held-out run."""
    coverage: float | None
    least_coverage: float | None
    """The least of any table with at least 5 held-out runs, its cells pooled."""
    median_width: float | None
    over_additive: float
    """Geometric mean of the error over additive's, over cells with at least 3 held-out runs."""
    better: float
    """Share of those cells with a smaller error than additive."""


def summarise(cells: list[Cell]) -> list[Summary]:
    """Return one summary per method, over the cells that it was run on."""
    additive = {(cell.table, cell.factor): cell.error for cell in cells if cell.method == "additive"}
    summaries = []
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        ratios = np.array(
            [
                cell.error / additive[cell.table, cell.factor]
                for cell in own
                if len(cell.errors) >= FEWEST_FOR_THE_MEAN and (cell.table, cell.factor) in additive
            ]
        )
        inside = [hit for cell in own for hit in cell.inside]
        by_table = coverage_by_table(own)
        summaries.append(
            Summary(
                method=method,
                num_cells=len(own),
                num_held_out=sum(len(cell.errors) for cell in own),
                median_error=float(np.median([cell.error for cell in own])),
                worst_error=float(np.max(np.abs([error for cell in own for error in cell.errors]))),
                coverage=float(np.mean(inside)) if inside else None,
                least_coverage=min(by_table.values(), default=None),
                median_width=float(np.median([w for cell in own for w in cell.widths])) if inside else None,
                over_additive=float(np.exp(np.log(ratios).mean())),
                better=float(np.mean(ratios < 1)),
            )
        )
    return summaries


def coverage_by_table(cells: list[Cell]) -> dict[str, float]:
    """Return the share of runs within the interval, for each table with enough held-out runs."""
    inside: dict[str, list[bool]] = defaultdict(list)
    for cell in cells:
        inside[cell.table] += cell.inside
    return {name: float(np.mean(hits)) for name, hits in inside.items() if len(hits) >= FEWEST_FOR_COVERAGE}


def report(cells: list[Cell], summaries: list[Summary]) -> None:
    """Print the cells of the default fit beside additive's, and the summaries."""
    console = Console(width=150)
    others = {(cell.table, cell.factor, cell.method): cell for cell in cells}
    table = Table("table", "f", "fitted", "held out", "default", "additive", "worst", "coverage", "width", "seconds")
    for cell in cells:
        if cell.method != "default":
            continue
        additive = others[cell.table, cell.factor, "additive"].error
        counts = (cell.table, f"{cell.factor}", f"{cell.num_fitted}", f"{len(cell.errors)}")
        errors = (f"{cell.error:.2%}", f"{additive:.2%}", f"{np.max(np.abs(cell.errors)):.2%}")
        table.add_row(
            *counts, *errors, f"{np.mean(cell.inside):.0%}", f"{np.median(cell.widths):.1%}", f"{cell.seconds:.2f}"
        )
    console.print(table)
    names = ("method", "cells", "runs", "median error", "worst", "coverage", "least of a table", "median width",
             "error / additive's", "better in")  # fmt: skip
    table = Table(*names)
    for row in summaries:
        known = [_percent(value) for value in (row.coverage, row.least_coverage, row.median_width)]
        counts = (row.method, f"{row.num_cells}", f"{row.num_held_out}")
        errors = (f"{row.median_error:.2%}", f"{row.worst_error:.1%}")
        table.add_row(*counts, *errors, *known, f"{row.over_additive:.3f}", f"{row.better:.0%}")
    console.print(table)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


# ---- synthetic laws --------------------------------------------------------------------------------------------------

SYNTHETIC = {
    "k = 1": Surface(
        irreducible_loss=1.8172, params_coefficient=482.01, tokens_coefficient=2085.43, alpha=0.3478, beta=0.3658
    ),
    "k = 0.47": Surface(
        irreducible_loss=1.95,
        params_coefficient=6e7,
        tokens_coefficient=4e7,
        alpha=0.93,
        beta=0.77,
        outer_exponent=0.47,
    ),
}
"""The law of Besiroglu et al. 2024, and one like the free fit of the one-epoch runs of Muennighoff et al. 2023."""
NOISE = 0.003
GRID_PARAMS = np.geomspace(2e7, 1e10, 20)
GRID_TOKENS = np.geomspace(4e8, 2e11, 20)
FITTED_SHARE = 0.1
NUM_DEAREST = 7
NUM_SEEDS = 20


def synthetic_errors(surface: Surface, *, seeds: int = NUM_SEEDS) -> Array:
    """Return the worst absolute error at the seven dearest points, against the law itself, [seed]."""
    num_params, num_tokens = (axis.ravel() for axis in np.meshgrid(GRID_PARAMS, GRID_TOKENS))
    exact = run_table(num_params=num_params, num_tokens=num_tokens, loss=np.ones(len(num_params)))
    truth = losses(surface, exact)
    order = np.argsort(exact.flops, kind="stable")
    cheap = order[np.cumsum(exact.flops[order]) <= FITTED_SHARE * exact.flops.sum()]
    dear = order[-NUM_DEAREST:]
    worst = []
    for seed in range(seeds):
        noise = np.random.default_rng(seed).normal(0, NOISE, len(truth))
        runs = run_table(num_params=num_params, num_tokens=num_tokens, loss=truth * np.exp(noise))
        loss, _, _ = by_default(runs.select(cheap), runs.select(dear))
        worst.append(float(np.max(np.abs(np.log(loss / truth[dear])))))
    return np.array(worst)


def report_synthetic() -> None:
    """Print the synthetic laws, their constants and the errors."""
    table = Table("law", "constants", "median of the worst", "largest of the worst")
    for name, surface in SYNTHETIC.items():
        errors = synthetic_errors(surface)
        table.add_row(name, f"{asdict(surface)}", f"{np.median(errors):.2%}", f"{errors.max():.2%}")
    Console(width=150).print(table)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder with the tables")
    parser.add_argument("--peer", type=Path, help="folder with the PyPI package `chinchilla`")
    parser.add_argument("--synthetic", action="store_true", help="only the synthetic laws")
    parser.add_argument("--json", type=Path, help="file that receives the summaries and the cells")
    arguments = parser.parse_args()
    if not arguments.synthetic:
        if arguments.folder is None or not (tables := read_tables(arguments.folder)):
            parser.error("give a folder with one of the tables, or --synthetic")
        cells = all_cells(tables, peer=arguments.peer)
        summaries = summarise(cells)
        report(cells, summaries)
        if arguments.json:
            data = {"summaries": [asdict(row) for row in summaries], "cells": [asdict(cell) for cell in cells]}
            arguments.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    report_synthetic()


if __name__ == "__main__":
    main()
