"""The decoder's closed-form counts against the model that is really built: parameters, and FLOPs by torch's counter.

Attention runs on torch's MATH backend, so that the counter sees its matmuls: torch.utils.flop_counter has no formula
for the CPU's fused kernel and would count nothing there.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from chinchilla_ds.budget.shape.flops import decoder_flops_per_token, hardware_flops_per_token
from chinchilla_ds.budget.shape.parameters import ParameterCount, count_parameters
from chinchilla_ds.budget.shape.search import ShapeRequest, pad_vocab, search_shape
from chinchilla_ds.run_plan import ModelShape, ParallelLayout, Recompute
from chinchilla_ds.testing import run_on_ranks, tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.parity.harness import on_engine, own_micro_batches, parity_plan

TELLS_APART = 0.005
"""How far a wrong count must lie off at least; the right ones are off by nothing."""


def planned(budget_flops: float, *, seq_length: int, vocab_size: int, tied_embeddings: bool = False) -> ModelShape:
    """Return the search's shape for sqrt(C / 120) parameters, which is N = D / 20 with C = 6 N D."""
    request = ShapeRequest(
        num_params=(budget_flops / 120) ** 0.5,
        vocab_size=vocab_size,
        seq_length=seq_length,
        tied_embeddings=tied_embeddings,
    )
    shape = search_shape(request=request)
    assert shape is not None
    return shape


def by_hand(
    layers: int,
    hidden: int,
    ffn: int,
    heads: tuple[int, int, int],
    vocab: int,
    seq_length: int,
    *,
    tied: bool = False,
    qk_norm: bool = False,
) -> ModelShape:
    """Return a shape; `heads` are query heads, query groups, and the width of one head."""
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads[0],
        num_query_groups=heads[1],
        kv_channels=heads[2],
        vocab_size=vocab,
        padded_vocab_size=pad_vocab(vocab_size=vocab),
        seq_length=seq_length,
        tied_embeddings=tied,
        qk_norm=qk_norm,
    )


SHAPES = {
    "planned-1e13": planned(1e13, seq_length=256, vocab_size=1024),
    "planned-3e13-tied": planned(3e13, seq_length=128, vocab_size=1000, tied_embeddings=True),
    "planned-1e14": planned(1e14, seq_length=256, vocab_size=2048),
    "planned-1e14-short": planned(1e14, seq_length=64, vocab_size=512),
    "planned-1e15": planned(1e15, seq_length=512, vocab_size=4096),
    "planned-1e15-tied": planned(1e15, seq_length=256, vocab_size=4096, tied_embeddings=True),
    "one-layer": by_hand(1, 64, 160, (4, 4, 16), 256, 32),
    "one-layer-tied": by_hand(1, 64, 160, (4, 4, 16), 256, 32, tied=True),
    "grouped": by_hand(2, 64, 160, (4, 2, 16), 256, 32),
    "one-group": by_hand(2, 64, 160, (4, 1, 16), 256, 32),
    "one-group-tied": by_hand(5, 96, 256, (6, 1, 16), 512, 64, tied=True),
    "one-head": by_hand(3, 32, 96, (1, 1, 32), 128, 48),
    "odd-ffn": by_hand(3, 48, 97, (3, 3, 16), 300, 33),
    "prime-sizes": by_hand(3, 59, 131, (5, 1, 14), 211, 37),
    "wide-heads": by_hand(2, 64, 128, (4, 2, 64), 256, 32),
    "narrow-heads": by_hand(2, 128, 320, (4, 4, 8), 256, 32),
    "padded-vocab": by_hand(2, 48, 128, (4, 4, 12), 1025, 32),
    "large-vocab": by_hand(1, 32, 96, (2, 2, 16), 50257, 32),
    "long-context": by_hand(2, 32, 96, (2, 1, 16), 128, 1024),
    "qk-norm": by_hand(2, 64, 160, (4, 2, 16), 256, 32, qk_norm=True),
    "qk-norm-wide-heads-tied": by_hand(3, 96, 256, (4, 1, 32), 256, 48, tied=True, qk_norm=True),
    "six-layers-thin-ffn": by_hand(6, 96, 32, (12, 4, 8), 256, 96),
}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What the live model has and does."""

    params: ParameterCount
    flops_per_token: dict[Recompute, float]


def params_of(stage: torch.nn.Module, *, tied: bool) -> ParameterCount:
    """Count the numbers in the model's tensors."""
    sizes = {name: (p.numel(), p.dim()) for name, p in stage.named_parameters()}
    table = sum(size for name, (size, _) in sizes.items() if "word_embeddings" in name)
    embedding = table + sum(size for name, (size, _) in sizes.items() if "output_layer" in name)
    total = sum(size for size, _ in sizes.values())
    matrices = sum(size for size, dim in sizes.values() if dim == 2)
    return ParameterCount(
        total=total,
        embedding=embedding,
        non_embedding=total - embedding,
        matmul=matrices if tied else matrices - table,
    )


