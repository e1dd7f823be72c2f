"""Micro-batches for every rank, in an order that depends only on the seed and the plan's sizes.

Shapes: b = micro_batch_size, s = seq_length. Sample i of the run is the i-th shuffled sequence of the training data;
optimizer step `iteration` takes samples [iteration * global_batch_size, (iteration + 1) * global_batch_size), whatever
the layout. Resuming at a step therefore reads exactly the samples that remain, also at another data-parallel size.

Several sources are blended: each sample comes from the source that is furthest behind its weight.

A sequence may hold parts of several documents; `RunPlan.document_mask` says whether attention crosses them.
"""

import errno
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chinchilla_ds.data.blend import BlendShare, blend_of
from chinchilla_ds.data.feeding.indexed import Sequences, open_blend, open_sequences
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.errors import DataError, OutputError, reason
from chinchilla_ds.files import check_arrays, whole_folder
from chinchilla_ds.run_plan import RunPlan

if TYPE_CHECKING:
    import torch

HELD_OUT_SEED = 0
"""Shuffles the held-out sequences: a constant, so that runs of any seed are evaluated on the same text."""

_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
"""Errors that mean the index cannot be written beside a read-only corpus."""


@dataclass(frozen=True, kw_only=True)
class TokenBatch:
    """Sequences of one forward pass, on the CPU."""

    tokens: "torch.Tensor"
    """Input tokens, int64 [b, s]."""
    labels: "torch.Tensor"
    """The tokens that follow them, int64 [b, s]."""


