"""The model card's rows of training."""

import dataclasses

import pytest

from chinchilla_ds.exporting.card import TrainingFacts, model_card
from chinchilla_ds.run_plan import Precision
from tests.unit.training.states import make_plan


@pytest.mark.parametrize(
    ("budget", "row"),
    [
        (1e18, "| Predicted loss | 7.1250 nats/token by hoffmann2022 (its own tokenizer) |"),
        (
            4.1e12,
            "| Predicted loss | none: the budget lies 1,463,415 times below the 6e+18 to 3e+21 FLOPs that hoffmann2022 "
            "was fitted on |",
        ),
    ],
    ids=["within reach of the law", "far below it"],
)
def test_a_loss_is_printed_only_where_the_law_predicts_one(budget: float, row: str) -> None:
    plan = dataclasses.replace(make_plan(), compute_budget_flops=budget)
    facts = TrainingFacts(consumed_tokens=plan.num_tokens, flops_spent=plan.true_flops)
    card = model_card(plan, facts=facts, num_params=plan.num_params, dtype=Precision.BF16)
    assert row in card.splitlines()
    assert card.count("7.125") == (budget == 1e18)
