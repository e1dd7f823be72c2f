"""From a parameter count to a discrete decoder shape, independent of the layout: every layout trains the same model."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters, layer_params
from chinchilla_ds.run_plan import DecoderSwitches, ModelShape

VOCAB_ALIGNMENT = 128
"""padded_vocab_size is a multiple of this, for every layout."""
MAX_LAYERS = 256
FFN_ALIGNMENT = 64
COARSE_BELOW = 2048
"""Hidden size below which a single layer is a large part of the model."""
FLOPS_TOLERANCE = 0.02
"""Largest difference in the logarithm between a shape's FLOPs per token and those wanted."""
MAX_RELATIVE_MISS = 1.25
"""Largest factor between the N of a shape and the wanted N."""

_SEQ_LENGTH_BY_BUDGET = ((1e15, 256), (1e16, 512), (1e18, 1024), (math.inf, 2048))
_VOCAB_BY_BUDGET = (
    (1e12, 512),
    (1e14, 1024),
    (1e15, 2048),
    (1e16, 4096),
    (1e17, 8192),
    (1e19, 16384),
    (math.inf, 32000),
)
GQA_MIN_PARAMS = 1e9
"""From this N up, heads share keys and values in GQA_GROUPS groups."""
GQA_GROUPS = 8
"""Source: Dubey et al. 2024 (arXiv:2407.21783), table 3: 8 at every size."""


