"""The decoder for inference against the plain reference, with and without a cache, padding and document masks."""

import pytest
import torch

from chinchilla_ds.errors import LayoutError
from chinchilla_ds.inference import decoder as decoder_module
from chinchilla_ds.inference.source import CachedDecoder
from tests.unit.inference.models import EOD_ID, decoder_of, random_tokens, reader, reference_of

TOLERANCE = 2e-5
SHAPES = {
    "grouped-query": {},
    "multi-head": {"num_query_groups": 4},
    "tied": {"tied_embeddings": True},
    "qk-norm": {"qk_norm": True, "norm_epsilon": 1e-3},
    "one-group": {"num_query_groups": 1, "rotary_base": 500.0},
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def weights(request):
    return reader(**request.param)


@torch.inference_mode()
def test_logits_equal_the_reference(weights):
    tokens = random_tokens(2, length=20)
    found, expected = decoder_of(weights)(tokens), reference_of(weights)(tokens)
    assert expected.std() > 0.5, "the logits are too flat to tell anything"
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_control_interleaved_rotary_differs(weights, monkeypatch):
    def interleaved(x, context):
        even, odd = x[..., 0::2], x[..., 1::2]
        cos, sin = (table[..., : x.size(-1) // 2] for table in (context.cos, context.sin))
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(start_dim=-2)

    tokens = random_tokens(2, length=20)
    monkeypatch.setattr(decoder_module, "_rotate", interleaved)
    assert (decoder_of(weights)(tokens) - reference_of(weights)(tokens)).abs().max() > 100 * TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [[20], [12, 1, 1, 1, 5], [1] * 20])
def test_cached_logits_equal_those_of_the_whole_text(weights, pieces):
    tokens = random_tokens(2, length=20)
    decoder = decoder_of(weights)
    cache = decoder.new_cache(padding=torch.zeros(2, dtype=torch.int64), max_length=24)
    found = torch.cat([decoder(part, cache=cache) for part in tokens.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(found, reference_of(weights)(tokens), atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_steps_of_fixed_shape_equal_the_others(weights):
    """What torch.compile is given, not compiled."""
    tokens = random_tokens(2, length=20)
    decoder = decoder_of(weights)
    cache = decoder.new_cache(padding=torch.zeros(2, dtype=torch.int64), max_length=24)
    found = [decoder(tokens[:, :12], cache=cache, num_logits=1)]
    for place in range(12, 20):
        found.append(decoder.step(tokens[:, place : place + 1], torch.tensor([place]), cache))
    torch.testing.assert_close(torch.cat(found, dim=1), reference_of(weights)(tokens)[:, 11:], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_rewound_cache_forgets(weights):
    tokens, others = random_tokens(1, length=20), random_tokens(1, length=20, seed=1)
    decoder = decoder_of(weights)
    cache = decoder.new_cache(padding=torch.zeros(1, dtype=torch.int64), max_length=24)
    decoder(torch.cat([tokens[:, :10], others[:, 10:]], dim=1), cache=cache)
    cache.rewind(10)
    found = decoder(tokens[:, 10:], cache=cache)
    torch.testing.assert_close(found, reference_of(weights)(tokens)[:, 10:], atol=TOLERANCE, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("document_mask", [False, True])
@pytest.mark.parametrize("fixed_shape", [False, True])
def test_rows_padded_on_the_left_equal_rows_alone(document_mask, fixed_shape):
    weights = reader(document_mask=document_mask)
    rows = [row.tolist() for row in random_tokens(3, length=22)]
    rows[0][6] = rows[2][13] = EOD_ID
    starts = (12, 3, 9)
    decoder = decoder_of(weights)
    model = CachedDecoder(decoder)
    found = [model.start([row[:start] for row, start in zip(rows, starts, strict=True)], max_new_tokens=10)]
    for step in range(9):
        new = [row[start + step] for row, start in zip(rows, starts, strict=True)]
        if fixed_shape:
            found.append(decoder.step(torch.tensor(new).unsqueeze(1), torch.tensor([12 + step]), model.cache)[:, -1])
        else:
            found.append(model.extend(new))
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        alone = decoder(torch.tensor([row[: start + 9]]), num_logits=10)[0]
        torch.testing.assert_close(torch.stack([step[number] for step in found]), alone, atol=TOLERANCE, rtol=0)


@torch.inference_mode()
def test_a_document_behind_another_is_read_as_if_alone_where_documents_are_masked():
    tokens = random_tokens(1, length=20)
    tokens[0, 7] = EOD_ID
    masked, plain = (reader(document_mask=mask) for mask in (True, False))
    alone = reference_of(plain)(tokens[:, 8:])
    cached = decoder_of(masked)
    cache = cached.new_cache(padding=torch.zeros(1, dtype=torch.int64), max_length=20)
    stepped = torch.cat([cached(part, cache=cache) for part in tokens.split([5, 1, 1, 1, 1, 1, 10], dim=1)], dim=1)
    torch.testing.assert_close(decoder_of(masked)(tokens)[:, 8:], alone, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(stepped[:, 8:], alone, atol=TOLERANCE, rtol=0)
    control = decoder_of(plain)(tokens)[:, 8:]
    assert (control - alone).abs().max() > 100 * TOLERANCE, "without masks the first document is seen"


@torch.inference_mode()
def test_token_losses_are_the_cross_entropy_of_the_reference():
    weights = reader()
    tokens = random_tokens(3, length=21, vocab_size=250)
    found = decoder_of(weights).token_losses(tokens[:, :-1], tokens[:, 1:], vocab_size=250)
    log_p = reference_of(weights)(tokens[:, :-1])[..., :250].log_softmax(dim=-1)
    expected = -log_p.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


def test_a_layout_that_cannot_cut_the_shape_is_refused():
    class ThreeRanks:
        tp_size, pp_size, tp_rank, pp_rank = 3, 5, 0, 0

    with pytest.raises(LayoutError) as caught:
        decoder_of(reader(), ranks=ThreeRanks())
    assert caught.value.problems == (
        "tensor_model_parallel_size 3 does not divide num_query_groups 2; 1, 2 would",
        "tensor_model_parallel_size 3 does not divide ffn_hidden_size 128; 1, 2, 4 would",
        "tensor_model_parallel_size 3 does not divide padded_vocab_size 256; 1, 2, 4 would",
        "pipeline_model_parallel_size 5 is above num_layers 4, and every stage holds a layer; nearest: 4",
    )
