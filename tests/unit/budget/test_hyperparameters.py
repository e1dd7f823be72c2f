import pytest

from chinchilla_ds.budget.hyperparameters import (
    MAX_LEARNING_RATE,
    choose_learning_rate,
    choose_warmup_iters,
    step_law_batch_tokens,
    step_law_learning_rate,
)


def test_step_law_at_1b_parameters_and_100b_tokens() -> None:
    """exp of ln 1.79 - 0.713 ln 1e9 + 0.307 ln 1e11, and of ln 0.58 + 0.571 ln 1e11, worked by hand."""
    assert step_law_learning_rate(non_embedding_params=1e9, num_tokens=1e11) == pytest.approx(1.63e-3, rel=0.01)
    assert step_law_batch_tokens(num_tokens=1e11) == pytest.approx(1.106e6, rel=0.01)


def test_small_models_stay_inside_the_sweep() -> None:
    chosen = choose_learning_rate(non_embedding_params=300_000, num_tokens=3e6)
    assert chosen.value == MAX_LEARNING_RATE == 2**-7
    assert "largest of the sweep" in chosen.reason


def test_large_models_follow_the_law() -> None:
    chosen = choose_learning_rate(non_embedding_params=10**9, num_tokens=1e11)
    assert chosen.value == step_law_learning_rate(non_embedding_params=1e9, num_tokens=1e11)


@pytest.mark.parametrize(
    ("num_params", "train_iters", "expected"),
    [(10_000, 1000, 10), (10**6, 1000, 100), (10**9, 10**6, 2000), (1, 1000, 1), (10**6, 5, 1)],
    ids=["as many tokens as parameters", "a tenth of the run", "2000 steps", "at least one", "short run"],
)
def test_warmup(num_params: int, train_iters: int, expected: int) -> None:
    assert choose_warmup_iters(num_params=num_params, tokens_per_iter=1000, train_iters=train_iters) == expected
