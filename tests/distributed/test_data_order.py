"""The order of the samples is a function of seed and plan alone: not of the ranks, nor of where a run was resumed."""

import hashlib
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from chinchilla_ds.data.feeding.loader import TokenBatch, TokenLoader
from chinchilla_ds.data.prepared import MANIFEST_NAME, PreparedData, PreparedSource
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.testing import run_on_ranks, tiny_plan
from chinchilla_ds.testing.configs import tiny_shape
from tests.unit.data.feeding.indexed_writer import IndexedWriter

VOCAB_SIZE, EOD_ID, SEQ_LENGTH = 1_000_000, 999_999, 16
WEIGHTS = {"code": 0.3, "web": 0.7}
GLOBAL_BATCH_SIZE, TRAIN_ITERS = 8, 12
Row = tuple[int, ...]


def write_documents(prefix: Path, *, first_token: int, seed: int) -> int:
    """Write documents of tokens that occur once each, so that a sequence can be told by its tokens."""
    generator, token = random.Random(seed), first_token
    with IndexedWriter(prefix=prefix, vocab_size=VOCAB_SIZE) as writer:
        for _ in range(120):
            length = generator.randint(3, 60)
            writer.add_document(np.array([*range(token, token + length), EOD_ID], dtype=np.int32))
            token += length
    return token - first_token + 120


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("prepared")
    sizes = {
        name: write_documents(folder / f"train-{name}", first_token=100_000 * (place + 1), seed=place)
        for place, name in enumerate(WEIGHTS)
    }
    made = PreparedData(
        folder=folder,
        source="numbers",
        sources=tuple(
            PreparedSource(name=name, weight=weight, num_documents=120, num_bytes=1, num_tokens=sizes[name])
            for name, weight in WEIGHTS.items()
        ),
        tokenizer_sha256=hashlib.sha256(b"").hexdigest(),
        vocab_size=VOCAB_SIZE,
        eod_id=EOD_ID,
        train_tokens=sum(sizes.values()),
        held_out_tokens=write_documents(folder / "held_out", first_token=500_000, seed=9),
        train_bytes=1,
        held_out_bytes=1,
        num_documents=240,
        held_out_documents=120,
        skipped_files=0,
        unigram_loss=1.0,
    )
    (folder / MANIFEST_NAME).write_text(made.to_json(), encoding="utf-8")
    (folder / "tokenizer.model").touch()
    return made


def make_plan(*, data_parallel: int, seed: int = 1) -> RunPlan:
    micro_batch_size = 1 if data_parallel == 4 else 2
    return tiny_plan(
        shape=tiny_shape(seq_length=SEQ_LENGTH),
        micro_batch_size=micro_batch_size,
        gradient_accumulation_steps=GLOBAL_BATCH_SIZE // (micro_batch_size * data_parallel),
        data_parallel_size=data_parallel,
        train_iters=TRAIN_ITERS,
        seed=seed,
    )


def rows(batch: TokenBatch) -> list[Row]:
    return [tuple(row) for row in batch.tokens.tolist()]


def read_own(folder: Path, plan: RunPlan, steps: range) -> list[list[list[Row]]]:
    """What one rank reads, by step and micro-batch; runs on every rank."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    prepared = PreparedData.load(folder)
    if rank == 0:
        TokenLoader(prepared=prepared, plan=plan)
    torch.distributed.barrier()
    loader = TokenLoader(prepared=prepared, plan=plan)
    return [[rows(batch) for batch in loader.micro_batches(step, rank)] for step in steps]


def read_on_ranks(folder: Path, *, data_parallel: int, steps: Iterable[int], seed: int = 1) -> list[list[Row]]:
    """Return the samples of every step in their order: micro-batches are dealt to the ranks in turn."""
    plan = make_plan(data_parallel=data_parallel, seed=seed)
    by_rank = run_on_ranks(read_own, data_parallel, folder, plan, steps, preload=())
    return [
        [row for micro_batches in zip(*of_step, strict=True) for batch in micro_batches for row in batch]
        for of_step in zip(*by_rank, strict=True)
    ]


def naive_order(prepared: PreparedData) -> list[list[Row]]:
    """The whole run, read sample by sample in one process."""
    loader = TokenLoader(prepared=prepared, plan=make_plan(data_parallel=1))
    return [[row for batch in loader.micro_batches(step, 0) for row in rows(batch)] for step in range(TRAIN_ITERS)]


@pytest.mark.parametrize("data_parallel", [1, 2, 4])
def test_every_data_parallel_size_reads_the_same_samples_in_the_same_order(
    prepared: PreparedData, tmp_path: Path, data_parallel: int
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(prepared.folder, folder, ignore=shutil.ignore_patterns("index"))
    found = read_on_ranks(folder, data_parallel=data_parallel, steps=range(TRAIN_ITERS))
    assert found == naive_order(prepared)


@pytest.mark.parametrize("stops", [(5, 9), (1, 11)])
def test_resuming_on_other_numbers_of_ranks_reads_exactly_what_remains(
    prepared: PreparedData, stops: tuple[int, int]
) -> None:
    first, second = stops
    found = [
        *read_on_ranks(prepared.folder, data_parallel=4, steps=range(first)),
        *read_on_ranks(prepared.folder, data_parallel=2, steps=range(first, second)),
        *read_on_ranks(prepared.folder, data_parallel=1, steps=range(second, TRAIN_ITERS)),
    ]
    assert found == naive_order(prepared)
    flat = [row for step in found for row in step]
    assert len(set(flat)) == len(flat) == TRAIN_ITERS * GLOBAL_BATCH_SIZE, "nothing twice, nothing left out"


def test_samples_keep_to_the_weights_and_another_seed_gives_another_order(prepared: PreparedData) -> None:
    wanted = [row for step in naive_order(prepared) for row in step]
    owners = [next(token for token in row if token != EOD_ID) // 100_000 for row in wanted]
    assert owners.count(1) == round(0.3 * len(wanted))
    other = read_on_ranks(prepared.folder, data_parallel=2, steps=range(TRAIN_ITERS), seed=2)
    assert [row for step in other for row in step] != wanted
