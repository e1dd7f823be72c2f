import random
from collections.abc import Callable
from pathlib import Path

import pytest

from chinchilla_ds.config import DataConfig
from chinchilla_ds.data.prepare import prepare
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.run_plan import (
    BatchPlan,
    ModelShape,
    OptimizerPlan,
    ParallelLayout,
    Precision,
    Prediction,
    RunPlan,
    Schedule,
)

SEQ_LENGTH = 32
VOCAB_SIZE = 512


def make_documents(*, number: int, seed: int = 0) -> list[str]:
    """Distinct little texts over a small vocabulary of words."""
    generator = random.Random(seed)
    words = ["the", "a", "loss", "of", "training", "grows", "with", "compute", "and", "data", "while", "tokens", "are"]
    return [
        "\n".join(" ".join(generator.choices(words, k=8)) for _ in range(generator.randint(1, 12))) + f"\n# {index}\n"
        for index in range(number)
    ]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index, text in enumerate(make_documents(number=200)):
        (folder / f"{index:03d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(corpus_folder: Path) -> DataConfig:
    return DataConfig(paths=(corpus_folder,), held_out_fraction=0.1)


@pytest.fixture(scope="session")
def prepared(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    folder = tmp_path_factory.mktemp("prepared")
    return prepare(data, vocab_size=VOCAB_SIZE, seq_length=SEQ_LENGTH, num_tokens=1000, seed=1, folder=folder)


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., RunPlan]:
    return _make_plan


def _make_plan(
    *, data_parallel: int = 1, micro: int = 2, accumulation: int = 4, train_iters: int = 10, seed: int = 1
) -> RunPlan:
    shape = ModelShape(
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        num_query_groups=1,
        kv_channels=8,
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=VOCAB_SIZE,
        seq_length=SEQ_LENGTH,
    )
    batch = BatchPlan(
        global_batch_size=data_parallel * micro * accumulation,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        train_iters=train_iters,
    )
    num_tokens = batch.global_batch_size * train_iters * SEQ_LENGTH
    return RunPlan(
        compute_budget_flops=1.0,
        num_params=1,
        num_tokens=num_tokens,
        true_flops=float(num_tokens),
        flops_per_token=1.0,
        shape=shape,
        batch=batch,
        layout=ParallelLayout(data_parallel_size=data_parallel),
        device="cpu",
        precision=Precision.FP32,
        optimizer=OptimizerPlan(learning_rate=1e-3),
        schedule=Schedule(warmup_iters=1, decay_iters=train_iters - 1, min_learning_rate=0.0),
        prediction=Prediction(
            law="none",
            loss_law="none",
            loss=1.0,
            optimal_num_params=1.0,
            optimal_num_tokens=1.0,
            optimal_loss=1.0,
        ),
        seed=seed,
        eval_interval_iters=1,
    )
