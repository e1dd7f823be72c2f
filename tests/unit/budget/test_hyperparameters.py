"""Hyperparameter laws against numbers worked by hand and against the models that they were made for."""

import itertools
from typing import Any

import pytest

from chinchilla_ds.budget.hyperparameter_rules import (
    Suggestion,
    batch_sizes_tokens,
    deepseek_learning_rate,
    learning_rates,
    power_lines_weight_decay,
    spread,
    step_law_batch_tokens,
    step_law_learning_rate,
    weight_decays,
)
from chinchilla_ds.budget.hyperparameters import (
    MAX_LEARNING_RATE,
    WEIGHT_DECAY_RANGE,
    choose_batch_tokens,
    choose_learning_rate,
    choose_warmup_iters,
    choose_weight_decay,
)
from chinchilla_ds.budget.published_recipes import recipe_batch_tokens, recipe_learning_rate
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.run_plan import ModelShape


def _shape(**changes: Any) -> ModelShape:
    """DeepSeek LLM 7B (arXiv:2401.02954, table 2): 30 layers, 4096, 32 heads, sequences of 4096 tokens."""
    sizes: dict[str, Any] = {
        "num_layers": 30,
        "hidden_size": 4096,
        "ffn_hidden_size": 11008,
        "num_attention_heads": 32,
        "num_query_groups": 32,
        "kv_channels": 128,
        "vocab_size": 102400,
        "padded_vocab_size": 102400,
        "seq_length": 4096,
    }
    return ModelShape(**(sizes | changes))


def _value(suggestions: tuple[Suggestion, ...], name: str) -> Suggestion:
    return next(one for one in suggestions if one.name == name)


def test_step_law_at_1b_parameters_and_100b_tokens() -> None:
    """exp of ln 1.79 - 0.713 ln 1e9 + 0.307 ln 1e11, and of ln 0.58 + 0.571 ln 1e11, worked by hand."""
    assert step_law_learning_rate(non_embedding_params=1e9, num_tokens=1e11) == pytest.approx(1.63e-3, rel=0.01)
    assert step_law_batch_tokens(num_tokens=1e11) == pytest.approx(1.106e6, rel=0.01)


def _small(**changes: Any) -> ModelShape:
    """A decoder of 0.3M parameters."""
    sizes: dict[str, Any] = {"num_layers": 6, "hidden_size": 64, "ffn_hidden_size": 192, "num_attention_heads": 2}
    sizes |= {"num_query_groups": 2, "kv_channels": 32, "vocab_size": 512, "padded_vocab_size": 512, "seq_length": 256}
    return ModelShape(**(sizes | changes))


def _half_billion() -> ModelShape:
    """Within Step Law's sweep: 0.5B parameters outside the embeddings."""
    return _shape(num_layers=24, hidden_size=1280, ffn_hidden_size=3456, num_attention_heads=10, num_query_groups=10)


def test_small_models_stay_inside_the_sweep() -> None:
    chosen = choose_learning_rate(shape=_small(), num_tokens=3e6)
    assert chosen.value == MAX_LEARNING_RATE == 2**-7
    assert "largest of the sweep" in chosen.reason
    assert not chosen.in_range
    assert "outside every rule's fitted range" in chosen.reason


def test_step_law_decides_within_its_sweep() -> None:
    shape = _half_billion()
    size = count_parameters(shape=shape).non_embedding
    assert 6e7 < size < 1e9
    chosen = choose_learning_rate(shape=shape, num_tokens=20 * size)
    assert chosen.value == pytest.approx(step_law_learning_rate(non_embedding_params=size, num_tokens=20 * size))
    assert chosen.in_range
    assert "outside" not in chosen.reason


@pytest.mark.parametrize("tokens_per_param", [21, 60, 180])
def test_step_law_s_rate_does_not_grow_beyond_twenty_tokens_per_parameter(tokens_per_param: int) -> None:
    """Its batch grows with D and its rate with the batch; at one batch the best rate falls (arXiv:2409.19913)."""
    shape = _half_billion()
    size = count_parameters(shape=shape).non_embedding
    short = choose_learning_rate(shape=shape, num_tokens=20 * size)
    long = choose_learning_rate(shape=shape, num_tokens=tokens_per_param * size)
    assert long.value == pytest.approx(short.value)
    assert "counts 20 tokens per parameter" in long.reason


def test_a_size_and_length_beyond_every_rule_is_marked() -> None:
    """7B on 140B: above Step Law's N and D and DeepSeek's FLOPs, and below the tokens that teams trained on."""
    chosen = choose_learning_rate(shape=_shape(), num_tokens=1.4e11)
    assert not chosen.in_range
    assert "outside every rule's fitted range" in chosen.reason
    assert choose_learning_rate(shape=_shape(), num_tokens=2e12).in_range


