"""The file of a fitted law: its constants, and what is known of their error."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from chinchilla_ds.budget.laws.forms import LARGEST_LOSS, ParamsConvention, SurfaceLaw
from chinchilla_ds.budget.laws.tested import PredictionTest
from chinchilla_ds.budget.laws.uncertainty import Draw, Uncertainty
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.ranges import Ge, Gt, Le, Len
from chinchilla_ds.structured import build, read_json

LAW_FORMAT = "chinchilla-ds law"
LAW_FORMAT_VERSION = 1
FEWEST_DRAWS = 20
"""With fewer, the 10th and 90th percentile are single draws."""
LARGEST_LOG_CONSTANT = 700.0
"""Largest logarithm of a constant: beyond it, the constant overflows."""
FIT_AGAIN = (
    "the law's file is of an earlier version, whose intervals of the loss took k as known and were up to five times "
    "too wide: they are not used; fit again"
)


def load_law(path: Path, /) -> SurfaceLaw:
    """Read a law that `chinchilla-ds fit` wrote.

    Raises:
        ConfigError: unreadable, not a law, or every meaningless value.
    """
    data = read_json(path, what="law file")
    if not isinstance(data, dict) or data.get("format") != LAW_FORMAT:
        raise ConfigError(f'law file {path}: not a fitted law: it must be a JSON object with "format": "{LAW_FORMAT}"')
    if (version := data.get("format_version")) != LAW_FORMAT_VERSION:
        raise ConfigError(f"law file {path}: format_version is {version!r}; this version reads {LAW_FORMAT_VERSION}")
    file: _LawFile = build(_LawFile, data, where=f"law file {path}: law")
    if file.unit != "token":
        raise ConfigError(
            f"law file {path}: it is per {file.unit}, and budgets count tokens: fit the runs with `fit.unit=byte` and "
            "`fit.bytes_per_token=B`, the bytes per token of the tokenizer to train with"
        )
    return file.law(file_name=path.name)


_Positive = Annotated[float, Gt(0)]
_Exponent = Annotated[float, Gt(0), Le(10)]
_Row = tuple[float, float, float, float, float]
_Log = Annotated[float, Ge(-LARGEST_LOG_CONSTANT), Le(LARGEST_LOG_CONSTANT)]
_DrawExponent = Annotated[float, Ge(1e-9), Le(1e3)]
_DrawRow = tuple[_Log, _Log, _Log, _DrawExponent, _DrawExponent, Annotated[float, Ge(-10), Le(10)]]


@dataclass(frozen=True, kw_only=True)
class _LawFile:
    """The content of a law file, under the names that papers use."""

    format: str
    format_version: int
    name: Annotated[str, Len(1, 200)]
    E: Annotated[float, Ge(0), Le(LARGEST_LOSS)]
    A: _Positive
    B: _Positive
    alpha: _Exponent
    beta: _Exponent
    k: Annotated[float, Gt(0), Le(100)]
    params_convention: ParamsConvention
    min_flops: _Positive
    max_flops: _Positive
    covariance: tuple[_Row, _Row, _Row, _Row, _Row] | None = None
    """Covariance of log A, log B, log E, alpha and beta; only without draws."""
    source: Annotated[str, Len(1)] | None = None
    unit: Literal["token", "byte"] = "token"
    """What losses and D are counted in."""
    scatter: Annotated[float, Ge(0), Le(LARGEST_LOSS)] | None = None
    dearest_flops: _Positive | None = None
    tested: PredictionTest | None = None
    draws: tuple[_DrawRow, ...] | None = None
    """log A, log B, log E, alpha, beta and log k of every draw."""

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: every broken rule.
        """
        problems = []
        if self.min_flops > self.max_flops:
            problems.append(f"min_flops ({self.min_flops:g} FLOPs) is above max_flops ({self.max_flops:g} FLOPs)")
        elif not all(map(self._is_believable_at, (self.min_flops, self.max_flops))):
            problems.append(
                f"its constants are invalid: at {self.min_flops:g} to {self.max_flops:g} FLOPs, where it was fitted, "
                f"the best model must have at least 1 parameter and 1 token and a loss of at most {LARGEST_LOSS:g} nats"
            )
        if rows := self.covariance:
            pairs = [(row, column) for row in range(5) for column in range(5)]
            if any(rows[i][i] < 0 or rows[i][j] != rows[j][i] for i, j in pairs):
                problems.append("covariance is not symmetric with a diagonal of at least 0")
        parts = (self.draws, self.scatter, self.dearest_flops)
        if any(part is None for part in parts) and any(part is not None for part in parts):
            problems.append("draws, scatter and dearest_flops belong together: give all three or none")
        if self.draws is not None and len(self.draws) < FEWEST_DRAWS:
            problems.append(f"draws has {len(self.draws)} rows; it must have at least {FEWEST_DRAWS}")
        if problems:
            raise ValueError("\n".join(problems))

    def _is_believable_at(self, compute_budget_flops: float) -> bool:
        try:
            best = self.law(file_name="").optimal(compute_budget_flops=compute_budget_flops)
        except ArithmeticError:
            return False
        return min(best.num_params, best.num_tokens) >= 1 and best.loss is not None and best.loss <= LARGEST_LOSS

    def law(self, *, file_name: str) -> SurfaceLaw:
        ignores_k = self.draws is None and self.covariance is not None and self.k != 1
        return SurfaceLaw(
            name=self.name,
            irreducible_loss=self.E,
            params_coefficient=self.A,
            tokens_coefficient=self.B,
            alpha=self.alpha,
            beta=self.beta,
            outer_exponent=self.k,
            covariance=None if ignores_k else self.covariance,
            uncertainty=self._uncertainty(),
            params_convention=self.params_convention,
            min_flops=self.min_flops,
            max_flops=self.max_flops,
            source=self.source or f"fitted, {file_name}",
            remark=FIT_AGAIN if ignores_k else "" if self.tested is None else str(self.tested),
        )

    def _uncertainty(self) -> Uncertainty | None:
        if self.draws is None or self.scatter is None or self.dearest_flops is None:
            return None
        draws: tuple[Draw, ...] = self.draws
        return Uncertainty(draws=draws, scatter=self.scatter, dearest_flops=self.dearest_flops)
