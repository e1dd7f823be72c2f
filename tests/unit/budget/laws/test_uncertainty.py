"""Intervals of a law with draws: one function, checked against numpy on the formula written out."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.budget.laws.forms import ParamsConvention, SurfaceLaw
from chinchilla_ds.budget.laws.lookup import load_law
from chinchilla_ds.budget.laws.uncertainty import ERROR_PER_DECADE, Uncertainty, percentile
from chinchilla_ds.errors import ConfigError

RNG = np.random.default_rng(0)
MEAN = np.array([math.log(6e7), math.log(4e7), math.log(1.9), 0.93, 0.77, math.log(0.47)])
DRAWS = MEAN + RNG.standard_normal((300, 6)) @ np.diag([0.3, 0.3, 0.05, 0.02, 0.02, 0.05])
DEAREST = 6e20
LAW = SurfaceLaw(
    name="ours",
    irreducible_loss=1.9,
    params_coefficient=6e7,
    tokens_coefficient=4e7,
    alpha=0.93,
    beta=0.77,
    outer_exponent=0.47,
    uncertainty=Uncertainty(draws=tuple(map(tuple, DRAWS.tolist())), scatter=0.004, dearest_flops=DEAREST),
    params_convention=ParamsConvention.TOTAL,
    min_flops=1e18,
    max_flops=DEAREST,
    source="a sweep",
)


def losses(num_params: float, num_tokens: float) -> np.ndarray:
    """The formula of every draw, written out."""
    log_a, log_b, log_e, alpha, beta, log_k = DRAWS.T
    inside = np.exp(log_a) / num_params**alpha + np.exp(log_b) / num_tokens**beta
    return np.exp(log_e) + inside ** np.exp(log_k)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("times", [0.01, 1.0, 100.0])
def test_three_parts_in_quadrature(level: float, times: float) -> None:
    num_params = 2e9
    num_tokens = times * DEAREST / 6 / num_params
    low, high = LAW.loss_interval(num_params=num_params, num_tokens=num_tokens, level=level)
    loss = LAW.loss(num_params=num_params, num_tokens=num_tokens)
    bottom, top = np.quantile(np.log(losses(num_params, num_tokens)), [(1 - level) / 2, (1 + level) / 2])
    # a Laplace distribution of mean size b lies within b log(1 / (1 - level)) with probability `level`
    scatter = 0.004 * math.log(1 / (1 - level))
    form = 0.0125 * max(0, math.log10(times)) * math.log(1 / (1 - level)) / math.log(5)
    below = math.sqrt(max(0, math.log(loss) - bottom) ** 2 + scatter**2 + form**2)
    above = math.sqrt(max(0, top - math.log(loss)) ** 2 + scatter**2 + form**2)
    assert (math.log(loss / low), math.log(high / loss)) == pytest.approx((below, above), rel=1e-9)


def test_within_the_runs_only_draws_and_scatter_count() -> None:
    alone = dataclasses.replace(LAW.uncertainty, scatter=0.0)
    exact = dataclasses.replace(LAW, uncertainty=alone).loss_interval(num_params=1e9, num_tokens=1e10)
    assert exact == pytest.approx(tuple(np.quantile(losses(1e9, 1e10), [0.1, 0.9])), rel=1e-3)
    assert ERROR_PER_DECADE == 0.0125


def test_the_optimum_s_percentiles_are_those_of_the_draws() -> None:
    log_a, log_b, _, alpha, beta, _ = DRAWS.T
    scale = (alpha * np.exp(log_a) / beta / np.exp(log_b)) ** (1 / (alpha + beta))
    best = scale * (3e21 / 6) ** (beta / (alpha + beta))
    interval = LAW.optimal_interval(compute_budget_flops=3e21, level=0.9)
    assert interval.num_params == pytest.approx(np.quantile(best, [0.05, 0.95]), rel=1e-3)
    assert interval.num_tokens == pytest.approx(np.quantile(3e21 / 6 / best, [0.05, 0.95]), rel=1e-3)
    assert interval.tokens_per_param == pytest.approx(np.quantile(3e21 / 6 / best**2, [0.05, 0.95]), rel=2e-3)


def test_percentiles_are_numpy_s() -> None:
    values = sorted(RNG.standard_normal(37).tolist())
    for share in (0.0, 0.1, 0.5, 0.93, 1.0):
        assert percentile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-12)


def law_file(folder: Path, **changes: object) -> Path:
    path = folder / "ours.json"
    content = {
        "format": "chinchilla-ds law", "format_version": 1, "name": "ours", "E": 1.9, "A": 6e7, "B": 4e7,
        "alpha": 0.93, "beta": 0.77, "k": 0.47, "params_convention": "total", "min_flops": 1e18, "max_flops": DEAREST,
        "source": "a sweep", "scatter": 0.004, "dearest_flops": DEAREST, "draws": DRAWS.tolist(),
    }  # fmt: skip
    merged = {name: value for name, value in (content | changes).items() if value != "absent"}
    path.write_text(json.dumps(merged), encoding="utf-8")
    return path


def test_a_law_file_with_draws_has_the_intervals_of_the_fit(tmp_path: Path) -> None:
    law = load_law(law_file(tmp_path))
    at = {"num_params": 7e10, "num_tokens": 1.4e12}
    assert law.loss_interval(**at) == pytest.approx(LAW.loss_interval(**at))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scatter": "absent"}, "draws, scatter and dearest_flops belong together"),
        ({"draws": DRAWS[:19].tolist()}, "draws has 19 rows; it must have at least 20"),
        ({"draws": [[1, 2, 3, 0, 1, 0]] * 20}, r"draws\[0\]\[3\] is 0; it must be"),
        ({"draws": [[1, 2, 3, 1, 1]] * 20}, r"draws\[0\] is \[1, 2, 3, 1, 1\]; it must have 6 entries"),
        ({"draws": [[1e9, 2, 3, 1, 1, 0]] * 20}, r"draws\[0\]\[0\] is 1000000000.0"),
        ({"scatter": -1}, "scatter is -1"),
        ({"tested": {"factor": 4}}, "tested.num_fitted is missing"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_law(law_file(tmp_path, **changes))


EARLIER = {"draws": "absent", "scatter": "absent", "dearest_flops": "absent"}


def test_an_earlier_file_whose_k_was_taken_as_known_has_no_interval(tmp_path: Path) -> None:
    """Its covariance lacks k's row, with which other errors cancel: intervals came out up to 5.5 times too wide."""
    covariance = [[0.01 * (row == column) for column in range(5)] for row in range(5)]
    law = load_law(law_file(tmp_path, **EARLIER, covariance=covariance))
    assert law.loss_interval(num_params=1e9, num_tokens=1e10) is None
    assert "fit again" in law.remark
    with_k = load_law(law_file(tmp_path, **EARLIER, covariance=covariance, k=1, A=400, B=400, alpha=0.3, beta=0.3))
    assert with_k.loss_interval(num_params=1e9, num_tokens=1e10) is not None
    assert with_k.remark == ""


def test_a_covariance_that_a_few_draws_near_0_made_explode_gives_no_interval(tmp_path: Path) -> None:
    """A standard deviation of 1 in log E is a factor of e, which no draw but those with E = 0 meant."""
    covariance = [[(1.0 if row == 2 else 1e-4) * (row == column) for column in range(5)] for row in range(5)]
    exploded = law_file(tmp_path, **EARLIER, covariance=covariance, k=1, A=400, B=400, alpha=0.3, beta=0.3)
    assert load_law(exploded).loss_interval(num_params=1e9, num_tokens=1e10) is None