def test_beyond_ten_times_the_sweep_the_rate_is_the_mean_of_deepseek_and_of_teams() -> None:
    """7B on 2T: sqrt(4.2e-4 x 4.0e-4); teams took 3e-4 to 4.2e-4 (Llama 2 7B, DeepSeek LLM 7B)."""
    shape = _shape()
    chosen = choose_learning_rate(shape=shape, num_tokens=2e12)
    deepseek = _value(learning_rates(shape=shape, num_tokens=2e12), "DeepSeek").value
    teams = recipe_learning_rate(num_params=count_parameters(shape=shape).total)
    assert chosen.value == pytest.approx((deepseek * teams) ** 0.5)
    assert 3e-4 < chosen.value < 4.5e-4
    assert "Llama 2 7B" in chosen.reason


def test_the_weight_of_step_law_falls_without_a_jump() -> None:
    rates = [choose_learning_rate(shape=_half_billion(), num_tokens=10**power).value for power in _powers(9, 14)]
    batches = [choose_batch_tokens(num_params=500_000_000, num_tokens=10**power) for power in _powers(9, 14)]
    for values in (rates, batches):
        assert max(b / a for a, b in itertools.pairwise(values)) < 1.25
        assert min(b / a for a, b in itertools.pairwise(values)) > 0.85


def _powers(low: int, high: int) -> list[float]:
    return [low + step / 10 for step in range(10 * (high - low) + 1)]


def test_the_batch_is_step_law_s_up_to_its_tokens_and_the_teams_from_ten_times_them() -> None:
    assert choose_batch_tokens(num_params=10**9, num_tokens=1e11) == step_law_batch_tokens(num_tokens=1e11)
    assert choose_batch_tokens(num_params=10**9, num_tokens=1e12) == recipe_batch_tokens(num_params=1e9)
    between = choose_batch_tokens(num_params=10**9, num_tokens=10**11.5)
    assert between == pytest.approx(
        (step_law_batch_tokens(num_tokens=10**11.5) * recipe_batch_tokens(num_params=1e9)) ** 0.5
    )


def test_over_trained_models_get_what_teams_used() -> None:
    """Step Law alone gives 1.7B on 11T a rate of 0.0048 and batches of 16M; SmolLM2 1.7B had 5e-4 and 2M."""
    shape = _shape(num_layers=24, hidden_size=2048, ffn_hidden_size=8192, num_query_groups=32, kv_channels=64)
    num_params = count_parameters(shape=shape).total
    assert 1.6e9 < num_params < 2.1e9
    assert choose_learning_rate(shape=shape, num_tokens=11e12).value == pytest.approx(5e-4, rel=0.1)
    assert choose_batch_tokens(num_params=num_params, num_tokens=11e12) < 4e6
    assert choose_warmup_iters(num_params=num_params, tokens_per_iter=3_000_000, train_iters=3_666_667) == 2000


def test_deepseek_s_rule_at_its_own_largest_budget() -> None:
    """exp of ln 0.3118 - 0.125 ln 2e19, worked by hand."""
    assert deepseek_learning_rate(flops=2e19) == pytest.approx(1.21e-3, rel=0.01)


def test_deepseek_7b_is_near_what_its_authors_trained_with() -> None:
    """Table 2: 7B on 2.0T tokens with a learning rate of 4.2e-4 and 2304 sequences of 4096 tokens, 9.4M."""
    rate = _value(learning_rates(shape=_shape(), num_tokens=2e12), "DeepSeek")
    batch = _value(batch_sizes_tokens(shape=_shape(), num_tokens=2e12), "DeepSeek")
    assert rate.value == pytest.approx(4.2e-4, rel=0.05)
    assert batch.value == pytest.approx(2304 * 4096, rel=0.05)
    assert not rate.in_range
    assert not batch.in_range


def test_porian_at_its_anchor() -> None:
    """0.0047 and 160 sequences of 2048 tokens at 108M parameters outside the embeddings."""
    shape = _shape(num_layers=12, hidden_size=864, ffn_hidden_size=2312, num_attention_heads=12, num_query_groups=12)
    shape = _shape(**{**vars(shape), "kv_channels": 72})
    assert _value(learning_rates(shape=shape, num_tokens=2e9), "Porian").value == pytest.approx(0.0047, rel=0.01)
    batch = _value(batch_sizes_tokens(shape=shape, num_tokens=2e9), "Porian").value
    assert batch == pytest.approx(160 * 2048, rel=0.01)


