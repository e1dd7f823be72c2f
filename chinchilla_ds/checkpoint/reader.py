"""CheckpointReader: a checkpoint's plan, state and tensors, one tensor in memory at a time, without any engine."""

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint import tensors
from chinchilla_ds.checkpoint.state import CheckpointState, plan_of_checkpoint
from chinchilla_ds.errors import CheckpointError, did_you_mean


class CheckpointReader:
    """A whole checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        """Read plan, state and the list of tensors of a checkpoint's folder.

        Raises:
            CheckpointError: a part of it is missing or unreadable.
        """
        self.folder = checkpoint
        self.state = CheckpointState.load(checkpoint / folders.STATE_NAME)
        self.plan = plan_of_checkpoint(checkpoint)
        with folders.reported_as(checkpoint):
            self._known = tensors.read_metadata(checkpoint / folders.TENSORS_NAME)

    @classmethod
    def open(cls, path: Path) -> "CheckpointReader":
        """Open the newest whole checkpoint that `path` means: a checkpoint, a folder of them, or a run's folder.

        Files are read in full and held against the manifest first.

        Raises:
            CheckpointError: there is none, or none that is whole; what is damaged is named.
        """
        problems = []
        for checkpoint in folders.find_checkpoints(path):
            if not (found := folders.problems_of(checkpoint)):
                return cls(checkpoint)
            problems += found
        raise CheckpointError(problems)

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer that made the training text: a SentencePiece model, or a Hugging Face folder."""
        found = (self.folder / "tokenizer.model", self.folder / "tokenizer")
        return next((path for path in found if path.exists()), None)

    @property
    def has_moments(self) -> bool:
        """Whether the optimizer's state is there, so that training can go on as if it had never stopped."""
        return any(key.startswith(f"{tensors.MOMENTS[0]}/") for key in self._known)

    def names(self) -> tuple[str, ...]:
        """Return the global names of all weights."""
        prefix = f"{tensors.WEIGHT}/"
        return tuple(sorted(key.removeprefix(prefix) for key in self._known if key.startswith(prefix)))

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the shape of a whole weight."""
        return tuple(self._stored(name, None).size)

    def read(self, name: str, /, *, moment: str | None = None) -> Tensor:
        """Return a whole weight in FP32 on the CPU, or one of AdamW's moments of it: `exp_avg` or `exp_avg_sq`."""
        return self.read_rows(name, rows=slice(None), moment=moment)

    def read_rows(self, name: str, /, *, rows: slice, moment: str | None = None) -> Tensor:
        """Return some rows of a weight."""
        size = tuple(self._stored(name, moment).size)
        start, stop, step = rows.indices(size[0])
        assert step == 1, "rows must be consecutive"
        values = torch.empty((max(0, stop - start), *size[1:]))
        block = tensors.Block(
            key=_key(name, moment), full_shape=size, offsets=(start, *[0] * (len(size) - 1)), values=values
        )
        if values.numel():
            with folders.reported_as(self.folder):
                tensors.load_blocks([block], folder=self.folder / folders.TENSORS_NAME)
        return values

    def _stored(self, name: str, moment: str | None) -> TensorStorageMetadata:
        key = _key(name, moment)
        if key not in self._known:
            raise CheckpointError(f"{self.folder} has no tensor {key}{did_you_mean(key, self._known)}")
        return self._known[key]


def _key(name: str, moment: str | None) -> str:
    assert moment is None or moment in tensors.MOMENTS, f"{moment} is none of {tensors.MOMENTS}"
    return f"{moment or tensors.WEIGHT}/{name}"
