"""Parameter counts of our decoder: exact, and as the laws count them."""

from dataclasses import dataclass

from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.run_plan import ModelShape


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """The parameters of one decoder, under the conventions that scaling laws and learning-rate laws use."""

    total: int
    """Every trained number; what Hoffmann et al. and Besiroglu et al. call N."""
    embedding: int
    """The input table, and the output table when it is not tied."""
    non_embedding: int
    """total - embedding; what Kaplan et al. and Step Law call N."""
    matmul: int
    """Weights that multiply activations: not the norms, not the input table; the output projection, tied or not."""


def count_parameters(*, shape: ModelShape) -> ParameterCount:
    """Return the exact parameter counts of our decoder.

    Leaves out padding that a layout might add: `padded_vocab_size` is part of the shape, and the same for every layout.
    """
    per_layer = layer_matmul_params(
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.kv_channels,
    )
    norms = (2 * shape.num_layers + 1) * shape.hidden_size
    table = shape.padded_vocab_size * shape.hidden_size
    embedding = table if shape.tied_embeddings else 2 * table
    layers = shape.num_layers * per_layer
    return ParameterCount(
        total=layers + norms + embedding,
        embedding=embedding,
        non_embedding=layers + norms,
        matmul=layers + table,
    )


def params_in_convention(*, shape: ModelShape, convention: ParamsConvention) -> float:
    """Return the N of our decoder as a law with that convention counts it.

    TOTAL and WITH_HEAD are the same number for this decoder, layers and norms and one table: the first law's models
    have one table for input and output, the second leaves the input table out. DeepSeek's M = 72 L d^2 + 12 L d s is
    6 FLOPs per matmul weight of its layers and 12 L d s of attention over the full context; here the layers' own
    weights and the width of all heads take the place of 12 d^2 and d, and N = M / 6.

    Source: Hoffmann et al. 2022 (arXiv:2203.15556), Table A9; Kaplan et al. 2020 (arXiv:2001.08361), section 2.1;
    Porian et al. 2024 (arXiv:2406.19146), section 3.1; DeepSeek-AI 2024 (arXiv:2401.02954), equation 2.
    """
    counted = count_parameters(shape=shape)
    table = shape.padded_vocab_size * shape.hidden_size
    if convention is ParamsConvention.NON_EMBEDDING:
        return counted.non_embedding
    if convention is ParamsConvention.FLOPS_EQUIVALENT:
        attention = 12 * shape.num_layers * shape.num_attention_heads * shape.kv_channels * shape.seq_length
        return counted.matmul - table + attention / 6
    return counted.non_embedding + table


def layer_matmul_params(
    *, hidden_size: int, ffn_hidden_size: int, num_attention_heads: int, num_query_groups: int, kv_channels: int
) -> int:
    """Return the matmul weights of one layer: QKV, attention output, and the gate, up and down projections."""
    qkv = hidden_size * (num_attention_heads + 2 * num_query_groups) * kv_channels
    attention_output = num_attention_heads * kv_channels * hidden_size
    feed_forward = 3 * hidden_size * ffn_hidden_size
    return qkv + attention_output + feed_forward