@dataclass(frozen=True, kw_only=True)
class ShapeRequest(DecoderSwitches):
    """The requirements of the search."""

    num_params: float
    """Wanted N, embeddings included."""
    vocab_size: int
    seq_length: int

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table."""
        return pad_vocab(vocab_size=self.vocab_size)


def choose_vocab_size(*, compute_budget_flops: float) -> int:
    """Return the vocabulary for a budget: 32000 from 1e19 FLOPs, smaller powers of two below.

    The rule keeps the two embedding tables at a fifth to two fifths of N*, so that a small budget is not spent on rows
    that are rarely seen.

    Source: ours; that the best vocabulary grows with compute, more slowly than N, is Tao et al. 2024
    (arXiv:2407.13623), and 32000 is the vocabulary of Hoffmann et al. 2022 (arXiv:2203.15556).
    """
    return next(size for limit, size in _VOCAB_BY_BUDGET if compute_budget_flops < limit)


def choose_seq_length(*, compute_budget_flops: float) -> int:
    """Return the context for a budget in tokens: 2048 from 1e18 FLOPs, as in Hoffmann et al. 2022; less below (ours).

    Short sequences keep attention a small part of a small model's FLOPs, and give enough sequences from few tokens.
    """
    return next(length for limit, length in _SEQ_LENGTH_BY_BUDGET if compute_budget_flops < limit)


def pad_vocab(*, vocab_size: int) -> int:
    """Return vocab_size rounded up to a multiple of VOCAB_ALIGNMENT."""
    return -(-vocab_size // VOCAB_ALIGNMENT) * VOCAB_ALIGNMENT


def target_aspect_ratio(*, num_params: float) -> float:
    """Return the wanted hidden_size / num_layers: 128 from 7e9 parameters, 55 at 1e8, 19 at 5e5.

    Source: ours, through shapes that are known to train well (Llama 2 7B: 128; GPT-2 small: 64). Loss is flat around
    it: Kaplan et al. 2020 (arXiv:2001.08361), figure 5, under 3 % for a fortyfold change.
    """
    return float(max(8.0, min(128.0, 128.0 * (num_params / 7e9) ** 0.2)))


def search_shape(
    *, request: ShapeRequest, loss_excess: Callable[[ModelShape], float] | None = None
) -> ModelShape | None:
    """Return the shape nearest to the request, or None if none is within MAX_RELATIVE_MISS of its N.

    Ten per cent in N weighs as much as a factor of two in aspect ratio, ten per cent in FFN width, or 0.02 % in loss
    either way; ties go to the smaller model.

    Args:
        request: what is wanted.
        loss_excess: predicted loss of a shape over that of the continuous optimum, less 1; None: the loss is ignored.
    """
    shapes = list(_candidates(request))
    if loss_excess is not None:
        shapes = [varied for shape in shapes for varied in _with_ffn_widths(shape)]
    fits = [
        (_misfit(shape, num_params, request) + _loss_misfit(shape, loss_excess), num_params, shape)
        for shape, num_params in ((shape, count_parameters(shape=shape).total) for shape in shapes)
        if abs(math.log(num_params / request.num_params)) <= math.log(MAX_RELATIVE_MISS)
    ]
    return min(fits, key=lambda fit: fit[:2])[2] if fits else None


def shape_with_flops(preferred: ModelShape | None, /, *, request: ShapeRequest, flops_per_token: float) -> ModelShape:
    """Return a shape in the FFN width whose FLOPs per token are those wanted, for a budget and tokens that are given.

    Used if both a budget and a number of tokens are given, which steps in layers or hidden size would not meet. If no
    FFN of the preferred shape is narrow or wide enough, it is the shape nearest to the request that meets them;
    otherwise the one of the nearest FLOPs.

    Args:
        preferred: the shape nearest to the request; None: there is none.
        request: the requirements.
        flops_per_token: model FLOPs, forward and backward.
    """

    def miss(shape: ModelShape) -> float:
        return abs(math.log(decoder_flops_per_token(shape=shape) / flops_per_token))

    if preferred is not None and miss(fitted := _with_flops(preferred, flops_per_token)) <= FLOPS_TOLERANCE:
        return fitted
    shapes = [_with_flops(shape, flops_per_token) for shape in (*_candidates(request), smallest_shape(request=request))]
    shapes.append(smallest_shape(request=request))
    near = [shape for shape in shapes if miss(shape) <= FLOPS_TOLERANCE]
    if not near:
        return min(shapes, key=miss)
    return min(near, key=lambda shape: _misfit(shape, count_parameters(shape=shape).total, request))


def _with_flops(shape: ModelShape, flops_per_token: float) -> ModelShape:
    """Return the shape with the FFN width, to a multiple of 64, whose FLOPs per token are nearest to those wanted."""
    per_channel = decoder_flops_per_token(shape=dataclasses.replace(shape, ffn_hidden_size=shape.ffn_hidden_size + 1))
    per_channel -= decoder_flops_per_token(shape=shape)
    missing = (flops_per_token - decoder_flops_per_token(shape=shape)) / per_channel
    width = round((shape.ffn_hidden_size + missing) / FFN_ALIGNMENT) * FFN_ALIGNMENT
    return dataclasses.replace(shape, ffn_hidden_size=max(FFN_ALIGNMENT, width))


def smallest_shape(*, request: ShapeRequest) -> ModelShape:
    """Return the smallest shape of the search for this vocabulary."""
    return _make_shape(request, hidden_size=next(_hidden_sizes()), num_layers=2)


def _misfit(shape: ModelShape, num_params: int, request: ShapeRequest) -> float:
    wanted = request.num_params
    aspect = shape.hidden_size / shape.num_layers
    size_miss = math.log(num_params / wanted) / math.log(1.1)
    aspect_miss = math.log(aspect / target_aspect_ratio(num_params=wanted)) / math.log(2)
    ffn_miss = math.log(shape.ffn_hidden_size / _ffn_hidden_size(shape.hidden_size)) / math.log(1.1)
    return size_miss**2 + aspect_miss**2 + ffn_miss**2


def _loss_misfit(shape: ModelShape, loss_excess: Callable[[ModelShape], float] | None) -> float:
    return 0.0 if loss_excess is None else float((loss_excess(shape) / 0.0002) ** 2)


def _with_ffn_widths(shape: ModelShape) -> Iterator[ModelShape]:
    """Yield the shape and its neighbours in FFN width, where steps of layers and hidden size are coarse."""
    yield shape
    if COARSE_BELOW > shape.hidden_size >= 512:
        for steps in (-3, -2, -1, 1, 2, 3):
            yield dataclasses.replace(shape, ffn_hidden_size=shape.ffn_hidden_size + steps * FFN_ALIGNMENT)


def _candidates(request: ShapeRequest) -> Iterator[ModelShape]:
    """Yield, for each hidden size, the layer counts just below and just above the wanted N."""
    for hidden_size in _hidden_sizes():
        probe = _make_shape(request, hidden_size=hidden_size, num_layers=2)
        room = request.num_params - count_parameters(shape=probe).embedding
        layers = room / layer_params(probe)
        if layers > MAX_LAYERS:
            continue
        step = 2 if layers <= 16 else 4
        below = max(2, int(layers // step) * step)
        for num_layers in (below, below + step):
            yield _make_shape(request, hidden_size=hidden_size, num_layers=num_layers)
        if room < 0:
            return


def _hidden_sizes() -> Iterator[int]:
    """Yield hidden sizes whose heads come in twos, fours (from 2048) and eights (from 4096), for tensor parallelism."""
    yield 32
    yield from range(64, 512, 64)
    yield from range(512, 1024, 128)
    yield from range(1024, 2048, 256)
    yield from range(2048, 4096, 512)
    yield from range(4096, 65536 + 1, 1024)


def _make_shape(request: ShapeRequest, *, hidden_size: int, num_layers: int) -> ModelShape:
    kv_channels = kv_channels_of(hidden_size)
    heads = hidden_size // kv_channels
    return ModelShape(
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=_ffn_hidden_size(hidden_size),
        num_attention_heads=heads,
        num_query_groups=_query_groups(heads, request.num_params),
        kv_channels=kv_channels,
        vocab_size=request.vocab_size,
        padded_vocab_size=request.padded_vocab_size,
        seq_length=request.seq_length,
        **request.switches(),
        init_std=initial_std(hidden_size=hidden_size),
    )


def initial_std(*, hidden_size: int) -> float:
    """Return the standard deviation of the initial weights, sqrt(2 / (5 h)).

    Source: small init, Nguyen and Salazar 2019 (arXiv:1910.05895), section 2.2.
    """
    return round(math.sqrt(2 / (5 * hidden_size)), 5)


def kv_channels_of(hidden_size: float) -> int:
    """Return the head width: 128 as in Hoffmann et al. and Llama, less where fewer than eight heads would be left.

    Heads of 128 fill the tiles of tensor cores, and fused attention is faster on them than on 64; parameters and FLOPs
    are the same.

    Source: Dao 2023 (arXiv:2307.08691), figures 4 to 6.
    """
    return next(width for limit, width in ((64, 16), (512, 32), (1024, 64), (math.inf, 128)) if hidden_size < limit)


def _ffn_hidden_size(hidden_size: int) -> int:
    """Return 8/3 hidden_size, which gives SwiGLU the weights of a 4 h GELU block, to a multiple that tiles well.

    Source: Shazeer 2020 (arXiv:2002.05202), section 3.
    """
    multiple = 32 if hidden_size < 64 else 64 if hidden_size < 1024 else 256
    return max(1, round(8 * hidden_size / 3 / multiple)) * multiple


def _query_groups(heads: int, num_params: float) -> int:
    """Return GQA_GROUPS from GQA_MIN_PARAMS up, half of them if they do not divide, otherwise one per head."""
    if num_params < GQA_MIN_PARAMS:
        return heads
    return next((groups for groups in (GQA_GROUPS, GQA_GROUPS // 2) if heads % groups == 0), heads)
