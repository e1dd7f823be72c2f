import math

import pytest

from chinchilla_ds.evaluation.bits_per_byte import bits_per_byte


def test_one_token_per_byte_is_nats_to_bits() -> None:
    assert bits_per_byte(loss_nats_per_token=math.log(256), num_tokens=10, num_bytes=10) == pytest.approx(8.0)


def test_longer_tokens_cost_fewer_bits_per_byte() -> None:
    assert bits_per_byte(loss_nats_per_token=2.0, num_tokens=100, num_bytes=400) == pytest.approx(0.5 / math.log(2))


@pytest.mark.parametrize(("tokens", "size"), [(0, 1), (1, 0)])
def test_no_text_has_no_bits_per_byte(tokens: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"not {tokens} tokens and {size} bytes"):
        bits_per_byte(loss_nats_per_token=1.0, num_tokens=tokens, num_bytes=size)
