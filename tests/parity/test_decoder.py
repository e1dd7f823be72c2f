"""Our decoder, on one rank, against the plain PyTorch reference with copied weights."""

import pytest
import torch

from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.testing import run_on_ranks, tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity import reference_llama
from tests.parity.harness import micro_batches
from tests.parity.reference_llama import (
    ReferenceLlama,
    load_from_megatron_state,
    random_megatron_state,
    to_megatron_state,
)

LOGITS_TOLERANCE = 1e-5
GRADIENTS_TOLERANCE = 1e-4
"""Of the L2 norm of a weight's gradient."""

SHAPES = {
    "grouped": tiny_shape(),
    "multi-head": tiny_shape(num_query_groups=4),
    "one-group": tiny_shape(num_query_groups=1),
    "tied": tiny_shape(tied_embeddings=True),
    "tied-multi-head": tiny_shape(tied_embeddings=True, num_query_groups=4),
    "wide-heads": tiny_shape(kv_channels=32, rotary_base=500000.0, norm_epsilon=1e-3),
}


def ours(shape, state):
    """Return (logits [b, s, v], loss, gradients by Megatron's names) of our decoder with the weights of `state`."""

    def on_rank():
        from chinchilla_ds.distributed import groups, recompute
        from chinchilla_ds.model.cross_entropy import token_losses
        from chinchilla_ds.model.decoder import build_stage
        from chinchilla_ds.model.initialization import global_named_parameters

        groups.initialize(layout=plan.layout)
        recompute.configure(ds_config={}, num_layers=shape.num_layers)
        stage = build_stage(plan)
        named = dict(global_named_parameters(stage))
        assert named.keys() == state.keys()
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(state[name])
        logits = stage(batch.tokens).detach()
        loss = stage(batch.tokens, lambda logits: token_losses(logits, batch.labels).mean())
        loss.backward()
        return logits, loss.item(), {name: parameter.grad for name, parameter in named.items()}

    plan = tiny_plan(shape=shape)
    [batch] = micro_batches(plan, 0)
    return run_on_ranks(on_rank, 1)[0]


def theirs(shape, state):
    """Return the same three of the reference."""
    model = ReferenceLlama(shape)
    load_from_megatron_state(model, state)
    [batch] = micro_batches(tiny_plan(shape=shape), 0)
    loss = model.loss(batch.tokens, batch.labels)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return model(batch.tokens).detach(), loss.item(), to_megatron_state(model, values=gradients)


def apart(a, b):
    """Return the largest difference of logits, and the largest difference of a gradient relative to its norm."""
    gradients = [float((a[2][name] - wanted).norm() / wanted.norm()) for name, wanted in b[2].items()]
    return float((a[0] - b[0]).abs().max()), max(gradients)


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def shape(request) -> ModelShape:
    return request.param


@pytest.fixture(scope="module")
def state(shape):
    return random_megatron_state(shape, seed=0)


@pytest.fixture(scope="module")
def decoded(shape, state):
    return ours(shape, state)


def test_decoder_equals_reference(shape, state, decoded):
    truth = theirs(shape, state)
    logits, gradients = apart(decoded, truth)
    assert truth[0].std() > 0.5, "the logits are too flat to tell anything"
    assert logits < LOGITS_TOLERANCE
    assert gradients < GRADIENTS_TOLERANCE
    assert decoded[1] == pytest.approx(truth[1], rel=1e-6)


def interleaved(x, cos, sin):
    """Turn channel 2i with channel 2i + 1, as GPT-J does."""
    half = x.size(-1) // 2
    even, odd, cos, sin = x[..., 0::2], x[..., 1::2], cos[..., :half], sin[..., :half]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(start_dim=-2)


def test_decoder_control_interleaved_rotary_differs(shape, state, decoded, monkeypatch):
    monkeypatch.setattr(reference_llama, "rotate", interleaved)
    logits, gradients = apart(decoded, theirs(shape, state))
    assert logits > 100 * LOGITS_TOLERANCE
    assert gradients > 100 * GRADIENTS_TOLERANCE


def test_decoder_control_gate_and_up_swapped_differ(shape, state, decoded):
    name = "decoder.layers.3.mlp.linear_fc1.weight"
    gate, up = state[name].chunk(2)
    logits, gradients = apart(decoded, theirs(shape, {**state, name: torch.cat([up, gate])}))
    assert logits > 100 * LOGITS_TOLERANCE
    assert gradients > 100 * GRADIENTS_TOLERANCE
