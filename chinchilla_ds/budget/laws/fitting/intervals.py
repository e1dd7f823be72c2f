"""Intervals from bootstrap draws: percentiles, plain and bias-corrected."""

from statistics import NormalDist

import numpy as np

from chinchilla_ds.budget.laws.fitting.runs import Floats

FEWEST_RUNS_FOR_PERCENTILES = 200
"""With fewer runs the bias-corrected interval is used.

Share of 500 synthetic sweeps whose 80 % interval holds the truth, lowest and highest over E, A, B, alpha, beta and the
optimum's N and loss at 1e21 and 5.76e23 FLOPs. Known surface, Huber with delta 1e-3, 400 draws, 0.5 % normal noise on
the log loss; N from 1/8 to 8 times the best (36 runs: 1/6 to 6) at each of several budgets, and for 240 runs at the N
and D of Besiroglu et al. 2024:

    runs    percentile    bias-corrected    basic
      36    .85 to .89    .76 to .83        .73 to .78
      90    .83 to .87    .75 to .82        .71 to .77
     140    .81 to .86    .76 to .82        .71 to .79
     240    .81 to .83    .75 to .80        .72 to .77

Plain percentiles are too wide for few runs, because delta is far below the noise and the objective then all but passes
through single runs. From 200 runs on they are right, and published intervals are percentiles.
"""


def percentile_interval(values: Floats, /, *, level: float) -> tuple[float, float]:
    """Return the percentiles that enclose the middle `level` of the draws.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def bias_corrected_interval(values: Floats, /, *, estimate: float, level: float) -> tuple[float, float]:
    """Return the percentiles, shifted by the distance of the estimate from the median of its draws.

    With z0 the normal quantile of the share of draws below the estimate, the tails are cut at Phi(2 z0 -+ z). Does not
    depend on the scale: the interval of log N is the log of that of N. Leaves out the acceleration of BCa.

    Args:
        values: the draws, [draw].
        estimate: the value of the full fit.
        level: probability of the interval, such as 0.8.

    Source: Efron 1981, Nonparametric standard errors and confidence intervals, Canadian Journal of Statistics 9, 139.
    """
    normal = NormalDist()
    below = (np.sum(values < estimate) + 0.5 * np.sum(values == estimate)) / len(values)
    shift = 2 * normal.inv_cdf(float(np.clip(below, 0.5 / len(values), 1 - 0.5 / len(values))))
    width = normal.inv_cdf((1 + level) / 2)
    low, high = np.quantile(values, [normal.cdf(shift - width), normal.cdf(shift + width)])
    return float(low), float(high)
