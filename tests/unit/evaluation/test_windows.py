"""Windows: every token is scored once, with as much context as the stride promises."""

import pytest

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.evaluation.windows import check, cut

EOD = 99


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("stride", [1, 3, 4, 8])
def test_every_token_is_scored_once_with_its_context(length, stride):
    document, window = list(range(length)), 8
    scored = []
    for one in cut(document, before=EOD, window=window, stride=stride):
        assert len(one.tokens) == len(one.labels) <= window
        assert one.first_scored < len(one.labels)
        for place in range(len(one.labels)):
            before = one.labels[place] - 1
            assert one.tokens[place] == (EOD if before < 0 else before), "the label follows the token"
        for place in range(one.first_scored, len(one.labels)):
            token = one.labels[place]
            assert place + 1 >= min(token + 1, window - stride + 1), "fewer tokens to predict it from than promised"
            scored.append(token)
    assert scored == document


def test_sizes_that_leave_tokens_out_are_refused():
    with pytest.raises(ConfigError) as caught:
        check(window=64, stride=65, seq_length=32)
    assert caught.value.problems == (
        "`window=64` tokens exceeds the model's context of 32; give at most that",
        "`stride=65` tokens exceeds `window=64`, so tokens would be left out; give at most that",
    )
