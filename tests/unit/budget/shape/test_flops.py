import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from chinchilla_ds.budget.shape.flops import (
    decoder_flops_per_token,
    forward_flops_per_token,
    hardware_flops_per_token,
)
from chinchilla_ds.run_plan import ModelShape, Recompute
from tests.unit.budget.shape.paper_counts import AppendixF, PaperShape, paper_flops_per_token, paper_params

# Hoffmann et al. 2022, Table A4: layers, d_model, ffw_size, heads, k/q size, printed ratio of its FLOPs to 6ND;
# last, the ratio when Appendix F is taken at its word
TABLE_A4 = (
    (10, 640, 2560, 10, 64, 1.03, 1.580),
    (20, 1024, 4096, 16, 64, 1.10, 1.315),
    (24, 1280, 5120, 10, 128, 1.08, 1.231),
    (26, 1792, 7168, 14, 128, 1.04, 1.144),
    (28, 2048, 8192, 16, 128, 1.03, 1.115),
    (40, 3584, 14336, 28, 128, 0.99, 1.028),
)

SHAPE = ModelShape(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=160,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=16,
    vocab_size=200,
    padded_vocab_size=256,
    seq_length=32,
)


def a4_ratio(row: tuple[float, ...], mode: AppendixF) -> float:
    layers, d_model, ffw_size, heads, kq_size = map(int, row[:5])
    shape = PaperShape(
        num_layers=layers,
        hidden_size=d_model,
        ffn_hidden_size=ffw_size,
        num_attention_heads=heads,
        kv_channels=kq_size,
    )
    return paper_flops_per_token(shape=shape, mode=mode) / (6 * paper_params(shape=shape))


@pytest.mark.parametrize("row", TABLE_A4, ids=lambda row: f"{row[0]}x{row[1]}")
def test_table_a4_to_its_two_decimals(row: tuple[float, ...]) -> None:
    assert round(a4_ratio(row, AppendixF.TABLE_A4), 2) == row[5]


@pytest.mark.parametrize("row", TABLE_A4, ids=lambda row: f"{row[0]}x{row[1]}")
def test_appendix_f_taken_literally_misses_table_a4(row: tuple[float, ...]) -> None:
    ratio = a4_ratio(row, AppendixF.LITERAL)
    assert round(ratio, 3) == row[6]
    assert round(ratio, 2) != row[5]


def test_decoder_by_hand() -> None:
    per_layer = 2 * 64 * (4 + 2 + 2) * 16 + 2 * 64 * 64 + 3 * 2 * 64 * 160
    attention = 2 * 32 * 64 + 2 * 32 * 64
    logits = 2 * 64 * 256
    assert forward_flops_per_token(shape=SHAPE) == 2 * (per_layer + attention) + logits
    assert decoder_flops_per_token(shape=SHAPE) == 3 * forward_flops_per_token(shape=SHAPE)


def test_recomputation_by_hand() -> None:
    model = decoder_flops_per_token(shape=SHAPE)
    scores_and_values = 2 * (2 * 32 * 64 + 2 * 32 * 64)
    all_but_logits = forward_flops_per_token(shape=SHAPE) - 2 * 64 * 256
    assert hardware_flops_per_token(shape=SHAPE, recompute=Recompute.NONE) == model
    assert hardware_flops_per_token(shape=SHAPE, recompute=Recompute.SELECTIVE) == model + scores_and_values
    assert hardware_flops_per_token(shape=SHAPE, recompute=Recompute.FULL) == model + all_but_logits


def test_gpt3_by_the_published_formulas() -> None:
    """Per token, with recomputation of every layer 96 L h^2 (1 + s / 6h + V / 16Lh), without 72 L h^2 (...).

    Source: Narayanan et al. 2021 (arXiv:2104.04473), appendix; Korthikanti et al. 2022 (arXiv:2205.05198), appendix A.
    Their feed-forward has two matrices of 4 h; SwiGLU's three of 8 h / 3 have the same weights.
    """
    h, layers, s, v = 12288, 96, 2048, 51200
    gpt3 = ModelShape(
        num_layers=layers,
        hidden_size=h,
        ffn_hidden_size=8 * h // 3,
        num_attention_heads=96,
        num_query_groups=96,
        kv_channels=128,
        vocab_size=v,
        padded_vocab_size=v,
        seq_length=s,
    )
    model = 72 * layers * h**2 * (1 + s / (6 * h) + v / (12 * h * layers))
    hardware = 96 * layers * h**2 * (1 + s / (6 * h) + v / (16 * h * layers))
    assert decoder_flops_per_token(shape=gpt3) == pytest.approx(model, rel=1e-12)
    assert hardware_flops_per_token(shape=gpt3, recompute=Recompute.FULL) == pytest.approx(hardware, rel=1e-12)


def test_decoder_equals_torch_flop_counter() -> None:
    s, h, heads, groups, kv = 32, 64, 4, 2, 16
    make = lambda *size: torch.randn(*size, requires_grad=True)  # noqa: E731
    x = make(s, h)
    layers = [(make((heads + 2 * groups) * kv, h), make(h, heads * kv), make(320, h), make(h, 160)) for _ in range(2)]
    output = make(256, h)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        y = x
        for qkv, out, gate_up, down in layers:
            q, k, v = F.linear(y, qkv).view(1, s, -1, kv).transpose(1, 2).split([heads, groups, groups], dim=1)
            attended = F.scaled_dot_product_attention(
                q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), is_causal=True
            )
            y = F.linear(attended.transpose(1, 2).reshape(s, h), out)
            gate, up = F.linear(y, gate_up).chunk(2, dim=-1)
            y = F.linear(F.silu(gate) * up, down)
        F.linear(y, output).sum().backward()
    assert counter.get_total_flops() / s == decoder_flops_per_token(shape=SHAPE)
    assert math.isclose(counter.get_total_flops() / s, 3 * forward_flops_per_token(shape=SHAPE))