class TokenLoader:
    """Training and held-out micro-batches of one plan.

    Constructing it writes the sequence index if it is absent: into the prepared folder, or wherever the corpus says
    (`PreparedData.index_folder`). Of several ranks, one constructs it first; the others then find the index in a
    folder that all share.
    """

    def __init__(self, *, prepared: PreparedData, plan: RunPlan) -> None:
        self._plan = plan
        self._prepared = prepared
        self._shares = blend_of(prepared, num_tokens=plan.num_tokens)
        self._train = _open_train(prepared, plan=plan, shares=self._shares)
        self._held_out = open_held_out(prepared, seq_length=plan.shape.seq_length)

    @property
    def shares(self) -> tuple[BlendShare, ...]:
        """Each source's share of the run."""
        return self._shares

    def micro_batches(self, iteration: int, data_parallel_rank: int) -> Iterator[TokenBatch]:
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

    def held_out_batches(self, *, data_parallel_rank: int, max_tokens: int | None = None) -> Iterator[TokenBatch]:
        """Yield one data-parallel rank's micro-batches of the held-out part, the same sequences on every call.

        All ranks together see `num_held_out_sequences` sequences: as many as fit into `max_tokens`, rounded down to a
        multiple of global_batch_size, so that they do not depend on the layout and every rank has the same number of
        micro-batches. A held-out part smaller than one global batch is repeated up to that size.
        """
        available = len(self._held_out)
        samples = [index % available for index in range(self.num_held_out_sequences(max_tokens=max_tokens))]
        return self._cut(self._held_out, samples, data_parallel_rank)

    def num_held_out_sequences(self, *, max_tokens: int | None = None) -> int:
        """Return the number of sequences of `held_out_batches` over all data-parallel ranks."""
        global_batch_size = self._plan.batch.global_batch_size
        wanted = len(self._held_out)
        if max_tokens is not None:
            wanted = min(wanted, max_tokens // self._plan.shape.seq_length)
        return max(1, wanted // global_batch_size) * global_batch_size

    def _cut(self, sequences: Sequences, samples: "range | list[int]", data_parallel_rank: int) -> Iterator[TokenBatch]:
        """Yield this rank's micro-batches of `samples`, which are dealt to the data-parallel ranks in turn."""
        size, ranks = self._plan.batch.micro_batch_size, self._plan.layout.data_parallel_size
        if not 0 <= data_parallel_rank < ranks:
            raise IndexError(f"data_parallel_rank {data_parallel_rank} is outside the plan's {ranks} ranks")
        starts = range(data_parallel_rank * size, len(samples), ranks * size)
        return (_micro_batch(sequences, samples[start : start + size], prepared=self._prepared) for start in starts)


def _micro_batch(sequences: Sequences, samples: "range | list[int]", *, prepared: PreparedData) -> TokenBatch:
    import torch

    items = [sequences[index] for index in samples]
    tokens = torch.stack([item["tokens"] for item in items])
    labels = torch.stack([item["labels"] for item in items])
    for values in (tokens, labels):
        low, high = (int(bound) for bound in torch.aminmax(values))
        if low < 0 or high >= prepared.vocab_size:
            raise DataError(
                f"{prepared.folder} holds token {low if low < 0 else high}, but its tokenizer has "
                f"{prepared.vocab_size} pieces: its files are damaged; restore them, or prepare the text again"
            )
    return TokenBatch(tokens=tokens, labels=labels)


def _open_train(prepared: PreparedData, *, plan: RunPlan, shares: tuple[BlendShare, ...]) -> Sequences:
    """Open the run's training sequences, blended if there are several sources."""
    seq_length, seed = plan.shape.seq_length, plan.seed
    total = plan.batch.train_iters * plan.batch.global_batch_size

    def load(index_folder: Path) -> Sequences:
        def open_source(place: int, num_samples: int) -> Sequences:
            return _open_source(
                prepared,
                prefix=shares[place].prefix,
                index_folder=index_folder,
                seq_length=seq_length,
                num_samples=num_samples,
                seed=seed,
            )

        if len(shares) == 1:
            return open_source(0, total)
        weights = [share.weight for share in shares]
        return open_blend(open_source, weights=weights, num_samples=total, index_folder=index_folder)

    key = _key(prepared, shares)
    datasets = shares[0].prefix.name if len(shares) == 1 else f"blend-{_weights_key(shares)}"
    return _open_indexed(load, prepared=prepared, name=f"{datasets}-seq{seq_length}-samples{total}-seed{seed}{key}")


def open_held_out(prepared: PreparedData, *, seq_length: int) -> Sequences:
    """Open one pass over the held-out part."""

    def load(index_folder: Path) -> Sequences:
        return _open_source(
            prepared,
            prefix=prepared.held_out_prefix,
            index_folder=index_folder,
            seq_length=seq_length,
            num_samples=None,
            seed=HELD_OUT_SEED,
        )

    prefix, key = prepared.held_out_prefix.name, prepared.key_of(prepared.held_out_prefix)
    name = f"{prefix}-seq{seq_length}-samplesall-seed{HELD_OUT_SEED}"
    return _open_indexed(load, prepared=prepared, name=f"{name}-{key}" if key else name)


def _key(prepared: PreparedData, shares: tuple[BlendShare, ...]) -> str:
    """Return the key of the index of these tokens; empty if the manifest has no digests."""
    keys = "".join(prepared.key_of(share.prefix) for share in shares)
    return f"-{hashlib.blake2b(keys.encode(), digest_size=5).hexdigest()}" if keys else ""


def _weights_key(shares: tuple[BlendShare, ...]) -> str:
    text = "\n".join(f"{share.name}\t{share.weight!r}" for share in shares)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _open_source(
    prepared: PreparedData, *, prefix: Path, index_folder: Path, seq_length: int, num_samples: int | None, seed: int
) -> Sequences:
    sequences: Sequences = open_sequences(
        prefix=prefix,
        index_folder=index_folder,
        seq_length=seq_length,
        num_samples=num_samples,
        seed=seed,
        eod_id=prepared.eod_id,
        vocab_size=prepared.vocab_size,
        tokenizer_sha256=prepared.tokenizer_sha256,
    )
    return sequences


def _open_indexed(load: Callable[[Path], Sequences], *, prepared: PreparedData, name: str) -> Sequences:
    """Open sequences by their index: the one in the prepared folder, or one that is built now."""
    beside_tokens = prepared.folder / "index" / name
    final = beside_tokens if beside_tokens.is_dir() or prepared.index_folder is None else prepared.index_folder / name
    try:
        _build_index(load, final)
    except OSError as error:
        if error.errno in _READ_ONLY:
            return _open_aside(load)
        raise OutputError(f"cannot write the sequence index to {final.parent}: {reason(error)}") from None
    check_arrays(final)
    return load(final)


def _build_index(load: Callable[[Path], Sequences], final: Path) -> None:
    """Build the index in `final`, completely or not at all."""
    if final.is_dir():
        return
    try:
        with whole_folder(final) as aside:
            load(aside)
    except OSError:
        if not final.is_dir():  # otherwise another process has built it
            raise


def _open_aside(load: Callable[[Path], Sequences]) -> Sequences:
    """Open sequences whose index cannot be kept: the mapping survives the removal of its folder."""
    with tempfile.TemporaryDirectory() as name:
        return load(Path(name, "index"))
