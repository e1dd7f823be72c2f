"""The decoder for inference against the training engine's own logits, and against transformers, on the same weights."""

import dataclasses

import pytest
import torch

from chinchilla_ds.inference.generate import generate
from chinchilla_ds.inference.sampling import Sampling
from chinchilla_ds.inference.source import CachedDecoder
from chinchilla_ds.run_plan import Precision
from tests.parity import harness
from tests.parity.harness import EOD_ID
from tests.parity.layouts import Case
from tests.parity.transformers_llama import llama_of
from tests.unit.inference.models import StateReader, decoder_of, random_tokens, reader, small_tokenizer

TOLERANCE = 1e-5
CASES = {
    "masked": (Case(zero=1, tp=2), Precision.FP32, True),
    "bf16": (Case(zero=1), Precision.BF16, False),
}
SLOW_CASES = {
    "plain": (Case(), Precision.FP32, False),
    "pipeline": (Case(zero=1, pp=2, accumulation=4), Precision.FP32, False),
}


def next_logits(engine, rows):
    """A body for `on_engine`."""
    return torch.stack([engine.next_token_logits(row) for row in rows])


@pytest.mark.parametrize(("case", "precision", "masked"), CASES.values(), ids=CASES)
def test_logits_equal_those_of_the_training_engine(case, precision, masked):
    check_logits(case, precision, masked)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "precision", "masked"), SLOW_CASES.values(), ids=SLOW_CASES)
def test_logits_equal_those_of_the_training_engine_in_more_layouts(case, precision, masked):
    check_logits(case, precision, masked)


def check_logits(case, precision, masked):
    plan = dataclasses.replace(case.plan(precision=precision), document_mask=masked)
    tokens = torch.cat([batch.tokens for batch in harness.micro_batches(plan, 3)])[:2]
    rows = [tokens[0, :20].tolist(), tokens[1].tolist()]
    assert not masked or EOD_ID in rows[1][:-1], "a document ends within the text"
    engine = harness.on_engine(plan, next_logits, rows)[0]
    weights = StateReader(plan, harness.initial_weights(plan))
    dtype = torch.bfloat16 if precision is Precision.BF16 else torch.float32
    decoder = decoder_of(weights, dtype=dtype)
    with torch.inference_mode():
        found = torch.stack([decoder(torch.tensor([row]), num_logits=1)[0, 0] for row in rows])
    near = TOLERANCE if precision is Precision.FP32 else 0.02 * engine.std()
    torch.testing.assert_close(found, engine, atol=float(near), rtol=0)
    assert engine.std() > 100 * TOLERANCE


def test_greedy_batch_equals_generate_of_transformers():
    """Padded on the left there as well, with its own cache."""
    tokenizer = small_tokenizer()
    weights = reader(padded_vocab_size=512, vocab_size=512, seq_length=64)
    prompts = [row[:length].tolist() for row, length in zip(random_tokens(3, length=16), (16, 4, 9), strict=True)]
    longest = max(map(len, prompts))
    model = llama_of(weights)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = model.generate(ids, attention_mask=mask, max_new_tokens=32, min_new_tokens=32, **settings)

    class Endless:
        """Neither end of document nor padded pieces."""

        vocab_size, eod_id, decode = 512, -1, staticmethod(lambda tokens: tokenizer.decode([t % 300 for t in tokens]))

    found = generate(
        CachedDecoder(decoder_of(weights)),
        prompts=prompts,
        tokenizer=Endless(),
        max_new_tokens=32,
        sampling=Sampling(temperature=0),
    )
    assert [list(row.tokens) for row in found] == theirs[:, longest:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("document_mask", [False, True])
def test_compiled_steps_give_the_same_tokens(document_mask):
    tokenizer = small_tokenizer()
    shape = {"padded_vocab_size": 512, "vocab_size": tokenizer.vocab_size, "seq_length": 64, "num_layers": 2}
    weights = reader(**shape, document_mask=document_mask)
    prompts = [row[:length].tolist() for row, length in zip(random_tokens(2, length=16), (16, 4), strict=True)]
    decoder = decoder_of(weights)
    settings = {"prompts": prompts, "tokenizer": tokenizer, "max_new_tokens": 24, "sampling": Sampling(temperature=0)}
    plain, compiled = (generate(CachedDecoder(decoder, compiled=way), **settings) for way in (False, True))
    assert plain == compiled
