"""Speculative decoding: greedy token by token as without it; drawn with the large model's distribution."""

import pytest
import torch
from scipy.stats import chisquare

from chinchilla_ds.inference import speculative
from chinchilla_ds.inference.generate import generate
from chinchilla_ds.inference.sampling import Sampling, draw
from chinchilla_ds.inference.source import CachedDecoder
from chinchilla_ds.inference.speculative import accept, generate_speculatively
from tests.unit.inference.models import decoder_of, random_tokens, reader, small_tokenizer

NUM_RUNS = 3000
LEAST_P_VALUE = 1e-3
VOCAB = 5


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def pair(tokenizer, *, draft_seed, document_mask=False):
    """Return a decoder and a smaller one; of draft_seed 0 its first layers and tables are the large one's."""
    shape = {"padded_vocab_size": 512, "vocab_size": tokenizer.vocab_size, "seq_length": 64}
    large = reader(**shape, num_layers=3, document_mask=document_mask)
    small = reader(**shape, num_layers=2, seed=draft_seed, document_mask=document_mask)
    if draft_seed == 0:
        small.state.update({name: large.state[name] for name in small.state})
    return decoder_of(large), decoder_of(small)


@pytest.mark.parametrize("draft_seed", [0, 1], ids=["likely", "unlikely"])
@pytest.mark.parametrize("document_mask", [False, True])
def test_greedy_tokens_are_those_of_the_large_model(tokenizer, draft_seed, document_mask):
    target, draft = pair(tokenizer, draft_seed=draft_seed, document_mask=document_mask)
    prompts = [row[:length].tolist() for row, length in zip(random_tokens(3, length=12), (1, 5, 12), strict=True)]
    settings = {
        "prompts": prompts,
        "tokenizer": tokenizer,
        "max_new_tokens": 30,
        "sampling": Sampling(temperature=0),
    }
    alone = generate(CachedDecoder(target), **settings)
    found = generate_speculatively(CachedDecoder(target), draft=CachedDecoder(draft), **settings)
    assert found == alone
    if draft_seed == 0:
        passes = CountingDecoder(target)
        generate_speculatively(passes, draft=CachedDecoder(draft), **settings)
        assert passes.count < sum(len(row.tokens) for row in alone), "drafted tokens are kept"


class CountingDecoder(CachedDecoder):
    count = 0

    def advance(self, tokens, **more):
        self.count += 1
        return super().advance(tokens, **more)


def conditional(seed):
    """Return a model of three tokens: from those before to the distribution of the next, [VOCAB]."""
    table = torch.rand((VOCAB + 1) ** 2, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 2
    table /= table.sum(dim=1, keepdim=True)
    return lambda before: table[sum((token + 1) * (VOCAB + 1) ** place for place, token in enumerate(before))]


def pairs_drawn(rule, *, number=NUM_RUNS):
    """Draw pairs of tokens by drafting up to two at a time; return how often each pair came, [VOCAB, VOCAB]."""
    p, q = conditional(0), conditional(1)
    generator = torch.Generator().manual_seed(7)
    counts = torch.zeros(VOCAB, VOCAB)
    for _ in range(number):
        tokens = []
        while len(tokens) < 2:
            drafted = []
            for _ in range(2 - len(tokens)):
                drafted.append(draw(q([*tokens, *drafted]), generator=generator))
            drafts = torch.stack([q([*tokens, *drafted[:place]]) for place in range(len(drafted))])
            after = [*tokens, *drafted]
            targets = torch.stack([p(after[: len(tokens) + place][:2]) for place in range(len(drafted) + 1)])
            tokens += rule(drafted, drafts, targets, generator=generator)
        counts[tokens[0], tokens[1]] += 1
    return counts


def p_value(counts):
    p = conditional(0)
    wanted = torch.stack([p([])[first] * p([first]) for first in range(VOCAB)])
    return chisquare(counts.flatten(), wanted.flatten() * counts.sum()).pvalue


def test_kept_and_replaced_tokens_have_the_large_models_distribution():
    assert p_value(pairs_drawn(accept)) > LEAST_P_VALUE


def always_accept(drafted, drafts, targets, *, generator):
    return [*drafted, draw(targets[-1], generator=generator)]


def replace_from_p(drafted, drafts, targets, *, generator):
    """Accept rightly, and replace a refused token by a draw from p instead of max(0, p - q)."""
    for place, token in enumerate(drafted):
        uniform = torch.rand((), dtype=torch.float64, generator=generator)
        if uniform * drafts[place][token] >= targets[place][token]:
            return [*drafted[:place], draw(targets[place], generator=generator)]
    return [*drafted, draw(targets[-1], generator=generator)]


@pytest.mark.parametrize("rule", [always_accept, replace_from_p])
def test_control_a_wrong_rule_fails_the_same_test(rule):
    assert p_value(pairs_drawn(rule, number=NUM_RUNS // 2)) < 1e-6


def test_drawn_text_has_the_distribution_of_the_large_model(tokenizer, monkeypatch):
    """Through the models and their caches: pairs of tokens of two small models, against all pairs computed."""
    shape = {"padded_vocab_size": 512, "vocab_size": tokenizer.vocab_size, "num_layers": 1, "hidden_size": 32}
    target, draft = decoder_of(reader(**shape)), decoder_of(reader(**shape, seed=1))
    sampling = Sampling(temperature=1.0, top_k=3, seed=4)
    prompt = [9, 30]
    number = 400
    settings = {"tokenizer": tokenizer, "max_new_tokens": 2, "sampling": sampling}
    models = CachedDecoder(target), CachedDecoder(draft)
    found = generate_speculatively(models[0], draft=models[1], prompts=[prompt] * number, **settings)
    wanted = pairs_of(target, prompt, sampling, tokenizer.vocab_size)
    assert len(wanted) == 9
    counts = {pair: sum(row.tokens == pair for row in found) for pair in wanted}
    assert sum(counts.values()) == number, "no other pair can be"
    assert chisquare([counts[pair] for pair in wanted], [p * number for p in wanted.values()]).pvalue > LEAST_P_VALUE
    monkeypatch.setattr(speculative, "accept", always_accept)
    wrong = generate_speculatively(models[0], draft=models[1], prompts=[prompt] * 100, **settings)
    outside = sum(row.tokens not in wanted for row in wrong)
    assert outside > 30, "control: the small model's tokens are not the large one's"


@torch.inference_mode()
def pairs_of(decoder, prompt, sampling, vocab_size):
    """Return every pair of tokens that can follow, with its probability."""

    def distribution(tokens):
        logits = decoder(torch.tensor([tokens]), num_logits=1)[0, -1, :vocab_size]
        found = speculative.probabilities(logits, sampling=sampling)
        return {int(token): float(found[token]) for token in found.nonzero()[:, 0]}

    firsts = distribution(prompt)
    seconds = {first: distribution([*prompt, first]) for first in firsts}
    return {(a, b): p * q for a, p in firsts.items() for b, q in seconds[a].items()}
