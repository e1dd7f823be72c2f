"""A table of finished training runs, the input of every fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
"""Double precision throughout: the objective's optimum is flat, and float32 stops early on it."""
Integers: TypeAlias = NDArray[np.int64]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class RunTable:
    """Finished training runs, one entry each; build it with `run_table`, which checks the numbers."""

    num_params: Floats
    """N, [run]."""
    num_tokens: Floats
    """D, tokens trained on, [run]; bytes if the unit is a byte."""
    loss: Floats
    """Final loss in nats per token or byte, [run]."""
    flops: Floats
    """C, training FLOPs, [run]; 6 N D if the unit is a byte, which is not compute."""
    labels: tuple[str, ...] = ()
    """Names of the runs; empty if they have none."""
    unit: LossUnit = LossUnit.TOKEN
    """Token or byte."""

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, rows: ArrayLike, /) -> "RunTable":
        """Return the runs that a boolean mask or an array of indices selects, in that order."""
        chosen = np.arange(len(self))[np.asarray(rows)]
        return RunTable(
            num_params=self.num_params[chosen],
            num_tokens=self.num_tokens[chosen],
            loss=self.loss[chosen],
            flops=self.flops[chosen],
            labels=tuple(self.labels[i] for i in chosen) if self.labels else (),
            unit=self.unit,
        )

    def name(self, row: int, /) -> str:
        """Return the run's label, or `run 3` (counted from 1)."""
        return self.labels[row] if self.labels else f"run {row + 1}"


def run_table(
    *,
    num_params: ArrayLike,
    num_tokens: ArrayLike,
    loss: ArrayLike,
    flops: ArrayLike | None = None,
    labels: Sequence[str] = (),
    unit: LossUnit = LossUnit.TOKEN,
) -> RunTable:
    """Return a checked table; `flops` defaults to 6 N D.

    Args:
        num_params: N, [run].
        num_tokens: D in tokens, [run].
        loss: final loss in nats per token, [run].
        flops: C, [run]; None for C = 6 N D.
        labels: names of the runs; empty for none.
        unit: what `loss` and `num_tokens` are counted in: token or byte.

    Raises:
        DataError: columns of different lengths, or a value that is not finite and positive; names every such run.

    Source: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, for C = 6 N D.
    """
    columns = {
        "num_params": np.atleast_1d(np.asarray(num_params, dtype=np.float64)),
        "num_tokens": np.atleast_1d(np.asarray(num_tokens, dtype=np.float64)),
        "loss": np.atleast_1d(np.asarray(loss, dtype=np.float64)),
    }
    if flops is None:
        if columns["num_params"].shape == columns["num_tokens"].shape:
            columns["flops"] = 6 * columns["num_params"] * columns["num_tokens"]
    else:
        columns["flops"] = np.atleast_1d(np.asarray(flops, dtype=np.float64))
    _check_lengths({name: len(column) for name, column in columns.items()}, num_labels=len(labels))
    table = RunTable(**columns, labels=tuple(labels), unit=unit)
    problems = [
        f"{table.name(row)}: {name} is {column[row]:g}; it must be finite and above zero"
        for name, column in columns.items()
        for row in np.flatnonzero(~(np.isfinite(column) & (column > 0))).tolist()
    ]
    if problems:
        raise DataError(problems)
    return table


def _check_lengths(lengths: dict[str, int], *, num_labels: int) -> None:
    if num_labels:
        lengths = {**lengths, "labels": num_labels}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"the columns of a run table must have one entry per run each; they have {counts}")
