"""Parameter counts of our decoder: exact, and as the laws count them."""

import math
from dataclasses import dataclass

from chinchilla_ds.budget.laws.forms import ParamsConvention
from chinchilla_ds.run_plan import ModelShape
from chinchilla_ds.weights import EMBEDDING, OUTPUT, held_kinds


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """The parameters of one decoder, under the conventions that scaling laws and learning-rate laws use."""

    total: int
    """All trained parameters; the N of Hoffmann et al. and Besiroglu et al."""
    embedding: int
    """The input table, and the output table when it is not tied."""
    non_embedding: int
    """total - embedding; the N of Kaplan et al. and Step Law."""
    matmul: int
    """Weights that multiply activations: not the norms, not the input table; the output projection, tied or not."""


def count_parameters(*, shape: ModelShape) -> ParameterCount:
    """Return the exact parameter counts of our decoder.

    Leaves out padding that a layout might add: `padded_vocab_size` is part of the shape, and the same for every layout.
    """
    non_embedding = embedding = matrices = 0
    for kind in held_kinds(shape):
        sizes = kind.shape(shape)
        params = math.prod(sizes) * (shape.num_layers if kind.in_layers else 1)
        if kind is EMBEDDING or kind is OUTPUT:
            embedding += params
            continue
        non_embedding += params
        if len(sizes) > 1:
            matrices += params
    return ParameterCount(
        total=non_embedding + embedding,
        embedding=embedding,
        non_embedding=non_embedding,
        matmul=matrices + table_params(shape),
    )


def layer_params(shape: ModelShape, /, *, matrices_only: bool = False) -> int:
    """Return the parameters of one layer, or those of its matrices alone, which multiply activations."""
    layers = [kind.shape(shape) for kind in held_kinds(shape) if kind.in_layers]
    return sum(math.prod(sizes) for sizes in layers if len(sizes) > 1 or not matrices_only)


def table_params(shape: ModelShape, /) -> int:
    """Return the weights that make logits: the output table, or the embedding table where they are tied."""
    return math.prod(OUTPUT.shape(shape))


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
    table = table_params(shape)
    if convention is ParamsConvention.NON_EMBEDDING:
        return counted.non_embedding
    if convention is ParamsConvention.FLOPS_EQUIVALENT:
        attention = 12 * shape.num_layers * shape.num_attention_heads * shape.kv_channels * shape.seq_length
        return counted.matmul - table + attention / 6
    return counted.non_embedding + table
