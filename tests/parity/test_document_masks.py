"""Document masks: a document inside a packed sequence is computed as if it stood alone, under every layout.

The truth runs the plain reference on each document by itself, positions from 0: no mask, and no packing.
"""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from chinchilla_ds.errors import ConfigError
from chinchilla_ds.model.core_attention import SdpaCoreAttention, document_mask
from chinchilla_ds.model.decoder import _check_takes_masks
from chinchilla_ds.run_plan import RunPlan
from tests.parity import harness
from tests.parity.harness import EOD_ID, difference, on_engine, reference, trained
from tests.parity.layouts import Case
from tests.parity.reference_llama import ReferenceLlama, load_from_megatron_state

LAYOUTS = [
    Case(zero=0, accumulation=4),
    Case(zero=1, tp=2, dp=2, sequence_parallel=True),
    Case(zero=1, pp=2, accumulation=4),
    Case(zero=1, pp=2, virtual=2, accumulation=4, recompute="full"),
    Case(zero=2, tp=2, pp=2, accumulation=4, recompute="selective"),
    Case(zero=3, dp=2, recompute="selective"),
    Case(zero=3, tp=2, pp=2, accumulation=4, recompute="full", sequence_parallel=True),
]
FP32_TOLERANCE = 1e-5
WEIGHTS_TOLERANCE = 1e-3


def masked(case: Case) -> RunPlan:
    return dataclasses.replace(case.plan(), document_mask=True)


def documents_of(row: Tensor) -> list[Tensor]:
    """Cut a sequence [s] behind every end-of-document token, in plain Python."""
    documents: list[list[int]] = [[]]
    for token in row.tolist():
        documents[-1].append(token)
        if token == EOD_ID:
            documents.append([])
    return [torch.tensor(document) for document in documents if document]


@pytest.fixture
def each_document_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference run every document by itself and join the logits."""
    whole = ReferenceLlama.forward

    def forward(self: ReferenceLlama, tokens: Tensor) -> Tensor:
        rows = [torch.cat([whole(self, part[None])[0] for part in documents_of(row)]) for row in tokens]
        return torch.stack(rows)

    monkeypatch.setattr(ReferenceLlama, "forward", forward)


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_layout_with_masks_equals_documents_trained_alone(case, each_document_alone):
    plan = masked(case)
    found = difference(trained(plan), reference(plan), plan)
    assert found.loss < FP32_TOLERANCE
    assert found.grad_norm < FP32_TOLERANCE
    assert found.weights < WEIGHTS_TOLERANCE


def test_control_without_masks_training_differs(each_document_alone):
    case = Case(zero=1, pp=2, accumulation=4)
    found = difference(trained(case.plan()), reference(masked(case)), case.plan())
    assert found.loss > 10 * FP32_TOLERANCE
    assert found.grad_norm > 100 * FP32_TOLERANCE


def logits_of(engine, tokens):
    """A body for `on_engine`."""
    engine.engine.eval()
    with torch.no_grad():
        return engine.schedule.logits(tokens)


@pytest.mark.parametrize("is_masked", [True, False])
def test_logits_of_a_document_in_a_sequence_are_its_logits_alone(is_masked):
    """Positions are not reset: distances within the document are the same, and rotary attention knows no more."""
    plan = dataclasses.replace(Case().plan(), document_mask=is_masked)
    tokens = torch.cat([batch.tokens for batch in harness.micro_batches(plan, 3)])
    cut = tokens[0].tolist().index(EOD_ID) + 1 if EOD_ID in tokens[0] else 0
    assert 4 < cut < plan.shape.seq_length - 4, "the sequence holds two documents to compare"
    [logits] = on_engine(plan, logits_of, tokens)
    alone = ReferenceLlama(plan.shape)
    load_from_megatron_state(alone, harness.initial_weights(plan))
    with torch.no_grad():
        expected = torch.cat([alone(part[None])[0] for part in documents_of(tokens[0])])
    torch.testing.assert_close(logits[0, :cut], expected[:cut], atol=1e-5, rtol=0)
    apart = float((logits[0, cut:] - expected[cut:]).abs().max())
    assert (apart < 1e-5) if is_masked else (apart > 1e-3), apart


def test_mask_is_that_of_megatron():
    from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

    tokens = torch.randint(0, 6, (8, 40), generator=torch.Generator().manual_seed(0))
    tokens[0] = EOD_ID
    tokens[1, 0] = tokens[2, -1] = EOD_ID
    found = document_mask(tokens, eod_id=EOD_ID, dtype=torch.float32)
    assert found.shape == (8, 1, 40, 40)
    for row, mask in zip(tokens, found, strict=True):
        hidden, _, _ = _get_ltor_masks_and_position_ids(
            row,
            EOD_ID,
            reset_position_ids=False,
            reset_attention_mask=True,
            eod_mask_loss=False,
            create_attention_mask=True,
        )
        assert torch.equal(mask == float("-inf"), hidden)
        assert (mask[~hidden] == 0).all()


def test_an_attention_that_ignores_masks_is_refused():
    class TEDotProductAttention(torch.nn.Module):
        pass

    def chunk(attention: type) -> SimpleNamespace:
        layer = SimpleNamespace(self_attention=SimpleNamespace(core_attention=attention.__new__(attention)))
        return SimpleNamespace(decoder=SimpleNamespace(layers=[layer, layer]))

    _check_takes_masks(chunk(SdpaCoreAttention))
    with pytest.raises(ConfigError, match="attention is TEDotProductAttention, which is called without document masks"):
        _check_takes_masks(chunk(TEDotProductAttention))


def naive_attention(query: Tensor, key: Tensor, value: Tensor, tokens: Tensor) -> Tensor:
    """Attention of every token over its own document so far, token by token: [s, b, n * d]."""
    s, b, n, d = query.shape
    out = torch.zeros(s, b, n, d, dtype=query.dtype)
    for row in range(b):
        start = 0
        for position in range(s):
            for head in range(n):
                shared = head // (n // key.size(2))
                keys, values = key[start : position + 1, row, shared], value[start : position + 1, row, shared]
                weights = (keys @ query[position, row, head] / d**0.5).softmax(dim=0)
                out[position, row, head] = weights @ values
            if tokens[row, position] == EOD_ID:
                start = position + 1
    return out.reshape(s, b, n * d)


@pytest.mark.parametrize("seq_length", [48, 1200])
def test_attention_over_blocks_that_are_masked_as_a_whole(seq_length):
    """Longer than the kernel's blocks of 512 keys, so that whole blocks hold nothing to attend to."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(seq_length, 1, heads, 8, generator=generator) for heads in (2, 1, 1))
    tokens = torch.full((1, seq_length), 5)
    tokens[0, [seq_length // 5, seq_length - 20]] = EOD_ID
    attention = SdpaCoreAttention(type("Config", (), {"softmax_scale": None})())
    found = attention(query, key, value, document_mask(tokens, eod_id=EOD_ID, dtype=query.dtype))
    torch.testing.assert_close(found, naive_attention(query, key, value, tokens), atol=1e-5, rtol=0)
