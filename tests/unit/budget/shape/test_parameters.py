import pytest

from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.run_plan import ModelShape
from tests.unit.budget.shape.paper_counts import PaperShape, paper_params

# Hoffmann et al. 2022, Table A9: parameters (million), d_model, ffw_size, kv_size, n_heads, n_layers
TABLE_A9 = (
    (44, 512, 2048, 64, 8, 8),
    (57, 576, 2304, 64, 9, 9),
    (74, 640, 2560, 64, 10, 10),
    (90, 640, 2560, 64, 10, 13),
    (106, 640, 2560, 64, 10, 16),
    (117, 768, 3072, 64, 12, 12),
    (140, 768, 3072, 64, 12, 15),
    (163, 768, 3072, 64, 12, 18),
    (175, 896, 3584, 64, 14, 14),
    (196, 896, 3584, 64, 14, 16),
    (217, 896, 3584, 64, 14, 18),
    (251, 1024, 4096, 64, 16, 16),
    (278, 1024, 4096, 64, 16, 18),
    (306, 1024, 4096, 64, 16, 20),
    (425, 1280, 5120, 128, 10, 18),
    (489, 1280, 5120, 128, 10, 21),
    (509, 1408, 5632, 128, 11, 18),
    (552, 1280, 5120, 128, 10, 24),
    (587, 1408, 5632, 128, 11, 21),
    (632, 1536, 6144, 128, 12, 19),
    (664, 1408, 5632, 128, 11, 24),
    (724, 1536, 6144, 128, 12, 22),
    (816, 1536, 6144, 128, 12, 25),
    (893, 1792, 7168, 128, 14, 20),
    (1018, 1792, 7168, 128, 14, 23),
    (1143, 1792, 7168, 128, 14, 26),
    (1266, 2048, 8192, 128, 16, 22),
    (1424, 2176, 8704, 128, 17, 22),
    (1429, 2048, 8192, 128, 16, 25),
    (1593, 2048, 8192, 128, 16, 28),
    (1609, 2176, 8704, 128, 17, 25),
    (1731, 2304, 9216, 128, 18, 24),
    (1794, 2176, 8704, 128, 17, 28),
    (2007, 2304, 9216, 128, 18, 28),
    (2283, 2304, 9216, 128, 18, 32),
    (2298, 2560, 10240, 128, 20, 26),
    (2639, 2560, 10240, 128, 20, 30),
    (2980, 2560, 10240, 128, 20, 34),
    (3530, 2688, 10752, 128, 22, 36),
    (3802, 2816, 11264, 128, 22, 36),
    (4084, 2944, 11776, 128, 22, 36),
    (4516, 3072, 12288, 128, 24, 36),
    (6796, 3584, 14336, 128, 28, 40),
    (9293, 4096, 16384, 128, 32, 42),
    (11452, 4352, 17408, 128, 32, 47),
    (12295, 4608, 18432, 128, 36, 44),
    (12569, 4608, 18432, 128, 32, 47),
    (13735, 4864, 19456, 128, 32, 47),
    (14940, 4992, 19968, 128, 32, 49),
    (16183, 5120, 20480, 128, 40, 47),
)


def a9_shape(row: tuple[int, ...]) -> PaperShape:
    _, d_model, ffw_size, kv_size, n_heads, n_layers = row
    return PaperShape(
        num_layers=n_layers,
        hidden_size=d_model,
        ffn_hidden_size=ffw_size,
        num_attention_heads=n_heads,
        kv_channels=kv_size,
    )


@pytest.mark.parametrize("row", TABLE_A9, ids=lambda row: f"{row[0]}M-{row[1]}-{row[5]}")
def test_table_a9_within_its_rounding(row: tuple[int, ...]) -> None:
    assert paper_params(shape=a9_shape(row)) / 1e6 == pytest.approx(row[0], rel=0.0067)


def test_table_a9_37_of_50_exact() -> None:
    exact = sum(round(paper_params(shape=a9_shape(row)) / 1e6) == row[0] for row in TABLE_A9)
    assert (len(TABLE_A9), exact) == (50, 37)


def test_chinchilla_70b() -> None:
    chinchilla = PaperShape(
        num_layers=80, hidden_size=8192, ffn_hidden_size=32768, num_attention_heads=64, kv_channels=128
    )
    assert paper_params(shape=chinchilla) / 1e9 == pytest.approx(70.065, abs=5e-4)


LLAMA_2_7B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=11008,
    num_attention_heads=32,
    num_query_groups=32,
    kv_channels=128,
    vocab_size=32000,
    padded_vocab_size=32000,
    seq_length=4096,
)
LLAMA_3_8B = ModelShape(
    num_layers=32,
    hidden_size=4096,
    ffn_hidden_size=14336,
    num_attention_heads=32,
    num_query_groups=8,
    kv_channels=128,
    vocab_size=128256,
    padded_vocab_size=128256,
    seq_length=8192,
)
LLAMA_3_2_1B = ModelShape(
    num_layers=16,
    hidden_size=2048,
    ffn_hidden_size=8192,
    num_attention_heads=32,
    num_query_groups=8,
    kv_channels=64,
    vocab_size=128256,
    padded_vocab_size=128256,
    seq_length=8192,
    tied_embeddings=True,
)


# The same decoder as ours; the totals are those of the published checkpoints.
@pytest.mark.parametrize(
    ("shape", "total"),
    [(LLAMA_2_7B, 6_738_415_616), (LLAMA_3_8B, 8_030_261_248), (LLAMA_3_2_1B, 1_235_814_400)],
    ids=["llama-2-7b", "llama-3-8b", "llama-3.2-1b"],
)
def test_published_llama_checkpoints(shape: ModelShape, total: int) -> None:
    assert count_parameters(shape=shape).total == total


def test_conventions_differ_by_what_they_name() -> None:
    count = count_parameters(shape=LLAMA_3_8B)
    table = 128256 * 4096
    assert count.embedding == 2 * table
    assert count.non_embedding == count.total - 2 * table
    assert count.matmul == count.total - table - 65 * 4096

    tied = count_parameters(shape=LLAMA_3_2_1B)
    assert tied.embedding == 128256 * 2048
    assert tied.matmul == tied.total - 33 * 2048
