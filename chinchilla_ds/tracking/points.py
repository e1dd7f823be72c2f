"""Metrics by name instead of by moment, in little memory: a long run has millions of values."""

import math
import sys
from array import array
from collections.abc import Iterable, Iterator

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.tracking.tracker import MetricRecord

Point = tuple[int, float, int]
"""Step, value, milliseconds since the epoch."""
ValuesByStep = dict[int, set[float | None]]
"""Values in the form of `same_value`; several if a run went back within one process."""


class Columns:
    """The points of every metric, in the order in which they were added."""

    def __init__(self) -> None:
        self._columns: dict[str, tuple[array[int], array[float], array[int]]] = {}

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the metrics."""
        return iter(self._columns)

    def points(self, key: str) -> Iterator[Point]:
        """Yield the points of one metric; none if there is no such metric."""
        return zip(*self._columns.get(key, ((), (), ())), strict=True)

    def values_by_step(self, key: str) -> ValuesByStep:
        """Return the values of one metric at each step."""
        values: ValuesByStep = {}
        for step, value, _ in self.points(key):
            values.setdefault(step, set()).add(same_value(value))
        return values

    def add(self, key: str, points: Iterable[Point]) -> None:
        """Add points of one metric."""
        for step, value, time_ms in points:
            steps, values, times_ms = self._columns.setdefault(key, (array("q"), array("d"), array("q")))
            steps.append(step)
            values.append(value)
            times_ms.append(time_ms)


def gather(records: Iterable[MetricRecord], /) -> Columns:
    """Return the points of these moments."""
    columns = Columns()
    for record in records:
        for key, value in record.metrics.items():
            columns.add(key, [(record.step, value, round(record.time_s * 1000))])
    return columns


def check_same_run(columns: Columns, *, plan: RunPlan) -> None:
    """Check that metrics belong to a plan: every step has its prediction, and the tokens of a step are known.

    From the first step with a band on, the prediction is the run's own and says nothing about the plan.

    Raises:
        TrackingError: they belong to another run.
    """
    own = min((step for step, _, _ in columns.points("predicted_loss_low")), default=math.inf)
    for key in ("tokens", "predicted_loss"):
        for step, value, _ in columns.points(key):
            if key == "predicted_loss" and step >= own:
                continue
            planned = plan.consumed_tokens(iteration=step) if key == "tokens" else plan.predicted_loss
            if value != planned:
                raise TrackingError(
                    f"metrics.jsonl belongs to another run: at step {step} `{key}` is {value:g}, and by plan.json "
                    f"it is {planned:g}"
                )


def same_value(value: float, /) -> float | None:
    """Return a comparable value: MLflow stores infinities as the largest floats, and NaN does not equal itself."""
    if math.isnan(value):
        return None
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value