def flops_of(run: Callable[[], object]) -> int:
    """Return torch's own count of what `run` executes."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def cross_entropy(stage: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the loss of predicting every token itself."""
    from chinchilla_ds.model.cross_entropy import token_losses

    loss: torch.Tensor = stage(tokens, lambda logits: token_losses(logits, tokens).mean())
    return loss


def one_rank_counts() -> dict[str, Counted]:
    """Build every shape on one rank and take one forward and backward pass under every recomputation."""
    from chinchilla_ds.distributed import groups, recompute
    from chinchilla_ds.model.decoder import build_stage

    groups.initialize(layout=ParallelLayout())
    counts = {}
    for name, shape in SHAPES.items():
        recompute.configure(ds_config={}, num_layers=shape.num_layers)
        tokens = torch.zeros((1, shape.seq_length), dtype=torch.int64)
        flops = {}
        for kind in Recompute:
            stage = build_stage(tiny_plan(shape=shape, recompute=kind))
            for parameter in stage.parameters():
                torch.nn.init.constant_(parameter, 0.01)
            flops[kind] = flops_of(lambda stage=stage, t=tokens: cross_entropy(stage, t).backward()) / shape.seq_length
        counts[name] = Counted(params=params_of(stage, tied=shape.tied_embeddings), flops_per_token=flops)
    return counts


@pytest.fixture(scope="module")
def counted() -> dict[str, Counted]:
    [counts] = run_on_ranks(one_rank_counts, 1, timeout_s=250.0)
    return counts


def expected_flops_per_token(shape: ModelShape, kind: Recompute) -> float:
    """Return our count of what runs here, where attention consists of matmuls, which torch's counter knows.

    SELECTIVE_OP saves the output of a fused attention and repeats these matmuls, as SELECTIVE does.
    """
    flops = hardware_flops_per_token(shape=shape, recompute=kind)
    if kind is Recompute.SELECTIVE_OP:
        flops += hardware_flops_per_token(shape=shape, recompute=Recompute.SELECTIVE)
        flops -= hardware_flops_per_token(shape=shape, recompute=Recompute.NONE)
    return flops


def miss(estimate: float, truth: float) -> float:
    return abs(estimate / truth - 1)


def test_there_are_so_many_different_shapes() -> None:
    assert len(set(SHAPES.values())) == 22
    assert {shape.num_layers for shape in SHAPES.values()} >= {1, 2, 3, 5, 6}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_equal_the_models(counted, name: str) -> None:
    assert count_parameters(shape=SHAPES[name]) == counted[name].params


@pytest.mark.parametrize("name", SHAPES)
def test_model_flops_equal_torchs_counter(counted, name: str) -> None:
    assert decoder_flops_per_token(shape=SHAPES[name]) == counted[name].flops_per_token[Recompute.NONE]


@pytest.mark.parametrize("kind", Recompute)
@pytest.mark.parametrize("name", SHAPES)
def test_hardware_flops_equal_torchs_counter(counted, name: str, kind: Recompute) -> None:
    assert expected_flops_per_token(SHAPES[name], kind) == counted[name].flops_per_token[kind]


# ---- controls: wrong counts that the comparison tells apart ----------------------------------------------------------


ALL_LOGITS = {"large-vocab"}
"""Logits are 99 % of the FLOPs there, and nothing else shows."""
LITTLE_ATTENTION = {"narrow-heads"}
"""Scores and values are 1.3 % of the FLOPs there."""


