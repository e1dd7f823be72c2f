"""Runs for tests: synthetic schedules, the full sum of the laws, and the public curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from chinchilla_ds.budget.laws.curves.curve import LossCurve, loss_curve
from chinchilla_ds.budget.laws.curves.equations import MULTI_POWER, CurveForm, predict
from chinchilla_ds.budget.laws.fitting.runs import Floats, Integers
from tests.shared_data import shared_data

PEAK, FLOOR, WARMUP = 3e-4, 3e-5, 200
TRUTH = {"L0": 2.6, "A": 0.6, "alpha": 0.46, "B": 500.0, "C": 1.0, "beta": 0.5, "gamma": 0.6}
MOMENTUM_TRUTH = {"L0": 2.6, "A": 0.6, "alpha": 0.46, "B": 1.2, "decay": 3e-3}

PUBLIC_WARMUP = 2160
TRAIN = ("cosine_24000", "constant_24000", "wsdcon_9")
"""The split of Luo et al. 2025 (arXiv:2503.12811): these are fitted, and the other six predicted."""
AUTHORS = {
    "25M": (3.0405, 0.52469, 0.50787, 363.79, 2.0656, 0.58279, 0.64142),
    "100M": (2.6514, 0.60115, 0.45296, 437.95, 2.1325, 0.59785, 0.65524),
}
"""Their constants, in the order of MULTI_POWER.constants."""
AUTHORS_ERRORS = {"25M": (0.00110, 0.00409), "100M": (0.00142, 0.00583)}
"""Their errors on the six, relative: the mean over rows, and the mean of the curves' maxima."""


def schedule(kind: str, *, total: int) -> Floats:
    """Return the learning rate of steps 0 to total - 1."""
    step = np.arange(total)
    done = np.clip((step - 0.8 * total) / (0.2 * total), 0, 1)
    rates = {
        "cosine": FLOOR + (PEAK - FLOOR) / 2 * (1 + np.cos(np.pi * (step - WARMUP) / (total - WARMUP))),
        "constant": np.full(total, PEAK),
        "linear": PEAK + (FLOOR - PEAK) * done,
        "exponential": PEAK * (FLOOR / PEAK) ** done,
        "jump": np.where(step < total // 2, PEAK, 0.3 * PEAK),
    }[kind]
    rates[:WARMUP] = np.linspace(0, PEAK, WARMUP)
    return rates


def logged(total: int, *, every: int = 50) -> Integers:
    """Return the steps of a log, after the warm-up."""
    return np.arange(WARMUP, total, every)


def full_sum(rates: Floats, step: Integers, constants: Mapping[str, float]) -> Floats:
    """Return the losses by the law as it is written, a sum over every step."""
    summed, k = np.cumsum(rates), np.arange(1, len(rates))
    drop = rates[k - 1] - rates[k]
    losses = []
    for t in step:
        past = k <= t
        since = summed[t] - summed[k[past] - 1]
        if "gamma" in constants:
            x = constants["C"] * rates[k[past]] ** -constants["gamma"] * since
            gains = drop[past] * (1 - (1 + x) ** -constants["beta"])
        else:
            factor = np.exp(-constants["decay"])
            gains = drop[past] * (1 - factor ** (t - k[past] + 1)) / (1 - factor)
        power = constants["A"] * summed[t] ** -constants["alpha"]
        losses.append(constants["L0"] + power - constants["B"] * gains.sum())
    return np.array(losses)


def synthetic(
    kind: str,
    *,
    total: int = 4000,
    constants: Mapping[str, float] = TRUTH,
    form: CurveForm = MULTI_POWER,
    noise: float = 0.0,
    seed: int = 0,
    every: int = 50,
) -> LossCurve:
    """Return a run whose losses follow a law, with relative noise."""
    rates, step = schedule(kind, total=total), logged(total, every=every)
    curve = loss_curve(step=step, rate=rates[step], loss=np.ones(len(step)), warmup_steps=WARMUP)
    loss = predict(form, np.log([constants[name] for name in form.constants]), curve)
    loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(len(step)))
    return loss_curve(step=step, rate=rates[step], loss=loss, warmup_steps=WARMUP)


def write_run(path: Path, kind: str, curve: LossCurve, *, total: int = 4000, losses: bool = True) -> Path:
    """Write a run's points as CSV, with the rates of its schedule."""
    rates = schedule(kind, total=total)[curve.step].tolist()
    rows = zip(curve.step.tolist(), rates, curve.loss.tolist(), strict=True)
    lines = [",".join(map(str, row if losses else row[:2])) for row in rows]
    path.write_text("\n".join(["step,lr,loss" if losses else "step,lr", *lines]) + "\n", encoding="utf-8")
    return path


def public_curves(size: str) -> dict[str, LossCurve]:
    """Return the public runs of a size, `25M` or `100M`, by schedule; skips the test where they are missing."""
    folder = shared_data("data/curves")
    curves = {}
    for path in sorted(folder.glob(f"{size}_*.csv")):
        step, rate, loss = np.loadtxt(path, delimiter=",", skiprows=1).T
        curves[path.stem.removeprefix(f"{size}_")] = loss_curve(
            step=step.astype(np.int64), rate=rate, loss=loss, warmup_steps=PUBLIC_WARMUP
        )
    return curves