def test_trained_models_are_in_range_between_the_smallest_and_the_largest() -> None:
    rates = [learning_rates(shape=_shape(), num_tokens=tokens) for tokens in (2e12, 1.4e11)]
    assert [_value(one, "trained models").in_range for one in rates] == [True, False]


def test_step_law_comes_first() -> None:
    for suggestions in (
        learning_rates(shape=_shape(), num_tokens=2e12),
        batch_sizes_tokens(shape=_shape(), num_tokens=2e12),
    ):
        assert suggestions[0].name == "Step Law"
        assert not suggestions[0].in_range


def test_power_lines_timescale() -> None:
    """B / (lr wd D) is 1.084 at one token per parameter, and 1.084 exp(-0.527 ln 20) = 0.2236 at twenty."""
    for num_params, timescale in ((1e9, 0.2236), (2e10, 1.084)):
        decay = power_lines_weight_decay(num_params=num_params, num_tokens=2e10, batch_tokens=4e5, learning_rate=1e-3)
        assert 4e5 / (1e-3 * decay * 2e10) == pytest.approx(timescale, abs=1e-4)


@pytest.mark.parametrize("num_params", [1.2e8, 1e9, 3e9])
def test_power_lines_agrees_with_the_decay_of_step_law_s_runs(num_params: float) -> None:
    """0.1, at 20 tokens per parameter and with Step Law's batch and rate: two independent laws."""
    run = {
        "num_params": num_params,
        "num_tokens": 20 * num_params,
        "batch_tokens": step_law_batch_tokens(num_tokens=20 * num_params),
        "learning_rate": step_law_learning_rate(non_embedding_params=num_params, num_tokens=20 * num_params),
    }
    chosen = choose_weight_decay(**run)
    said = _value(weight_decays(**run), "Power Lines")
    assert chosen.value == pytest.approx(0.1, rel=0.15)
    assert chosen.value == pytest.approx(said.value, rel=0.06)
    assert chosen.in_range
    assert said.in_range


def test_weight_decay_keeps_the_time_scale_of_adamw() -> None:
    """tau = B / (lr wd D) = 1.084 x 200^-0.527 = 0.0664 epochs (arXiv:2505.13738), whatever the rate and batch."""
    for batch_tokens, learning_rate in ((2e6, 6e-4), (1e6, 6e-4), (2e6, 9e-4)):
        run = {"num_params": 2e9, "num_tokens": 4e11, "batch_tokens": batch_tokens, "learning_rate": learning_rate}
        chosen = choose_weight_decay(**run)
        assert batch_tokens / (learning_rate * chosen.value * 4e11) == pytest.approx(0.0664, rel=0.05)
        assert "0.066 best" in chosen.reason


@pytest.mark.parametrize(("batch_tokens", "bound"), [(1e4, 0), (1e8, 1)])
def test_weight_decay_stays_within_what_has_been_trained_with(batch_tokens: float, bound: int) -> None:
    run = {"num_params": 2e9, "num_tokens": 4e11, "batch_tokens": batch_tokens, "learning_rate": 6e-4}
    chosen = choose_weight_decay(**run)
    assert chosen.value == WEIGHT_DECAY_RANGE[bound]
    assert "beyond what has been trained with" in chosen.reason


def test_small_models_keep_the_decay_of_the_runs_that_the_rate_was_fitted_on() -> None:
    chosen = choose_weight_decay(num_params=3e5, num_tokens=6e6, batch_tokens=4096, learning_rate=2**-7)
    assert chosen.value == 0.1
    assert not chosen.in_range


def test_spread_says_what_lies_outside() -> None:
    suggestions = (
        Suggestion(name="Step Law", value=3.14e-4, source="", in_range=True),
        Suggestion(name="DeepSeek", value=2.2e-4, source="", in_range=False),
    )
    assert spread(suggestions) == "Step Law 0.00031; DeepSeek 0.00022 (outside its range)"
    assert spread(suggestions[:1], show="{:.1e}".format) == "Step Law 3.1e-04"


@pytest.mark.parametrize(
    ("num_params", "train_iters", "expected"),
    [(10_000, 1000, 10), (10**6, 1000, 100), (10**9, 10**6, 2000), (1, 1000, 4), (1, 200, 1), (10**6, 5, 1)],
    ids=["tokens as parameters", "a tenth", "2000 steps", "0.4 % of a long run", "at least one", "short run"],
)
def test_warmup(num_params: int, train_iters: int, expected: int) -> None:
    assert choose_warmup_iters(num_params=num_params, tokens_per_iter=1000, train_iters=train_iters) == expected