def heads_not_grouped(shape: ModelShape) -> float:
    return decoder_flops_per_token(shape=dataclasses.replace(shape, num_query_groups=shape.num_attention_heads))


def causal_attention(shape: ModelShape) -> float:
    masked = (shape.seq_length - 1) / 2  # keys per query that the mask leaves out
    per_layer = 2 * 2 * masked * shape.num_attention_heads * shape.kv_channels
    return decoder_flops_per_token(shape=shape) - 3 * shape.num_layers * per_layer


def embedding_as_matmul(shape: ModelShape) -> float:
    return decoder_flops_per_token(shape=shape) + 6 * shape.padded_vocab_size * shape.hidden_size


def two_ffn_matrices(shape: ModelShape) -> float:
    return decoder_flops_per_token(shape=shape) - 6 * shape.num_layers * shape.hidden_size * shape.ffn_hidden_size


GROUPED = {name for name, shape in SHAPES.items() if shape.num_query_groups < shape.num_attention_heads}
WRONG_COUNTS = {
    heads_not_grouped: GROUPED,
    causal_attention: SHAPES.keys() - ALL_LOGITS,
    embedding_as_matmul: SHAPES.keys(),
    two_ffn_matrices: SHAPES.keys() - ALL_LOGITS,
}


@pytest.mark.parametrize("wrong", WRONG_COUNTS, ids=lambda wrong: wrong.__name__)
def test_control_wrong_flops_miss(counted, wrong: Callable[[ModelShape], float]) -> None:
    assert len(WRONG_COUNTS[wrong]) >= 7
    for name in WRONG_COUNTS[wrong]:
        assert miss(wrong(SHAPES[name]), counted[name].flops_per_token[Recompute.NONE]) > TELLS_APART, name


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - ALL_LOGITS))
def test_control_recomputation_shows(counted, name: str) -> None:
    flops = counted[name].flops_per_token
    assert miss(flops[Recompute.SELECTIVE], flops[Recompute.FULL]) > TELLS_APART
    if name not in LITTLE_ATTENTION:
        assert miss(flops[Recompute.NONE], flops[Recompute.SELECTIVE]) > TELLS_APART


def test_control_parameters_see_tables_groups_and_norms(counted) -> None:
    for name, shape in SHAPES.items():
        other_table = dataclasses.replace(shape, tied_embeddings=not shape.tied_embeddings)
        assert count_parameters(shape=other_table).total != counted[name].params.total
        unpadded = dataclasses.replace(shape, padded_vocab_size=shape.padded_vocab_size - 1)
        assert count_parameters(shape=unpadded).total != counted[name].params.total
    grouped, single = counted["grouped"].params, counted["one-group"].params
    normed = counted["qk-norm"].params
    assert normed.total - grouped.total == 2 * 2 * 16, "two layers, two norms of 16 channels"
    assert normed.matmul == grouped.matmul
    assert counted["qk-norm"].flops_per_token == counted["grouped"].flops_per_token, "norms are no matmuls"
    assert grouped.total - single.total == 2 * 2 * 64 * 16, "two layers, keys and values of one group of 64 x 16"


# ---- what torch's counter does with fused attention ------------------------------------------------------------------


def test_fused_kernels_count_seven_sixths_of_attention() -> None:
    """By the formulas that torch registers for CUDA's fused kernels: scores are computed again in the backward pass."""
    shape = SHAPES["grouped"]
    heads, width, s = shape.num_attention_heads, shape.kv_channels, shape.seq_length
    q = (1, heads, s, width)
    fused = (sdpa_flop_count(q, q, q) + sdpa_backward_flop_count(q, q, q, q)) / s
    assert fused == 7 / 6 * 12 * heads * width * s
    selective = hardware_flops_per_token(shape=shape, recompute=Recompute.SELECTIVE)
    assert selective - decoder_flops_per_token(shape=shape) == shape.num_layers * sdpa_flop_count(q, q, q) / s


# ---- tensor- and pipeline-parallel ranks -----------------------------------------------------------------------------

