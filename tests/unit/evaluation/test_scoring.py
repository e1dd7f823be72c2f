"""Bits per byte and perplexity against transformers' Llama with the same weights, one window at a time."""

import functools
import math

import pytest
import torch

from chinchilla_ds.evaluation import scoring
from chinchilla_ds.evaluation.scores import Document, Score
from chinchilla_ds.evaluation.scoring import score_documents
from tests.parity.transformers_llama import llama_of
from tests.unit.inference.models import EOD_ID, decoder_of, random_tokens, reader

WINDOW = 32
VOCAB = 200
"""Of 256 rows; the others are padding."""
LENGTHS = (1, 5, 31, 32, 33, 80, 17)


@pytest.fixture(scope="module")
def weights():
    return reader(seq_length=WINDOW, vocab_size=VOCAB)


@pytest.fixture(scope="module")
def documents():
    rows = random_tokens(len(LENGTHS), length=max(LENGTHS), vocab_size=VOCAB)
    return [
        Document(source="ab"[number % 2], tokens=[*row[: length - 1].tolist(), EOD_ID], num_bytes=3 * length)
        for number, (row, length) in enumerate(zip(rows, LENGTHS, strict=True))
    ]


def scored(weights, documents, *, stride, **more):
    decoder = decoder_of(weights, **more)
    return score_documents(
        documents,
        token_losses=functools.partial(decoder.token_losses, vocab_size=weights.plan.shape.vocab_size),
        eod_id=EOD_ID,
        window=WINDOW,
        stride=stride,
        device=torch.device("cpu"),
    )


@torch.inference_mode()
def independent_nats(model, tokens, *, stride):
    """Nats of every token by transformers, in the way of its page on perplexity: windows that end `stride` further."""
    text = torch.tensor([EOD_ID, *tokens])
    nats, done = [], 0
    while done < len(tokens):
        end = min(WINDOW if done == 0 else done + stride, len(tokens))
        begin = max(0, end - WINDOW)
        logits = model(text[None, begin:end]).logits[0, :, :VOCAB]
        log_p = logits.double().log_softmax(dim=-1)
        nats += [-float(log_p[place - begin, text[place + 1]]) for place in range(done, end)]
        done = end
    return nats


@pytest.mark.parametrize("stride", [8, WINDOW])
def test_scores_equal_an_independent_computation_with_transformers(weights, documents, stride):
    found = scored(weights, documents, stride=stride)
    model = llama_of(weights)
    assert set(found) == {"a", "b"}
    for source, score in found.items():
        own = [document for document in documents if document.source == source]
        nats = [independent_nats(model, document.tokens, stride=stride) for document in own]
        tokens, num_bytes = sum(map(len, nats)), sum(document.num_bytes for document in own)
        total, ends = sum(map(sum, nats)), sum(one[-1] for one in nats)
        assert (score.documents, score.tokens, score.bytes) == (len(own), tokens, num_bytes)
        assert score.bits_per_byte == pytest.approx(total / math.log(2) / num_bytes, rel=1e-4)
        assert score.text_bits_per_byte == pytest.approx((total - ends) / math.log(2) / num_bytes, rel=1e-4)
        assert score.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_controls_less_context_and_other_sources_show(weights, documents):
    near, far = (sum(scored(weights, documents, stride=stride).values(), start=Score()) for stride in (WINDOW, 8))
    assert near.tokens == far.tokens == sum(LENGTHS)
    assert abs(near.bits_per_byte - far.bits_per_byte) > 1e-3 * far.bits_per_byte
    found = scored(weights, documents, stride=8)
    assert abs(found["a"].bits_per_byte - found["b"].bits_per_byte) > 1e-3


def test_batches_and_the_order_of_documents_change_nothing(weights, documents, monkeypatch):
    wanted = scored(weights, documents, stride=8)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 40)
    monkeypatch.setattr(scoring, "_WINDOWS_SORTED", 3)
    found = scored(weights, documents[::-1], stride=8)
    for source, score in wanted.items():
        assert found[source].tokens == score.tokens
        assert found[source].nats == pytest.approx(score.nats, rel=1e-6)
        assert found[source].end_nats == pytest.approx(score.end_nats, rel=1e-6)


def test_a_document_scores_as_if_alone(weights, documents):
    together = scored(weights, documents, stride=8)["b"].nats
    alone = sum(scored(weights, [document], stride=8)["b"].nats for document in documents if document.source == "b")
    assert together == pytest.approx(alone, rel=1e-6)


def test_bf16_comes_near(weights, documents):
    exact, near = (
        sum(scored(weights, documents, stride=8, dtype=dtype).values(), start=Score())
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 1e-6 < abs(near.loss / exact.loss - 1) < 0.02
