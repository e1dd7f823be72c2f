"""Micro-batches for every rank, in an order that depends on the seed and the plan's sizes alone.

Shapes: b = micro_batch_size, s = seq_length. Sample i of the run is the i-th shuffled sequence of the training data;
optimizer step `iteration` takes samples [iteration * global_batch_size, (iteration + 1) * global_batch_size), whatever
the layout. Resuming at a step therefore reads exactly the samples that remain, also at another data-parallel size.

Attention crosses the documents inside a sequence: masks and positions are not reset at an end-of-document token.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.indexed import open_sequences
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import OutputError, reason
from chinchilla_ds.plan import RunPlan

if TYPE_CHECKING:
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset

HELD_OUT_SEED = 0
"""Shuffles the held-out sequences: a constant, so that runs of any seed are evaluated on the same text."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences of one forward pass, on the CPU."""

    tokens: "torch.Tensor"
    """Input tokens, int64 [b, s]."""
    labels: "torch.Tensor"
    """The tokens that follow them, int64 [b, s]."""


class TokenLoader:
    """Training and held-out micro-batches of one plan.

    Constructing it writes the sequence index into the prepared folder where it is not there yet. Among several ranks,
    one constructs it first; the others then find the index, in a folder that all share.
    """

    def __init__(self, *, prepared: PreparedData, plan: RunPlan) -> None:
        self._plan = plan
        self._train = _open(
            prepared,
            prefix=prepared.train_prefix,
            seq_length=plan.shape.seq_length,
            num_samples=plan.batch.train_iters * plan.batch.global_batch_size,
            seed=plan.seed,
        )
        self._held_out = _open(
            prepared,
            prefix=prepared.held_out_prefix,
            seq_length=plan.shape.seq_length,
            num_samples=None,
            seed=HELD_OUT_SEED,
        )

    def micro_batches(self, iteration: int, data_parallel_rank: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches of optimizer step `iteration` (from 0) for one data-parallel rank.

        There are gradient_accumulation_steps of them. Micro-batch a of rank r holds the samples from
        (a * data_parallel_size + r) * micro_batch_size on within the step.
        """
        batch = self._plan.batch
        if not 0 <= iteration < batch.train_iters:
            raise IndexError(f"iteration {iteration} is outside the plan's {batch.train_iters} steps")
        first = iteration * batch.global_batch_size
        samples = range(first, first + batch.global_batch_size)
        return self._cut(self._train, samples, data_parallel_rank)

    def held_out_batches(self, *, data_parallel_rank: int, max_tokens: int | None = None) -> Iterator[MicroBatch]:
        """Yield one data-parallel rank's micro-batches of the held-out part, the same sequences on every call.

        All ranks together see `num_held_out_sequences` sequences: as many as fit into `max_tokens`, cut to a multiple
        of global_batch_size so that they do not depend on the layout and every rank has the same number of
        micro-batches. A held-out part smaller than one global batch is repeated up to one.
        """
        available = len(self._held_out)
        samples = [index % available for index in range(self.num_held_out_sequences(max_tokens=max_tokens))]
        return self._cut(self._held_out, samples, data_parallel_rank)

    def num_held_out_sequences(self, *, max_tokens: int | None = None) -> int:
        """Return how many sequences `held_out_batches` gives over all data-parallel ranks."""
        global_batch_size = self._plan.batch.global_batch_size
        wanted = len(self._held_out)
        if max_tokens is not None:
            wanted = min(wanted, max_tokens // self._plan.shape.seq_length)
        return max(1, wanted // global_batch_size) * global_batch_size

    def _cut(
        self, sequences: "GPTDataset", samples: "range | list[int]", data_parallel_rank: int
    ) -> Iterator[MicroBatch]:
        """Deal `samples` to the data-parallel ranks, one micro-batch after the other."""
        size, ranks = self._plan.batch.micro_batch_size, self._plan.layout.data_parallel_size
        if not 0 <= data_parallel_rank < ranks:
            raise IndexError(f"data_parallel_rank {data_parallel_rank} is outside the plan's {ranks} ranks")
        starts = range(data_parallel_rank * size, len(samples), ranks * size)
        return (_micro_batch(sequences, samples[start : start + size]) for start in starts)


def _micro_batch(sequences: "GPTDataset", samples: "range | list[int]") -> MicroBatch:
    import torch

    items = [sequences[index] for index in samples]
    return MicroBatch(
        tokens=torch.stack([item["tokens"] for item in items]),
        labels=torch.stack([item["labels"] for item in items]),
    )


def _open(prepared: PreparedData, *, prefix: Path, seq_length: int, num_samples: int | None, seed: int) -> "GPTDataset":
    """Open the sequences over an index that one rank has built: complete under its name, or not there at all."""

    def load(index_folder: Path) -> "GPTDataset":
        return open_sequences(
            prefix=prefix,
            index_folder=index_folder,
            seq_length=seq_length,
            num_samples=num_samples,
            seed=seed,
            eod_id=prepared.eod_id,
            vocab_size=prepared.vocab_size,
            tokenizer_sha256=prepared.tokenizer_sha256,
        )

    name = f"{prefix.name}-seq{seq_length}-samples{num_samples or 'all'}-seed{seed}"
    final = prepared.folder / "index" / name
    _build_index(load, final)
    return load(final)


def _build_index(load: "Callable[[Path], GPTDataset]", final: Path) -> None:
    """Build the index in a temporary folder and move it to `final`, unless that is there already."""
    if final.is_dir():
        return
    try:
        final.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=final.parent, prefix=f".{final.name}.", ignore_cleanup_errors=True
        ) as name:
            partial = Path(name, "index")
            load(partial)
            if not final.is_dir():
                partial.rename(final)
    except OSError as error:
        if not final.is_dir():
            raise OutputError(f"cannot write the sequence index to {final.parent}: {reason(error)}") from None
