"""Seconds per fit of the loss surface and per 1000 bootstrap draws, beside the paper's own way of fitting.

    python benchmarks/fit.py [--points FILE] [--rounds 20] [--grid-starts 90] [--peer FOLDER] [--json FILE]

Ours: variable projection, then Newton's method on exact derivatives. Beside it, in the same process and in turns, the
search of Hoffmann et al. 2022 (arXiv:2203.15556): scipy's L-BFGS-B at its default tolerances from each start of a grid
of 4500, here with analytic gradients. The grid takes minutes, so that a random part of it is run and the time of the
whole extrapolated; --grid-starts 4500 runs it all.

With --peer, a folder into which `pip install --target FOLDER chinchilla` has put the package of that name: its fit with
the settings of its README, all cores, minutes.

The points are a CSV with the columns N, D, loss (and excluded_by_epoch); without them a synthetic sweep of 240 runs.
Import time is not counted. Seconds are CPU seconds of this process on one thread, the median over rounds.
"""

import argparse
import csv
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy reads them

import numpy as np
import scipy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from chinchilla_ds.budget.laws.fitting.bootstrap import bootstrap_surface
from chinchilla_ds.budget.laws.fitting.runs import RunTable, run_table
from chinchilla_ds.budget.laws.fitting.surface import FitLoss, Surface, fit_surface

POINTS = Path(os.environ.get("CHINCHILLA_DATA", "")) / "data/scaling/epoch_chinchilla_245.csv"
NUM_DRAWS = 1000
DELTA = 1e-3
BUDGET_FLOPS = 5.76e23
SAME_OPTIMUM = 1e-6
"""A start has reached the optimum where its objective is within this share of ours."""

PEER_CODE = """
import json, sys, time
import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber
folder, rows = sys.argv[1], json.load(sys.stdin)
grid = dict(E=np.linspace(1, 2, 5), a=np.linspace(1, 10, 5), b=np.linspace(1, 10, 5),
            alpha=np.linspace(0.1, 0.7, 5), beta=np.linspace(0.1, 0.7, 5))
law = Chinchilla(folder, param_grid=grid, loss_fn=log_huber, log_level=50)
for n, d, loss in rows:
    law.append(N=n, D=d, loss=loss)
start = time.perf_counter()
law.fit()
print(json.dumps([time.perf_counter() - start, *map(float, (law.E, law.A, law.B, law.alpha, law.beta))]))
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the report."""

    what: str
    seconds: float
    objective: float | None
    """Sum of Huber losses with delta 1e-3."""
    optimal_num_params: float
    """N of the optimum at 5.76e23 FLOPs."""
    note: str = ""


def read_points(path: Path | None) -> RunTable:
    """Return the points of the file, or a synthetic sweep of 240 runs where there is none."""
    if path is None:
        truth = Surface(irreducible_loss=1.8, params_coefficient=480, tokens_coefficient=2085, alpha=0.348, beta=0.366)
        flops = np.repeat(np.geomspace(6e18, 3e21, 10), 24)
        num_params = np.sqrt(flops / 120) * np.tile(np.geomspace(1 / 8, 8, 24), 10)
        sizes = zip(num_params, flops / 6 / num_params, strict=True)
        exact = np.array([truth.loss(num_params=n, num_tokens=d) for n, d in sizes])
        loss = exact * np.exp(0.005 * np.random.default_rng(0).standard_normal(240))
        return run_table(num_params=num_params, num_tokens=flops / 6 / num_params, loss=loss)
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("excluded_by_epoch", "0") == "0"]
    columns = {name: [float(row[name]) for row in rows] for name in ("N", "D", "loss")}
    return run_table(num_params=columns["N"], num_tokens=columns["D"], loss=columns["loss"])


def huber_objective(runs: RunTable) -> Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]]:
    """Return the paper's objective and its gradient in (a, b, e, alpha, beta)."""
    log_n, log_d, log_loss = np.log(runs.num_params), np.log(runs.num_tokens), np.log(runs.loss)

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])
        top = terms.max(axis=0)
        predicted = top + np.log(np.exp(terms - top).sum(axis=0))
        residual = predicted - log_loss
        inner = np.clip(residual, -DELTA, DELTA)
        shares = np.exp(terms - predicted) * inner
        slopes = shares.sum(axis=1)
        gradient = np.array([*slopes, -shares[0] @ log_n, -shares[1] @ log_d])
        return float(np.sum(np.abs(inner) * (np.abs(residual) - 0.5 * np.abs(inner)))), gradient

    return objective


def paper_grid() -> NDArray[np.float64]:
    """Return the 4500 starts of Hoffmann et al. 2022, section D.3, as (a, b, e, alpha, beta)."""
    steps = (
        np.arange(0, 26, 5),
        np.arange(0, 26, 5),
        np.arange(-1, 1.1, 0.5),
        np.arange(0, 2.1, 0.5),
        np.arange(0, 2.1, 0.5),
    )
    return np.array(list(itertools.product(*steps)), dtype=np.float64)


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of this process that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(runs: RunTable, *, rounds: int, grid_starts: int) -> list[Row]:
    """Time our fits, our bootstrap and the paper's search in turns."""
    objective = huber_objective(runs)
    grid = paper_grid()
    chosen = grid[np.random.default_rng(0).permutation(len(grid))[:grid_starts]]
    fits = {kind: fit_surface(runs, objective=kind) for kind in FitLoss}  # also the warm-up
    seconds: dict[str, list[float]] = {kind: [] for kind in (*FitLoss, "bootstrap", "grid")}
    results = []
    for part in np.array_split(chosen, rounds):
        for kind in FitLoss:
            seconds[kind].append(cpu_seconds(lambda kind=kind: fit_surface(runs, objective=kind)))
        seconds["grid"].append(
            cpu_seconds(
                lambda part=part: results.extend(minimize(objective, x, jac=True, method="L-BFGS-B") for x in part)
            )
        )
    draws = lambda: bootstrap_surface(runs, fit=fits[FitLoss.HUBER], num_draws=NUM_DRAWS, seed=42)  # noqa: E731
    seconds["bootstrap"] = [cpu_seconds(draws) for _ in range(3)]
    return [*_our_rows(runs, fits, seconds), _grid_row(results, seconds["grid"], num_starts=len(grid), fits=fits)]


