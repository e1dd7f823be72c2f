"""Which law splits the budget, and which one predicts the loss."""

from dataclasses import dataclass

from chinchilla_ds.budget.laws.forms import MAX_EXTRAPOLATION, Law, SurfaceLaw
from chinchilla_ds.budget.laws.lookup import DEFAULT_LAW, get_law
from chinchilla_ds.budget.laws.registry import MUENNIGHOFF
from chinchilla_ds.budget.laws.repetition import repeated_loss

SMALL_BUDGET_LAW = "porian2024"
"""Splits budgets too far below the default law's range: fitted from 1.25e16 FLOPs up, the lowest range of all."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Predicts the loss for N, counted by its law's convention, and D in tokens."""

    law: SurfaceLaw
    unique_tokens: float | None = None
    """Distinct tokens, if there are fewer than D: the law is then Muennighoff et al.'s."""

    def __call__(self, size: float, num_tokens: float, /) -> float:
        """Return nats per token of the law's own tokenizer."""
        if self.unique_tokens is not None:
            return repeated_loss(num_params=size, num_tokens=num_tokens, unique_tokens=self.unique_tokens)
        return self.law.loss(num_params=size, num_tokens=num_tokens)


@dataclass(frozen=True, kw_only=True)
class Laws:
    """The law that gives N and D, and the one that predicts the loss: the same, unless the first has no loss."""

    law: Law
    losses: Losses

    @property
    def is_one(self) -> bool:
        """Whether the law that splits the budget minimises the loss that is predicted."""
        return self.law is self.losses.law


def choose_laws(name: str | None, /, *, nominal_budget_flops: float) -> Laws:
    """Return the named law, or the default for the budget.

    Raises:
        ConfigError: no such law.
    """
    law = get_law(name or DEFAULT_LAW)
    too_small = nominal_budget_flops < law.min_flops / MAX_EXTRAPOLATION
    if name is None and too_small:
        law = get_law(SMALL_BUDGET_LAW)
    if isinstance(law, SurfaceLaw):
        return Laws(law=law, losses=Losses(law=law))
    default = get_law(DEFAULT_LAW)
    assert isinstance(default, SurfaceLaw)
    return Laws(law=law, losses=Losses(law=default))


def repetition_laws(*, unique_tokens: float) -> Laws:
    """Return the one law that models the value of repeated text."""
    return Laws(law=MUENNIGHOFF, losses=Losses(law=MUENNIGHOFF, unique_tokens=unique_tokens))
