"""An independent Llama-style decoder in plain PyTorch: the single-process truth that the parity tests compare with.

It shares no code with chinchilla_ds.model: explicit softmax attention, rotary positions rotated by halves, RMSNorm and
SwiGLU, all written out. Only `load_from_megatron_state` knows how Megatron-core stores its weights.

Shapes: b sequences, s tokens, h hidden_size, n attention heads, g query groups (key/value heads), d kv_channels,
f ffn_hidden_size, v padded_vocab_size. Activations are [b, s, h].
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_ds.run_plan import ModelShape, RunPlan

MicroBatch = tuple[Tensor, Tensor]
"""Tokens and labels, both [b, s]; labels[:, i] is the token after tokens[:, i]."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension. Source: Zhang and Sennrich 2019 (arXiv:1910.07467), equation 4."""

    def __init__(self, hidden_size: int, *, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.epsilon) * self.weight


def rotary_tables(*, seq_length: int, kv_channels: int, base: float) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the rotary angles, both [s, d]; the second half of d repeats the first.

    Source: Su et al. 2021 (arXiv:2104.09864), section 3.4.2, in the layout of GPT-NeoX: channel i turns with i + d/2.
    """
    frequencies = base ** (-torch.arange(0, kv_channels, 2, dtype=torch.float32) / kv_channels)
    angles = torch.outer(torch.arange(seq_length, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn every head's channel pairs of x [b, n, s, d] by the angle of their position."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped queries: n/g query heads share one key/value head.

    With QK-norm every head's query and key are normed before rotation. Source: Qwen Team 2025 (arXiv:2505.09388).
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        query_width = shape.num_attention_heads * shape.kv_channels
        key_value_width = shape.num_query_groups * shape.kv_channels
        self.query = nn.Linear(shape.hidden_size, query_width, bias=False)
        self.key = nn.Linear(shape.hidden_size, key_value_width, bias=False)
        self.value = nn.Linear(shape.hidden_size, key_value_width, bias=False)
        self.output = nn.Linear(query_width, shape.hidden_size, bias=False)
        if shape.qk_norm:
            self.query_norm = RMSNorm(shape.kv_channels, epsilon=shape.norm_epsilon)
            self.key_norm = RMSNorm(shape.kv_channels, epsilon=shape.norm_epsilon)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads_per_group = self.shape.num_attention_heads // self.shape.num_query_groups
        query, key = self._split_heads(self.query(x)), self._split_heads(self.key(x))  # [b, n, s, d], [b, g, s, d]
        if self.shape.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query = rotate(query, cos, sin)
        key = rotate(key, cos, sin).repeat_interleave(heads_per_group, dim=1)
        value = self._split_heads(self.value(x)).repeat_interleave(heads_per_group, dim=1)
        scores = query @ key.transpose(-1, -2) / self.shape.kv_channels**0.5  # [b, n, s, s]
        future = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).triu(diagonal=1)
        weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        merged: Tensor = self.output((weights @ value).transpose(1, 2).flatten(start_dim=2))
        return merged

    def _split_heads(self, x: Tensor) -> Tensor:
        """[b, s, heads * d] -> [b, heads, s, d]."""
        return x.reshape(*x.shape[:2], -1, self.shape.kv_channels).transpose(1, 2)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020 (arXiv:2002.05202), equation 6."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.hidden_size, shape.ffn_hidden_size, bias=False)
        self.up = nn.Linear(shape.hidden_size, shape.ffn_hidden_size, bias=False)
        self.down = nn.Linear(shape.ffn_hidden_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return out


class Layer(nn.Module):
    """Attention, then SwiGLU, each on the normed residual stream and added back to it."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.hidden_size, epsilon=shape.norm_epsilon)
        self.attention = Attention(shape)
        self.mlp_norm = RMSNorm(shape.hidden_size, epsilon=shape.norm_epsilon)
        self.mlp = SwiGLU(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class ReferenceLlama(nn.Module):
    """The decoder of a plan's shape. Source: Touvron et al. 2023 (arXiv:2302.13971), section 2.2."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.padded_vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.final_norm = RMSNorm(shape.hidden_size, epsilon=shape.norm_epsilon)
        self.output = nn.Linear(shape.hidden_size, shape.padded_vocab_size, bias=False)
        if shape.tied_embeddings:
            self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [b, s, v] of tokens [b, s]."""
        cos, sin = rotary_tables(
            seq_length=tokens.size(1), kv_channels=self.shape.kv_channels, base=self.shape.rotary_base
        )
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, cos.to(x), sin.to(x))
        logits: Tensor = self.output(self.final_norm(x))
        return logits

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over all positions, in nats per token."""
        return F.cross_entropy(self(tokens).flatten(end_dim=1), labels.flatten())


@torch.no_grad()
def load_from_megatron_state(model: ReferenceLlama, full_state: Mapping[str, Tensor]) -> None:
    """Copy the full (gathered over TP, PP and ZeRO) weights of a Megatron-core GPTModel into the reference.

    Raises:
        KeyError: a weight is missing, or one is left over.
    """
    state = dict(full_state)
    shape = model.shape
    _copy(model.embedding.weight, state.pop("embedding.word_embeddings.weight"))
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        prefix = f"decoder.layers.{number}."
        query, key, value = split_qkv(state.pop(prefix + "self_attention.linear_qkv.weight"), shape)
        gate, up = state.pop(prefix + "mlp.linear_fc1.weight").chunk(2)
        _copy(layer.attention_norm.weight, state.pop(prefix + "input_layernorm.weight"))
        _copy(layer.attention.query.weight, query)
        _copy(layer.attention.key.weight, key)
        _copy(layer.attention.value.weight, value)
        if shape.qk_norm:
            _copy(layer.attention.query_norm.weight, state.pop(prefix + "self_attention.q_layernorm.weight"))
            _copy(layer.attention.key_norm.weight, state.pop(prefix + "self_attention.k_layernorm.weight"))
        _copy(layer.attention.output.weight, state.pop(prefix + "self_attention.linear_proj.weight"))
        _copy(layer.mlp_norm.weight, state.pop(prefix + "pre_mlp_layernorm.weight"))
        _copy(layer.mlp.gate.weight, gate)
        _copy(layer.mlp.up.weight, up)
        _copy(layer.mlp.down.weight, state.pop(prefix + "mlp.linear_fc2.weight"))
    _copy(model.final_norm.weight, state.pop("decoder.final_layernorm.weight"))
    if not shape.tied_embeddings:
        _copy(model.output.weight, state.pop("output_layer.weight"))
    if state:
        raise KeyError(f"weights that the reference has no place for: {sorted(state)}")


def split_qkv(weight: Tensor, shape: ModelShape) -> tuple[Tensor, Tensor, Tensor]:
    """Split Megatron's [g x (n/g queries, one key, one value) x d, h] into query [n d, h], key and value [g d, h]."""
    heads_per_group = shape.num_attention_heads // shape.num_query_groups
    groups = weight.reshape(shape.num_query_groups, heads_per_group + 2, shape.kv_channels, -1)
    query, key, value = groups[:, :-2], groups[:, -2], groups[:, -1]
    return query.flatten(end_dim=2), key.flatten(end_dim=1), value.flatten(end_dim=1)