def _our_rows(runs: RunTable, fits: dict, seconds: dict[str, list[float]]) -> list[Row]:
    rows = []
    objective = huber_objective(runs)
    for kind, fit in fits.items():
        value, _ = objective(_theta(fit.surface))
        best = fit.surface.optimal(compute_budget_flops=BUDGET_FLOPS).num_params
        note = f"gradient {fit.gradient_norm:.0e}"
        rows.append(
            Row(
                what=f"ours, {kind}",
                seconds=statistics.median(seconds[kind]),
                objective=value,
                optimal_num_params=best,
                note=note,
            )
        )
    best = rows[0].optimal_num_params
    took = statistics.median(seconds["bootstrap"])
    rows.append(Row(what=f"ours, {NUM_DRAWS} bootstrap draws", seconds=took, objective=None, optimal_num_params=best))
    return rows


def _theta(surface: Surface) -> NDArray[np.float64]:
    scales = (surface.params_coefficient, surface.tokens_coefficient, surface.irreducible_loss)
    return np.array([*np.log(scales), surface.alpha, surface.beta])


def _grid_row(results: list, seconds: list[float], *, num_starts: int, fits: dict) -> Row:
    best = min(results, key=lambda result: result.fun)
    target = fits[FitLoss.HUBER].objective_value
    reached = sum(result.fun <= target * (1 + SAME_OPTIMUM) for result in results)
    took = sum(seconds) * num_starts / len(results)
    a, b, e, alpha, beta = best.x
    surface = Surface(
        irreducible_loss=np.exp(e), params_coefficient=np.exp(a), tokens_coefficient=np.exp(b), alpha=alpha, beta=beta
    )
    extrapolated = "" if len(results) == num_starts else f", {len(results)} run and the time extrapolated"
    return Row(
        what=f"scipy L-BFGS-B, {num_starts} starts",
        seconds=took,
        objective=best.fun,
        optimal_num_params=surface.optimal(compute_budget_flops=BUDGET_FLOPS).num_params,
        note=f"{reached} of {len(results)} starts reach our optimum{extrapolated}",
    )


def measure_peer(runs: RunTable, folder: Path) -> Row:
    """Time the PyPI package `chinchilla` in a process of its own, on all cores; wall-clock seconds."""
    rows = np.stack([runs.num_params, runs.num_tokens, runs.loss], axis=1).tolist()
    with tempfile.TemporaryDirectory() as project:
        done = subprocess.run(
            [sys.executable, "-c", PEER_CODE, project],
            input=json.dumps(rows),
            env={**os.environ, "PYTHONPATH": str(folder), "MPLBACKEND": "Agg"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    took, e, a, b, alpha, beta = json.loads(done.stdout.splitlines()[-1])
    surface = Surface(irreducible_loss=e, params_coefficient=a, tokens_coefficient=b, alpha=alpha, beta=beta)
    value, _ = huber_objective(runs)(_theta(surface))
    best = surface.optimal(compute_budget_flops=BUDGET_FLOPS).num_params
    note = f"wall-clock on {os.cpu_count()} cores; its own objective is Huber with delta 1"
    return Row(what="PyPI chinchilla", seconds=took, objective=value, optimal_num_params=best, note=note)


def report(rows: list[Row], setting: str) -> None:
    """Print the table."""
    table = Table("what", "seconds", "sum Huber(1e-3)", f"N*({BUDGET_FLOPS:g})", "note", caption=setting)
    for row in rows:
        value = "" if row.objective is None else f"{row.objective:.10f}"
        table.add_row(row.what, f"{row.seconds:.4g}", value, f"{row.optimal_num_params / 1e9:.1f}B", row.note)
    Console(width=150).print(table)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, default=POINTS if POINTS.exists() else None, help="CSV with N, D, loss")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--grid-starts", type=int, default=90, help="how many of the 4500 starts are run")
    parser.add_argument("--peer", type=Path, help="folder with the PyPI package `chinchilla`")
    parser.add_argument("--json", type=Path, help="file that receives the setting and the rows")
    arguments = parser.parse_args()
    runs = read_points(arguments.points)
    rows = measure(runs, rounds=arguments.rounds, grid_starts=arguments.grid_starts)
    if arguments.peer:
        rows.append(measure_peer(runs, arguments.peer))
    source = arguments.points.name if arguments.points else "a synthetic sweep"
    versions = f"numpy {np.__version__}, scipy {scipy.__version__}, {platform.platform()}"
    setting = f"{len(runs)} runs of {source}; one thread; {versions}"
    report(rows, setting)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"setting": setting, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
