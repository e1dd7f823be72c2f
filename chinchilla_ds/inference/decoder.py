"""The decoder for inference: plain PyTorch, without Megatron-core, DeepSpeed or a backward pass.

It computes what `model.decoder` computes, from the same weights in the same order: `linear_qkv` interleaved by query
group, `linear_fc1` as [gate; up].

Shapes, TP-local: b prompts, s new tokens, h hidden, n attention heads, g query groups, r = n/g heads of a group,
d kv_channels, f ffn_hidden_size, l cached places, v padded vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chinchilla_ds.inference.cache import KvCache
from chinchilla_ds.inference.ranks import ModelRanks, check_divides
from chinchilla_ds.run_plan import ModelShape, RunPlan
from chinchilla_ds.weights import TABLE, WeightKind, held_kinds


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all layers share in one forward pass."""

    cos: Tensor
    """Cosines of the new tokens' rotary angles, [b or 1, s, 1, 1, d]."""
    sin: Tensor
    """Sines of the same angles."""
    mask: Tensor | None
    """True where a new token may attend, [b or 1, 1, s, l]; None: all earlier tokens and itself."""
    cache: KvCache | None
    at: slice | Tensor
    """Where in the cache the new tokens go."""


def rotary_tables(shape: ModelShape, *, num_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary angles, fp32 [positions, d]; channel i is rotated with channel i + d/2.

    Args:
        shape: The decoder, for its head width and rotary base.
        num_positions: Number of positions.
        device: Device of the tables.

    Source: Su et al. 2021 (arXiv:2104.09864), section 3.4.2.
    """
    channels = torch.arange(0, shape.kv_channels, 2, dtype=torch.float32, device=device)
    inverse_frequencies = 1.0 / shape.rotary_base ** (channels / shape.kv_channels)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32, device=device), inverse_frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, context: Context) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * context.cos + torch.cat((-second, first), dim=-1) * context.sin


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None) -> Tensor:
    """Return [b, s, n * d] from queries [b, s, g, r, d], keys and values [b, g, l, d].

    Without a mask a single new token attends to every place, and several attend causally. The heads of a group are
    stacked as if they were additional queries, so that keys and values need not be repeated for them.

    Args:
        query: [b, s, g, r, d]
        key: [b, g, l, d]
        value: [b, g, l, d]
        mask: True where attention is allowed, [b or 1, 1, s, l]; None: causal.
    """
    b, s, g, r, d = query.shape
    if mask is None and s > 1 and r > 1:
        out = _attend_causally(query, key, value)
    else:
        stacked = query.permute(0, 2, 3, 1, 4).reshape(b, g, r * s, d)
        if mask is not None and r > 1:
            mask = mask.repeat(1, 1, r, 1)
        out = F.scaled_dot_product_attention(
            stacked, key, value, attn_mask=mask, is_causal=mask is None and s > 1
        ).view(b, g, r, s, d)
    return out.permute(0, 3, 1, 2, 4).reshape(b, s, g * r * d)


def _attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return [b, g, r, s, d]; torch's CPU kernel lacks grouped queries, so keys and values are repeated there."""
    b, s, g, r, d = query.shape
    heads = query.permute(0, 2, 3, 1, 4).reshape(b, g * r, s, d)
    grouped = heads.is_cuda
    if not grouped:
        key, value = key.repeat_interleave(r, dim=1), value.repeat_interleave(r, dim=1)
    out = F.scaled_dot_product_attention(heads, key, value, is_causal=True, enable_gqa=grouped)
    return out.view(b, g, r, s, d)


class Layer(nn.Module):
    """Attention, then SwiGLU, each applied to the normalised residual stream and added back to it."""

    input_layernorm: nn.Parameter
    linear_qkv: nn.Parameter
    q_layernorm: nn.Parameter | None
    k_layernorm: nn.Parameter | None
    linear_proj: nn.Parameter
    pre_mlp_layernorm: nn.Parameter
    linear_fc1: nn.Parameter
    linear_fc2: nn.Parameter

    def __init__(self, shape: ModelShape, *, ranks: ModelRanks, index: int) -> None:
        """Allocate the weights of this tensor-parallel rank.

        Args:
            shape: The decoder.
            ranks: The layout for inference.
            index: Number of the layer within the stage.
        """
        super().__init__()
        self.ranks, self.index, self.epsilon = ranks, index, shape.norm_epsilon
        self.groups = shape.num_query_groups // ranks.tp_size
        self.heads_per_group = shape.num_attention_heads // shape.num_query_groups
        self.kv_channels = shape.kv_channels
        _make_room(self, shape, in_layers=True, held=held_kinds(shape), tensor=ranks.tp_size)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Run on the residual stream [b, s, h]."""
        x = x + self._attention(F.rms_norm(x, x.shape[-1:], self.input_layernorm, self.epsilon), context)
        return x + self._mlp(F.rms_norm(x, x.shape[-1:], self.pre_mlp_layernorm, self.epsilon))

    def _attention(self, x: Tensor, context: Context) -> Tensor:
        mixed = F.linear(x, self.linear_qkv)
        b, s, _ = mixed.shape
        mixed = mixed.view(b, s, self.groups, self.heads_per_group + 2, self.kv_channels)  # [b, s, g, r + 2, d]
        turned = _rotate(self._normed(mixed[..., :-1, :]), context)
        key, value = turned[..., -1, :].transpose(1, 2), mixed[..., -1, :].transpose(1, 2)  # [b, g, s, d]
        if context.cache is not None:
            key, value = context.cache.put(self.index, key, value, at=context.at)
        out = attend(turned[..., :-1, :], key, value, mask=context.mask)
        return self.ranks.sum_over_tp(F.linear(out, self.linear_proj))

    def _normed(self, heads: Tensor) -> Tensor:
        """Normalise the queries and the key of each group, [b, s, g, r + 1, d], if the decoder has QK-norm."""
        if self.q_layernorm is None:
            return heads
        channels = heads.shape[-1:]
        queries = F.rms_norm(heads[..., :-1, :], channels, self.q_layernorm, self.epsilon)
        key = F.rms_norm(heads[..., -1:, :], channels, self.k_layernorm, self.epsilon)
        return torch.cat((queries, key), dim=-2)

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.linear_fc1).chunk(2, dim=-1)
        return self.ranks.sum_over_tp(F.linear(F.silu(gate) * up, self.linear_fc2))


class InferenceDecoder(nn.Module):
    """This rank's stage of the decoder. Every rank calls it with the same tokens and gets the same logits."""

    word_embeddings: nn.Parameter | None
    final_layernorm: nn.Parameter | None
    output_layer: nn.Parameter | None

    def __init__(self, plan: RunPlan, *, ranks: ModelRanks, eod_id: int, dtype: torch.dtype) -> None:
        """Allocate the weights; `inference.load.load_decoder` fills them.

        Args:
            plan: Gives the shape, and whether attention stays within documents.
            ranks: The layout for inference, independent of that of training.
            eod_id: The token that ends a document.
            dtype: Type of weights and activations; logits are fp32.

        Raises:
            LayoutError: the layout cannot divide this shape.
        """
        super().__init__()
        check_divides(plan.shape, ranks=ranks)
        self.shape, self.ranks, self.dtype = plan.shape, ranks, dtype
        self.masked_eod_id = eod_id if plan.document_mask else None
        held = held_kinds(self.shape, is_first=ranks.is_first_stage, is_last=ranks.is_last_stage)
        _make_room(self, self.shape, in_layers=False, held=held, tensor=ranks.tp_size)
        self.layers = nn.ModuleList(
            Layer(self.shape, ranks=ranks, index=index) for index in range(len(ranks.layers_of_stage(self.shape)))
        )
        self._tables: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def new_cache(self, *, padding: Tensor, max_length: int) -> KvCache:
        """Return an empty cache of this stage for rows with `padding` [b] and room for `max_length` places."""
        return KvCache(
            num_layers=len(self.layers),
            padding=padding,
            num_query_groups=self.shape.num_query_groups // self.ranks.tp_size,
            max_length=max_length,
            kv_channels=self.shape.kv_channels,
            dtype=self.dtype,
        )

    def forward(self, tokens: Tensor, *, cache: KvCache | None = None, num_logits: int | None = None) -> Tensor:
        """Return the next-token logits after each of the last `num_logits` tokens, fp32 [b, num_logits, v].

        Args:
            tokens: [b, s]; with a cache, those that follow the ones in it.
            cache: Receives the keys and values of the tokens.
            num_logits: Positions whose logits are computed, fewer being cheaper; None: all.
        """
        hidden = self._hidden(tokens, self._context(tokens, cache=cache))
        num_logits = tokens.size(1) if num_logits is None else num_logits
        return self._logits(hidden, batch_size=len(tokens), num_logits=num_logits)

    def step(self, tokens: Tensor, place: Tensor, cache: KvCache) -> Tensor:
        """Return the logits [b, 1, v] after one more token of each row, by operations whose shapes never change.

        This is what `torch.compile` compiles: attention reads all places of the cache and masks the unfilled ones.

        Args:
            tokens: [b, 1]
            place: Its place in the cache, int64 [1].
            cache: The cache; the caller advances its `length`.
        """
        cache.tokens.index_copy_(1, place, tokens)
        places = torch.arange(cache.max_length, device=tokens.device)
        cos, sin = self._angles(place - cache.padding.unsqueeze(1))
        mask = self._visible(cache.tokens, places=place, all_places=places, padding=cache.padding)
        hidden = self._hidden(tokens, Context(cos=cos, sin=sin, mask=mask, cache=cache, at=place))
        return self._logits(hidden, batch_size=len(tokens), num_logits=1)

    def token_losses(self, tokens: Tensor, labels: Tensor, *, vocab_size: int) -> Tensor:
        """Return the cross entropy of each label without a cache, fp32 nats [b, s], on every rank.

        Args:
            tokens: [b, s]
            labels: The tokens that follow them, [b, s].
            vocab_size: Tokens of the tokenizer. The rows above are padding: they get no probability, as in an exported
                model. Training includes them, and learns that they never occur.
        """
        hidden = self._hidden(tokens, self._context(tokens, cache=None))
        losses = torch.empty(tokens.shape, dtype=torch.float32, device=tokens.device)
        if hidden is not None:
            logits = self._own_logits(hidden)[..., :vocab_size]
            losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(tokens.shape)
        return self.ranks.share_from_last_stage(losses)

    def _context(self, tokens: Tensor, *, cache: KvCache | None) -> Context:
        s = tokens.size(1)
        start = cache.length if cache is not None else 0
        at, places = slice(start, start + s), torch.arange(start + s, device=tokens.device)
        positions = places[start:].unsqueeze(0)
        seen, padding = tokens, None
        if cache is not None:
            assert at.stop <= cache.max_length, f"no room for place {at.stop} in a cache of {cache.max_length}"
            cache.tokens[:, at] = tokens
            cache.length, seen = at.stop, cache.tokens[:, : at.stop]
            if cache.is_padded:
                padding = cache.padding
                positions = (positions - padding.unsqueeze(1)).clamp(min=0)
        cos, sin = self._angles(positions)
        mask = None
        if padding is not None or self.masked_eod_id is not None or (s > 1 and start > 0):
            mask = self._visible(seen, places=places[start:], all_places=places, padding=padding)
        return Context(cos=cos, sin=sin, mask=mask, cache=cache, at=at)

    def _visible(self, tokens: Tensor, *, places: Tensor, all_places: Tensor, padding: Tensor | None) -> Tensor:
        """Return which places the tokens at `places` [s] may attend to: a boolean [b or 1, 1, s, l].

        They attend to earlier tokens of their document that are not padding. Padding attends to itself, since a softmax
        over nothing is undefined.
        """
        itself = all_places == places.unsqueeze(1)  # [s, l]
        visible = (all_places <= places.unsqueeze(1)).unsqueeze(0)
        if padding is not None:
            visible = visible & (all_places >= padding.view(-1, 1, 1))
        if self.masked_eod_id is not None:
            ends = (tokens == self.masked_eod_id).int()
            documents = ends.cumsum(dim=1) - ends  # [b, l]: the end belongs to its document
            visible = visible & (documents.unsqueeze(1) == documents[:, places].unsqueeze(2))
        return (visible | itself).unsqueeze(1)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of positions [b or 1, s], in the compute type, [b or 1, s, 1, 1, d]."""
        if self._tables is None:
            cos, sin = rotary_tables(self.shape, num_positions=self.shape.seq_length, device=positions.device)
            self._tables = cos.to(self.dtype), sin.to(self.dtype)
        cos, sin = self._tables
        return cos[positions][:, :, None, None], sin[positions][:, :, None, None]

    def _hidden(self, tokens: Tensor, context: Context) -> Tensor | None:
        """Return the last stage's hidden states [b, s, h] before the final norm; None on other stages."""
        ranks = self.ranks
        if ranks.is_first_stage:
            x = self._embed(tokens)
        else:
            shape = (*tokens.shape, self.shape.hidden_size)
            x = ranks.receive(torch.empty(shape, dtype=self.dtype, device=tokens.device))
        for layer in self.layers:
            x = layer(x, context)
        if ranks.is_last_stage:
            return x
        ranks.send(x)
        return None

    def _embed(self, tokens: Tensor) -> Tensor:
        """Return [b, s, h]; each tensor-parallel rank holds a part of the rows and adds zeros for the others."""
        table = self.word_embeddings
        assert table is not None, "the first stage holds the embedding"
        if self.ranks.tp_size == 1:
            return F.embedding(tokens, table)
        local = tokens - self.ranks.tp_rank * len(table)
        outside = (local < 0) | (local >= len(table))
        x = F.embedding(local.masked_fill(outside, 0), table)
        return self.ranks.sum_over_tp(x.masked_fill(outside.unsqueeze(-1), 0.0))

    def _logits(self, hidden: Tensor | None, *, batch_size: int, num_logits: int) -> Tensor:
        if hidden is None:
            shape = (batch_size, num_logits, self.shape.padded_vocab_size)
            logits = torch.empty(shape, dtype=torch.float32, device=self.device)
        else:
            logits = self._own_logits(hidden[:, hidden.size(1) - num_logits :])
        return self.ranks.share_from_last_stage(logits)

    def _own_logits(self, hidden: Tensor) -> Tensor:
        """Return the last stage's logits, fp32 [b, num_logits, v]."""
        weight = self.word_embeddings if self.output_layer is None else self.output_layer
        assert weight is not None, "the last stage holds the output layer"
        normed = F.rms_norm(hidden, hidden.shape[-1:], self.final_layernorm, self.shape.norm_epsilon)
        return self.ranks.join_vocab(F.linear(normed, weight)).float().contiguous()


def _make_room(
    module: nn.Module, shape: ModelShape, *, in_layers: bool, held: Collection[WeightKind], tensor: int
) -> None:
    """Give a module an empty parameter for each weight that it holds, under its name, and None for the others.

    Args:
        module: One layer, or the decoder.
        shape: The decoder's shape.
        in_layers: Whether to allocate the weights of one layer, or those outside the layers.
        held: The kinds of weights that this stage holds.
        tensor: The tensor-parallel size.
    """
    for kind in TABLE:
        if kind.in_layers is in_layers:
            room = torch.empty(kind.local_shape(shape, tensor=tensor), device="meta")
            parameter = nn.Parameter(room, requires_grad=False) if kind in held else None
            module.register_parameter(kind.attribute, parameter)
