"""Hyperparameter laws against numbers worked by hand and against the models that they were made for."""

from typing import Any

import pytest

from chinchilla_ds.budget.hyperparameters import (
    MAX_LEARNING_RATE,
    Suggestion,
    batch_sizes_tokens,
    choose_learning_rate,
    choose_warmup_iters,
    choose_weight_decay,
    learning_rates,
    power_lines_weight_decay,
    spread,
    step_law_batch_tokens,
    step_law_learning_rate,
    weight_decays,
)
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


def test_small_models_stay_inside_the_sweep() -> None:
    chosen = choose_learning_rate(non_embedding_params=300_000, num_tokens=3e6)
    assert chosen.value == MAX_LEARNING_RATE == 2**-7
    assert "largest of the sweep" in chosen.reason


def test_large_models_follow_the_law() -> None:
    chosen = choose_learning_rate(non_embedding_params=10**9, num_tokens=1e11)
    assert chosen.value == step_law_learning_rate(non_embedding_params=1e9, num_tokens=1e11)


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


def test_chinchilla_is_in_range_at_its_own_size_only() -> None:
    large = _shape(num_layers=80, hidden_size=8192, ffn_hidden_size=21824, num_attention_heads=64, num_query_groups=64)
    rate = _value(learning_rates(shape=large, num_tokens=1.4e12), "Chinchilla 70B")
    assert (rate.value, rate.in_range) == (1e-4, True)
    assert not _value(learning_rates(shape=_shape(), num_tokens=1.4e11), "Chinchilla 70B").in_range


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


@pytest.mark.parametrize("num_params", [1.2e8, 1e9, 7e9, 7e10])
def test_power_lines_agrees_with_the_decay_that_is_taken(num_params: float) -> None:
    """At 20 tokens per parameter and with Step Law's batch and rate; this is the reason for keeping 0.1."""
    run = {
        "num_params": num_params,
        "num_tokens": 20 * num_params,
        "batch_tokens": step_law_batch_tokens(num_tokens=20 * num_params),
        "learning_rate": step_law_learning_rate(non_embedding_params=num_params, num_tokens=20 * num_params),
    }
    assert choose_weight_decay(**run).value == 0.1
    said = _value(weight_decays(**run), "Power Lines")
    assert said.value == pytest.approx(0.1, rel=0.15)
    assert said.in_range == (num_params < 3.3e9)
    assert f"{said.value:.2g}" in choose_weight_decay(**run).reason


def test_spread_says_what_lies_outside() -> None:
    suggestions = (
        Suggestion(name="Step Law", value=3.14e-4, source="", in_range=True),
        Suggestion(name="DeepSeek", value=2.2e-4, source="", in_range=False),
    )
    assert spread(suggestions) == "Step Law 0.00031; DeepSeek 0.00022 (outside its range)"
    assert spread(suggestions[:1], show="{:.1e}".format) == "Step Law 3.1e-04"


@pytest.mark.parametrize(
    ("num_params", "train_iters", "expected"),
    [(10_000, 1000, 10), (10**6, 1000, 100), (10**9, 10**6, 2000), (1, 1000, 1), (10**6, 5, 1)],
    ids=["as many tokens as parameters", "a tenth of the run", "2000 steps", "at least one", "short run"],
)
def test_warmup(num_params: int, train_iters: int, expected: int) -> None:
    assert choose_warmup_iters(num_params=num_params, tokens_per_iter=1000, train_iters=train_iters) == expected
