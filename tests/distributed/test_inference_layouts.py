"""Generation on several ranks: the logits of one rank, and the same tokens, whatever the layout."""

import itertools

import pytest
import torch
import torch.distributed as dist

from chinchilla_ds.errors import LayoutError
from chinchilla_ds.inference.generate import generate
from chinchilla_ds.inference.ranks import join_ranks
from chinchilla_ds.inference.sampling import Sampling
from chinchilla_ds.inference.source import CachedDecoder
from chinchilla_ds.inference.speculative import generate_speculatively
from chinchilla_ds.testing import run_on_ranks
from tests.unit.inference.models import decoder_of, random_tokens, reader, reference_of, small_tokenizer

TOLERANCE = 2e-5
LAYOUTS = {"tp2": (2, 1), "pp2": (1, 2), "tp2-pp2": (2, 2)}
SETTINGS = {"sampling": Sampling(temperature=0.9, top_k=40, seed=3), "max_new_tokens": 12}


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def shape_of(tokenizer, **more):
    return {"padded_vocab_size": 512, "vocab_size": tokenizer.vocab_size, "seq_length": 64, **more}


def on_ranks(layout, weights, tokenizer, *, dtype=torch.float32):
    """Return every rank's logits and losses of a batch, continuations, and speculative ones."""
    tp, pp = layout
    prompts = [row[: 4 + 3 * number].tolist() for number, row in enumerate(random_tokens(2, length=20))]

    @torch.inference_mode()
    def body():
        torch.set_num_threads(1)
        ranks = join_ranks(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
        decoder = decoder_of(weights, ranks=ranks, dtype=dtype)
        tokens = random_tokens(2, length=17)
        logits, losses = decoder(tokens[:, :-1]), decoder.token_losses(tokens[:, :-1], tokens[:, 1:], vocab_size=300)
        settings = {"prompts": prompts, "tokenizer": tokenizer, **SETTINGS}
        texts = generate(CachedDecoder(decoder), **settings)
        drafted = generate_speculatively(CachedDecoder(decoder), draft=CachedDecoder(decoder), **settings)
        if dist.is_initialized():
            dist.destroy_process_group()
        return logits, losses, texts, drafted

    return run_on_ranks(body, tp * pp, preload=())


QUICK = [("tp2-pp2", False), ("tp2", True)]
EVERY = list(itertools.product(LAYOUTS, (False, True)))


@pytest.mark.parametrize(("layout", "tied"), QUICK)
def test_layout_equals_the_reference_and_one_rank(layout, tied, tokenizer):
    check_layout(LAYOUTS[layout], tied, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "tied"), [case for case in EVERY if case not in QUICK])
def test_every_layout_equals_the_reference_and_one_rank(layout, tied, tokenizer):
    check_layout(LAYOUTS[layout], tied, tokenizer)


def test_uneven_stages_equal_the_reference_and_one_rank(tokenizer):
    """Three layers on two stages: two, and one with the logits."""
    check_layout(LAYOUTS["pp2"], False, tokenizer, num_layers=3)


def check_layout(layout, tied, tokenizer, **more):
    weights = reader(**shape_of(tokenizer, tied_embeddings=tied, num_query_groups=4 if tied else 2, **more))
    tokens = random_tokens(2, length=17)
    with torch.inference_mode():
        logits = reference_of(weights)(tokens[:, :-1])
        losses = decoder_of(weights).token_losses(tokens[:, :-1], tokens[:, 1:], vocab_size=300)
    [alone] = on_ranks((1, 1), weights, tokenizer)
    for found in on_ranks(layout, weights, tokenizer):
        torch.testing.assert_close(found[0], logits, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(found[1], losses, atol=TOLERANCE, rtol=0)
        assert found[2:] == alone[2:]


def test_control_a_rank_with_the_other_ranks_rows_differs(tokenizer):
    weights = reader(**shape_of(tokenizer))
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    gate, up = weights.state[name].chunk(2)
    # cut without regard to its halves, rank 0 would hold the gate alone: what this order of rows gives
    wrong = torch.cat([gate[:64], up[:64], gate[64:], up[64:]])
    right = on_ranks((2, 1), weights, tokenizer)[0][0]
    weights.state[name] = wrong
    assert (on_ranks((2, 1), weights, tokenizer)[0][0] - right).abs().max() > 100 * TOLERANCE


@pytest.mark.slow
def test_bf16_runs_on_several_ranks_and_stays_near(tokenizer):
    weights = reader(**shape_of(tokenizer))
    [alone] = on_ranks((1, 1), weights, tokenizer)
    for logits, *_ in on_ranks((2, 2), weights, tokenizer, dtype=torch.bfloat16):
        assert 1e-5 < (logits - alone[0]).abs().max() < 0.2 * alone[0].std()


def test_another_number_of_ranks_than_the_layout_has_is_refused(monkeypatch):
    place = {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_SIZE": 3, "LOCAL_WORLD_SIZE": 3, "MASTER_PORT": 29500}
    for name, value in {**place, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(LayoutError, match=r"= 4 ranks, and 3 were started; .* torchrun --nproc-per-node 4"):
        join_ranks(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
