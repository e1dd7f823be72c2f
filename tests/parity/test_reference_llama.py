"""The reference itself, against Hugging Face's Llama with copied weights."""

import pytest
import torch
import torch.nn.functional as F

from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.testing import tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.reference_llama import (
    ReferenceLlama,
    load_from_megatron_state,
    random_megatron_state,
    to_megatron_state,
    train_reference,
)
from tests.parity.transformers_llama import llama_from_megatron

SHAPES = {
    "grouped": tiny_shape(),
    "multi-head": tiny_shape(num_query_groups=4),
    "one-group": tiny_shape(num_query_groups=1),
    "tied": tiny_shape(tied_embeddings=True),
    "wide-heads": tiny_shape(kv_channels=32, rotary_base=500000.0, norm_epsilon=1e-3),
}


def random_batch(shape: ModelShape, *, seed: int, size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(shape.vocab_size, (size, shape.seq_length + 1), generator=generator)
    return text[:, :-1], text[:, 1:]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_gradients_equal_hugging_face(shape):
    state = random_megatron_state(shape, seed=0)
    reference, other = ReferenceLlama(shape), llama_from_megatron(shape, state)
    load_from_megatron_state(reference, state)
    tokens, labels = random_batch(shape, seed=1)

    logits, other_logits = reference(tokens), other(tokens).logits
    assert other_logits.abs().max() > 1
    torch.testing.assert_close(logits, other_logits, atol=1e-5, rtol=1e-5)

    reference.loss(tokens, labels).backward()
    F.cross_entropy(other_logits.flatten(end_dim=1), labels.flatten()).backward()
    for name, other_name in (
        ("embedding.weight", "model.embed_tokens.weight"),
        ("layers.1.attention.query.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("layers.1.attention.key.weight", "model.layers.1.self_attn.k_proj.weight"),
        ("layers.3.mlp.gate.weight", "model.layers.3.mlp.gate_proj.weight"),
        ("layers.0.attention_norm.weight", "model.layers.0.input_layernorm.weight"),
    ):
        gradient, other_gradient = reference.get_parameter(name).grad, other.get_parameter(other_name).grad
        torch.testing.assert_close(gradient, other_gradient, atol=1e-6, rtol=1e-4)


def test_logits_control_another_group_order_differs():
    shape = tiny_shape()
    state = random_megatron_state(shape, seed=0)
    model = ReferenceLlama(shape)
    tokens, _ = random_batch(shape, seed=1)
    load_from_megatron_state(model, state)
    logits = model(tokens)
    name = "decoder.layers.0.self_attention.linear_qkv.weight"
    load_from_megatron_state(model, {**state, name: state[name].roll(shape.kv_channels, dims=0)})
    assert (model(tokens) - logits).abs().max() > 1e-2


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_megatron_state_round_trip(shape):
    state = random_megatron_state(shape, seed=3)
    model = ReferenceLlama(shape)
    load_from_megatron_state(model, state)
    again = to_megatron_state(model)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_left_over_and_missing_weights_are_errors():
    shape = tiny_shape(tied_embeddings=True)
    state = random_megatron_state(shape, seed=0)
    with pytest.raises(KeyError, match="output_layer"):
        load_from_megatron_state(ReferenceLlama(shape), {**state, "output_layer.weight": torch.zeros(256, 64)})
    del state["decoder.final_layernorm.weight"]
    with pytest.raises(KeyError, match="final_layernorm"):
        load_from_megatron_state(ReferenceLlama(shape), state)


def train_hugging_face(plan, state, batches, *, learning_rate):
    """Clip and decay by hand, on the whole batch at once."""
    model = llama_from_megatron(plan.shape, state)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}
    wanted, results = plan.optimizer, []
    for step, micro_batches in enumerate(batches):
        tokens, labels = (torch.cat(parts) for parts in zip(*micro_batches, strict=True))
        model.zero_grad()
        loss = F.cross_entropy(model(tokens).logits.flatten(end_dim=1), labels.flatten())
        loss.backward()
        norm = sum(p.grad.double().square().sum() for p in model.parameters()).sqrt().item()
        scale = min(1.0, wanted.gradient_clipping / norm)
        rate = learning_rate(step)
        with torch.no_grad():
            for name, p in model.named_parameters():
                first, second = moments[name]
                first.lerp_(scale * p.grad, 1 - wanted.beta1)
                second.lerp_((scale * p.grad).square(), 1 - wanted.beta2)
                corrected = (second / (1 - wanted.beta2 ** (step + 1))).sqrt() + wanted.epsilon
                if "norm" not in name:
                    p.mul_(1 - rate * wanted.weight_decay)
                p.sub_(rate * first / (1 - wanted.beta1 ** (step + 1)) / corrected)
        results.append((loss.item(), norm))
    return results


@pytest.mark.parametrize("tied", [False, True])
def test_training_equals_a_loop_by_hand(tied):
    plan = tiny_plan(shape=tiny_shape(tied_embeddings=tied), gradient_clipping=0.5)
    state = random_megatron_state(plan.shape, seed=0)
    batches = [[random_batch(plan.shape, seed=10 * step + part) for part in range(4)] for step in range(5)]

    def learning_rate(step: int) -> float:
        return 1e-2 / (step + 1)

    results, model = train_reference(state, batches, plan, learning_rate=learning_rate)
    expected = train_hugging_face(plan, state, batches, learning_rate=learning_rate)
    assert [norm > 0.5 for _, norm in expected].count(True) >= 1, "no step was clipped"
    for result, wanted in zip(results, expected, strict=True):
        assert result == pytest.approx(wanted, rel=1e-5)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_training_control_another_seed_differs():
    plan = tiny_plan()
    batches = [[random_batch(plan.shape, seed=step)] for step in range(2)]
    runs = [
        train_reference(random_megatron_state(plan.shape, seed=seed), batches, plan, learning_rate=lambda _: 1e-2)[0]
        for seed in (0, 1)
    ]
    assert runs[0][1] != pytest.approx(runs[1][1], rel=1e-3)
