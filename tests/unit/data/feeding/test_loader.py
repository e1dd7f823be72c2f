import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chinchilla_ds.data.feeding import loader as loader_module
from chinchilla_ds.data.feeding.loader import TokenBatch, TokenLoader
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import OutputError
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.testing.run_on_ranks import run_on_ranks
from tests.unit.data.conftest import SEQ_LENGTH

MakePlan = Callable[..., RunPlan]
LAYOUTS = [(1, 8, 1), (1, 2, 4), (2, 2, 2), (4, 1, 2), (4, 2, 1), (8, 1, 1)]


def rows(batches: list[TokenBatch]) -> list[tuple[int, ...]]:
    return sorted(tuple(row) for batch in batches for row in batch.tokens.tolist())


def step(loader: TokenLoader, iteration: int, *, ranks: int) -> list[TokenBatch]:
    return [batch for rank in range(ranks) for batch in loader.micro_batches(iteration, rank)]


def test_shapes_and_labels(prepared: PreparedData, make_plan: MakePlan) -> None:
    loader = TokenLoader(prepared=prepared, plan=make_plan(data_parallel=2, micro=2, accumulation=3))
    batches = list(loader.micro_batches(0, 1))
    assert len(batches) == 3
    for batch in batches:
        assert batch.tokens.shape == batch.labels.shape == (2, SEQ_LENGTH)
        assert batch.tokens.dtype == batch.labels.dtype == torch.int64
        assert torch.equal(batch.tokens[:, 1:], batch.labels[:, :-1])
        assert 0 <= batch.tokens.min() <= batch.labels.max() < prepared.vocab_size


def test_every_layout_reads_the_same_samples_in_every_step(prepared: PreparedData, make_plan: MakePlan) -> None:
    def run(layout: tuple[int, int, int], *, seed: int = 1) -> list[list[tuple[int, ...]]]:
        ranks, micro, accumulation = layout
        plan = make_plan(data_parallel=ranks, micro=micro, accumulation=accumulation, seed=seed)
        loader = TokenLoader(prepared=prepared, plan=plan)
        return [rows(step(loader, iteration, ranks=ranks)) for iteration in range(plan.batch.train_iters)]

    reference = run(LAYOUTS[0])
    for layout in LAYOUTS[1:]:
        assert run(layout) == reference
    assert run(LAYOUTS[0], seed=2) != reference


def test_no_sample_is_read_twice_within_an_epoch(prepared: PreparedData, make_plan: MakePlan) -> None:
    train_iters = (prepared.train_tokens - 1) // (8 * SEQ_LENGTH)
    plan = make_plan(train_iters=train_iters)
    loader = TokenLoader(prepared=prepared, plan=plan)
    seen = [row for iteration in range(train_iters) for row in rows(step(loader, iteration, ranks=1))]
    assert len(set(seen)) == len(seen) == 8 * train_iters


@pytest.mark.parametrize("epochs", [1.5, 2.0, 3.9, 7.1])
def test_several_epochs(prepared: PreparedData, make_plan: MakePlan, epochs: float) -> None:
    train_iters = int(epochs * prepared.train_tokens) // (8 * SEQ_LENGTH)
    loader = TokenLoader(prepared=prepared, plan=make_plan(train_iters=train_iters))
    assert len(step(loader, train_iters - 1, ranks=1)) == 4


def test_a_loader_made_anew_continues_at_any_step(prepared: PreparedData, make_plan: MakePlan) -> None:
    first, again = (TokenLoader(prepared=prepared, plan=make_plan()) for _ in range(2))
    list(first.micro_batches(0, 0))
    for left, right in zip(first.micro_batches(7, 0), again.micro_batches(7, 0), strict=True):
        assert torch.equal(left.tokens, right.tokens)


def test_outside_the_plan(prepared: PreparedData, make_plan: MakePlan) -> None:
    loader = TokenLoader(prepared=prepared, plan=make_plan(train_iters=10))
    with pytest.raises(IndexError, match="iteration 10 is outside the plan's 10 steps"):
        loader.micro_batches(10, 0)
    with pytest.raises(IndexError, match="data_parallel_rank 1 is outside the plan's 1 ranks"):
        loader.micro_batches(0, 1)


def test_held_out_is_the_same_for_every_layout_and_seed(prepared: PreparedData, make_plan: MakePlan) -> None:
    reference = None
    for seed, (ranks, micro, accumulation) in enumerate(LAYOUTS):
        plan = make_plan(data_parallel=ranks, micro=micro, accumulation=accumulation, seed=seed)
        loader = TokenLoader(prepared=prepared, plan=plan)
        per_rank = [list(loader.held_out_batches(data_parallel_rank=rank)) for rank in range(ranks)]
        assert len({len(batches) for batches in per_rank}) == 1
        assert all(batch.tokens.shape == (micro, SEQ_LENGTH) for batches in per_rank for batch in batches)
        found = rows([batch for batches in per_rank for batch in batches])
        assert len(found) == loader.num_held_out_sequences() == (prepared.held_out_tokens - 1) // SEQ_LENGTH // 8 * 8
        assert reference in (None, found)
        reference = found


def test_held_out_is_capped_and_repeated_up_to_one_batch(prepared: PreparedData, make_plan: MakePlan) -> None:
    loader = TokenLoader(prepared=prepared, plan=make_plan())
    assert loader.num_held_out_sequences(max_tokens=17 * SEQ_LENGTH) == 16
    assert len(list(loader.held_out_batches(data_parallel_rank=0, max_tokens=17 * SEQ_LENGTH))) == 8
    available = (prepared.held_out_tokens - 1) // SEQ_LENGTH
    large = TokenLoader(prepared=prepared, plan=make_plan(micro=available + 3, accumulation=1, train_iters=1))
    (batch,) = large.held_out_batches(data_parallel_rank=0)
    assert torch.equal(batch.tokens[:3], batch.tokens[available:])


def test_the_index_is_written_once(
    prepared: PreparedData, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    TokenLoader(prepared=prepared, plan=make_plan())
    assert not [path for path in (prepared.folder / "index").iterdir() if path.name.startswith(".")]
    monkeypatch.setattr(loader_module, "whole_folder", None)
    TokenLoader(prepared=prepared, plan=make_plan())


def test_an_index_that_cannot_be_written(
    prepared: PreparedData, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loader_module, "whole_folder", fail)
    with pytest.raises(OutputError, match=r"cannot write the sequence index to .*/index: No space left on device"):
        TokenLoader(prepared=prepared, plan=make_plan(seed=99))


def _first_step(rank_folder: Path, plan: RunPlan) -> list[tuple[int, ...]]:
    torch.distributed.init_process_group("gloo")
    if torch.distributed.get_rank() == 0:
        TokenLoader(prepared=PreparedData.load(rank_folder), plan=plan)  # writes the index
    torch.distributed.barrier()
    loader = TokenLoader(prepared=PreparedData.load(rank_folder), plan=plan)
    return rows(list(loader.micro_batches(0, torch.distributed.get_rank())))


def test_ranks_share_one_index(prepared: PreparedData, make_plan: MakePlan, tmp_path: Path) -> None:
    folder = tmp_path / "fresh"
    shutil.copytree(prepared.folder, folder, ignore=shutil.ignore_patterns("index"))
    both = run_on_ranks(_first_step, 2, folder, make_plan(data_parallel=2), preload=())
    whole = TokenLoader(prepared=prepared, plan=make_plan(micro=16, accumulation=1))
    assert sorted(both[0] + both[1]) == rows(list(whole.micro_batches(0, 0)))
    assert len(list((folder / "index").iterdir())) == 2