def to_megatron_state(model: ReferenceLlama, *, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return the reference's weights, or `values` by its parameter names (gradients, say), under Megatron's names."""
    shape = model.shape
    of = dict(values if values is not None else model.named_parameters())
    full = {
        "embedding.word_embeddings.weight": of["embedding.weight"],
        "decoder.final_layernorm.weight": of["final_norm.weight"],
    }
    if not shape.tied_embeddings:
        full["output_layer.weight"] = of["output.weight"]
    for number in range(shape.num_layers):
        prefix, own = f"decoder.layers.{number}.", f"layers.{number}."
        by_group = [
            of[f"{own}attention.{name}.weight"].reshape(shape.num_query_groups, -1, shape.hidden_size)
            for name in ("query", "key", "value")
        ]
        full[prefix + "input_layernorm.weight"] = of[own + "attention_norm.weight"]
        full[prefix + "self_attention.linear_qkv.weight"] = torch.cat(by_group, dim=1).flatten(end_dim=1)
        if shape.qk_norm:
            full[prefix + "self_attention.q_layernorm.weight"] = of[own + "attention.query_norm.weight"]
            full[prefix + "self_attention.k_layernorm.weight"] = of[own + "attention.key_norm.weight"]
        full[prefix + "self_attention.linear_proj.weight"] = of[own + "attention.output.weight"]
        full[prefix + "pre_mlp_layernorm.weight"] = of[own + "mlp_norm.weight"]
        gate_up = [of[own + "mlp.gate.weight"], of[own + "mlp.up.weight"]]
        full[prefix + "mlp.linear_fc1.weight"] = torch.cat(gate_up)
        full[prefix + "mlp.linear_fc2.weight"] = of[own + "mlp.down.weight"]
    return {name: tensor.detach().clone() for name, tensor in full.items()}


def random_megatron_state(shape: ModelShape, *, seed: int) -> dict[str, Tensor]:
    """Return random full weights under Megatron's names; norms too are random, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    state = to_megatron_state(ReferenceLlama(shape))
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        state[name] = 1 + 0.1 * noise if tensor.dim() == 1 else 0.1 * noise
    return state


def train_reference(
    state: Mapping[str, Tensor],
    micro_batches_per_step: Sequence[Sequence[MicroBatch]],
    plan: RunPlan,
    *,
    learning_rate: Callable[[int], float],
) -> tuple[list[tuple[float, float]], ReferenceLlama]:
    """Train the reference from `state` in one process; return (loss, gradient norm) of every step, and the model.

    Args:
        state: full weights to start from, under Megatron's names.
        micro_batches_per_step: the micro-batches of each optimizer step, those of all data-parallel ranks together.
            They must be of one size: the loss of a step is the mean of theirs.
        plan: gives the shape and the optimizer; its layout plays no part.
        learning_rate: of step 0, 1, ...
    """
    model = ReferenceLlama(plan.shape)
    load_from_megatron_state(model, state)
    optimizer = make_adamw(model, plan)
    results = []
    for step, micro_batches in enumerate(micro_batches_per_step):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        results.append(train_step(model, optimizer, micro_batches, gradient_clipping=plan.optimizer.gradient_clipping))
    return results, model


def make_adamw(model: ReferenceLlama, plan: RunPlan) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves norms alone."""
    parameters = list(model.parameters())
    wanted = plan.optimizer
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": wanted.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=wanted.learning_rate, betas=(wanted.beta1, wanted.beta2), eps=wanted.epsilon)


def train_step(
    model: ReferenceLlama,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    *,
    gradient_clipping: float,
) -> tuple[float, float]:
    """Take one optimizer step; return the mean loss and the gradient norm before clipping (0 clips nothing)."""
    optimizer.zero_grad()
    loss_of_step = 0.0
    for tokens, labels in micro_batches:
        loss = model.loss(tokens, labels) / len(micro_batches)
        loss.backward()
        loss_of_step += loss.item()
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), gradient_clipping or float("inf"))
    optimizer.step()
    return loss_of_step, grad_norm.item()


def _copy(parameter: Tensor, value: Tensor) -> None:
    assert parameter.shape == value.shape, f"{tuple(parameter.shape)} cannot take {tuple(value.shape)}"
    parameter.copy_(value)
