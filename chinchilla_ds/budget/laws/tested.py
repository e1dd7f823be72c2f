"""How well a law predicted runs that were held out of its fit: a part of the law file, which `plan` repeats."""

from dataclasses import dataclass
from typing import Annotated

from chinchilla_ds.ranges import Ge, Gt, Le


@dataclass(frozen=True, kw_only=True)
class PredictionTest:
    """A law fitted to the cheap runs of a table, against the expensive ones."""

    factor: Annotated[float, Gt(1)]
    """Runs of at most the largest run's compute over this were fitted; the others were predicted."""
    num_fitted: Annotated[int, Ge(1)]
    num_held_out: Annotated[int, Ge(1)]
    median_error: Annotated[float, Ge(0)]
    """Median of abs(log(predicted / measured)) over the held-out runs."""
    worst_error: Annotated[float, Ge(0)]
    coverage: Annotated[float, Ge(0), Le(1)]
    """Share of the held-out runs within the interval."""
    level: Annotated[float, Gt(0), Le(1)]
    """Probability of the interval."""
    times: Annotated[float, Gt(0)]
    """Largest compute of a held-out run over the largest of a fitted one."""

    def __str__(self) -> str:
        count = round(self.coverage * self.num_held_out)
        return (
            f"fitted to the {self.num_fitted} cheapest of its runs, this law missed the other {self.num_held_out} by "
            f"{self.median_error:.1%} (median; worst {self.worst_error:.1%}), at up to {self.times:.3g}x the "
            f"compute of the most expensive fitted run; {count} of {self.num_held_out} lay within the "
            f"{self.level:.0%} interval"
        )
