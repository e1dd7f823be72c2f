"""Continuations: cached equal to uncached, batches equal to singles, ends, draws with the exact distribution."""

import pytest
import torch
from scipy.stats import chisquare

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.inference.generate import Finish, generate
from chinchilla_ds.inference.sampling import Sampling, probabilities
from chinchilla_ds.inference.source import CachedDecoder, Recomputed, uncached
from tests.unit.inference.models import EOD_ID, decoder_of, random_tokens, reader, reference_of, small_tokenizer

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def weights(tokenizer):
    assert tokenizer.eod_id == EOD_ID
    return reader(padded_vocab_size=512, vocab_size=tokenizer.vocab_size, seq_length=64)


def continued(model, prompts, tokenizer, *, sampling=GREEDY, max_new_tokens=24, **more):
    return generate(
        model, prompts=prompts, tokenizer=tokenizer, sampling=sampling, max_new_tokens=max_new_tokens, **more
    )


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.2, top_k=50, seed=5)], ids=["greedy", "drawn"])
def test_cached_uncached_and_reference_give_the_same_tokens(weights, tokenizer, sampling):
    prompts = random_tokens(1, length=9).tolist()
    reference = reference_of(weights)
    decoder = decoder_of(weights)
    models = [CachedDecoder(decoder), uncached(decoder), Recomputed(lambda row: reference(torch.tensor([row]))[0, -1])]
    found = [continued(model, prompts, tokenizer, sampling=sampling) for model in models]
    assert len(found[0][0].tokens) == 24
    assert len(set(found[0][0].tokens)) > 12, "a text that repeats itself tells nothing"
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, seed=9)], ids=["greedy", "drawn"])
def test_a_batch_padded_on_the_left_equals_prompts_alone(weights, tokenizer, sampling):
    prompts = [row[: 3 + 5 * number].tolist() for number, row in enumerate(random_tokens(3, length=20))]
    decoder = decoder_of(weights)
    together = continued(CachedDecoder(decoder), prompts, tokenizer, sampling=sampling)
    model = CachedDecoder(decoder)
    for number, prompt in enumerate(prompts):
        # the first rows stand in for others, so that this one draws from the generator of its number
        alone = continued(model, [prompt] * (number + 1), tokenizer, sampling=sampling)[number]
        assert alone == together[number]
    assert len({row.tokens for row in together}) == 3


def test_control_padding_that_is_seen_changes_the_tokens(weights, tokenizer):
    prompt = random_tokens(1, length=6)[0].tolist()
    model = CachedDecoder(decoder_of(weights))
    padded = [[0] * 6 + prompt]
    assert continued(model, padded, tokenizer) != continued(model, [prompt], tokenizer)


class Script:
    """A model that says certain tokens one after the other, with certainty."""

    def __init__(self, *rows, vocab_size):
        self.rows, self.place, self.vocab_size = rows, -1, vocab_size

    def start(self, prompts, *, max_new_tokens):
        return self.extend([])

    def extend(self, tokens):
        self.place += 1
        logits = torch.zeros(len(self.rows), self.vocab_size + 8)
        for number, row in enumerate(self.rows):
            logits[number, row[min(self.place, len(row) - 1)]] = 50.0
        logits[:, self.vocab_size :] = 99.0  # padded rows of the vocabulary, never to be drawn
        return logits


def test_continuations_end_at_the_document_at_a_stop_string_and_at_the_length(tokenizer):
    words = tokenizer.encode("value of list of name of class of")
    stopped = tokenizer.encode("for x in list")
    model = Script([*words[:3], tokenizer.eod_id], stopped, words, vocab_size=tokenizer.vocab_size)
    shown = {}
    found = continued(
        model,
        [[5]] * 3,
        tokenizer,
        max_new_tokens=len(words),
        stop=["in"],
        on_text=lambda number, text: shown.update({number: shown.get(number, "") + text}),
    )
    assert [row.finish for row in found] == [Finish.END_OF_DOCUMENT, Finish.STOP, Finish.LENGTH]
    assert found[0].tokens == tuple(words[:3])
    assert found[1].text == "for x "
    assert found[2].text == "value of list of name of class of"
    assert shown == {number: row.text for number, row in enumerate(found)}


def test_an_empty_stop_string_is_refused(weights, tokenizer):
    with pytest.raises(ConfigError, match="stop string is empty"):
        continued(CachedDecoder(decoder_of(weights)), [[5]], tokenizer, stop=[""])


def test_first_tokens_have_the_exact_distribution(tokenizer):
    """1000 rows of one prompt: each draws from a generator of its own."""
    weights = reader(padded_vocab_size=512, vocab_size=tokenizer.vocab_size, num_layers=1)
    decoder = decoder_of(weights)
    sampling = Sampling(temperature=0.3, top_k=8, seed=2)
    prompt = random_tokens(1, length=4)
    found = continued(CachedDecoder(decoder), prompt.tolist() * 1000, tokenizer, sampling=sampling, max_new_tokens=1)
    with torch.inference_mode():
        wanted = probabilities(reference_of(weights)(prompt)[0, -1, : tokenizer.vocab_size], sampling=sampling)
    draws = torch.tensor([(*row.tokens, tokenizer.eod_id)[0] for row in found])
    counts = torch.bincount(draws, minlength=len(wanted))
    possible = wanted.nonzero()[:, 0]
    assert counts.sum() == counts[possible].sum()
    assert len(possible) == 8
    assert chisquare(counts[possible], wanted[possible] * 1000).pvalue > 1e-3
    flat = torch.full_like(wanted[possible], 1 / 8)
    assert chisquare(counts[possible], flat * 1000).pvalue < 1e-6, "control: the distribution is not flat"