SPLIT_LAYOUTS = {
    "tp2-pp2": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "zero_stage": 1},
    "tp2-pp2-vpp2-sp": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "virtual_pipeline_model_parallel_size": 2,
        "zero_stage": 1,
        "sequence_parallel": True,
        "gradient_accumulation_steps": 2,
    },
}
SPLIT_SHAPES = {
    "grouped": tiny_shape(),
    "multi-head": tiny_shape(num_query_groups=4, padded_vocab_size=384, vocab_size=300),
    "wide-heads": tiny_shape(kv_channels=32, ffn_hidden_size=130),
    "qk-norm": tiny_shape(qk_norm=True),
}


@dataclass(frozen=True, kw_only=True)
class RankCount:
    """What one rank of a split model holds."""

    split: int
    """Numbers that no other rank of the model holds."""
    replicated: int
    """Numbers that every tensor-parallel rank of this stage holds: norms."""
    tensor_rank: int


def rank_counts(layout: ParallelLayout) -> list[RankCount]:
    from megatron.core import parallel_state

    from chinchilla_ds.distributed import groups
    from chinchilla_ds.model.decoder import build_stage
    from chinchilla_ds.model.initialization import partition_dim

    groups.initialize(layout=layout)
    counts = []
    for shape in SPLIT_SHAPES.values():
        parameters = list(build_stage(dataclasses.replace(tiny_plan(shape=shape), layout=layout)).parameters())
        split = sum(p.numel() for p in parameters if partition_dim(p) is not None)
        counts.append(
            RankCount(
                split=split,
                replicated=sum(p.numel() for p in parameters) - split,
                tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
            )
        )
    return counts


@pytest.mark.parametrize("name", SPLIT_LAYOUTS)
def test_parameters_of_all_ranks_sum_to_the_models(name: str) -> None:
    layout = tiny_plan(**SPLIT_LAYOUTS[name]).layout
    ranks = run_on_ranks(rank_counts, 4, layout)
    for shape, counts in zip(SPLIT_SHAPES.values(), zip(*ranks, strict=True), strict=True):
        once = sum(c.split + (c.replicated if c.tensor_rank == 0 else 0) for c in counts)
        everywhere = sum(c.split + c.replicated for c in counts)
        assert once == count_parameters(shape=shape).total
        per_layer = 2 * shape.hidden_size + 2 * shape.kv_channels * shape.qk_norm
        assert everywhere - once == shape.num_layers * per_layer + shape.hidden_size, "norms, a second time"


@pytest.mark.parametrize("kind", Recompute)
@pytest.mark.parametrize("name", SPLIT_LAYOUTS)
def test_flops_of_all_ranks_sum_to_the_hardware_flops_of_a_step(name: str, kind: Recompute) -> None:
    def step(engine: Any) -> int:
        return flops_of(lambda: engine.train_step(own_micro_batches(plan, 0), learning_rate=0.0))

    plan = parity_plan(recompute=kind, **SPLIT_LAYOUTS[name])
    measured = sum(on_engine(plan, step)) / plan.tokens_per_iter
    assert expected_flops_per_token(plan.shape, kind) == measured


# ---- shapes of published models, without memory ----------------------------------------------------------------------


def meta_counts(shapes: list[ModelShape]) -> list[ParameterCount]:
    from chinchilla_ds.distributed import groups
    from chinchilla_ds.model.decoder import build_stage

    def build(shape: ModelShape) -> torch.nn.Module:
        return build_stage(tiny_plan(shape=shape), partition=torch.device("meta"))

    groups.initialize(layout=ParallelLayout())
    return [params_of(build(shape), tied=shape.tied_embeddings) for shape in shapes]


def large_shapes() -> Iterator[ModelShape]:
    yield by_hand(32, 4096, 14336, (32, 8, 128), 128256, 8192)
    yield by_hand(16, 2048, 8192, (32, 8, 64), 128256, 8192, tied=True)
    yield planned(1e21, seq_length=2048, vocab_size=32000)
    yield planned(1e24, seq_length=2048, vocab_size=32000)


def test_parameters_of_large_models_equal_the_models() -> None:
    shapes = list(large_shapes())
    [counts] = run_on_ranks(meta_counts, 1, shapes)
    assert counts == [count_parameters(shape=shape) for shape in shapes]
