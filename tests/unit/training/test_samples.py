from chinchilla_ds.training.samples import is_due


def test_samples_come_once_for_every_interval_that_is_reached_or_passed() -> None:
    consumed = range(300, 3001, 300)
    due = [tokens for tokens in consumed if is_due(consumed_tokens=tokens, tokens_per_iter=300, interval_tokens=1000)]
    assert due == [1200, 2100, 3000]
    assert all(is_due(consumed_tokens=tokens, tokens_per_iter=300, interval_tokens=100) for tokens in consumed)
    assert not any(is_due(consumed_tokens=tokens, tokens_per_iter=300, interval_tokens=None) for tokens in consumed)
