"""CheckpointReader: a checkpoint's plan, state and tensors, one tensor in memory at a time, without any engine."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint import tensors
from chinchilla_ds.checkpoint.contents import find_tokenizer, problems_of, read_contents
from chinchilla_ds.checkpoint.index import WEIGHT, StoredTensor
from chinchilla_ds.errors import CheckpointError, did_you_mean
from chinchilla_ds.structured import parse_json


class CheckpointReader:
    """An intact checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        """Read plan, state and the list of tensors of a checkpoint's folder.

        Raises:
            CheckpointError: a part of it is missing, unreadable, or invalid.
        """
        self.folder = checkpoint
        contents = read_contents(checkpoint)
        self.state, self.plan, self.index = contents.state, contents.plan, contents.index

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the newest intact checkpoint of `path`: a checkpoint, a folder of them, or a run's folder.

        Files are first read in full and compared with the manifest.

        Raises:
            CheckpointError: there is none, or no intact one; damaged ones are named.
        """
        problems = []
        for checkpoint in folders.find_checkpoints(path):
            if not (own_problems := problems_of(checkpoint)):
                return cls(checkpoint)
            problems += own_problems
        raise CheckpointError(problems)

    @property
    def tokenizer_path(self) -> Path | None:
        """The tokenizer that made the training text: a SentencePiece model, or a Hugging Face folder."""
        return find_tokenizer(self.folder)

    def ds_config(self) -> dict[str, Any]:
        """Return the resolved DeepSpeed JSON of the run.

        Raises:
            CheckpointError: it is missing, or not a JSON object.
        """
        path = self.folder / folders.DS_CONFIG_NAME
        values = parse_json(
            folders.read_small_file(self.folder, folders.DS_CONFIG_NAME), where=str(path), error=CheckpointError
        )
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} is not a JSON object")
        return values

    @property
    def has_optimizer(self) -> bool:
        """Whether the optimizer's states are there, so that training can resume exactly."""
        states = self.plan.optimizer.states
        return not states or any(key.startswith(f"{states[0]}/") for key in self.index.tensors)

    def names(self) -> tuple[str, ...]:
        """Return the global names of all weights."""
        prefix = f"{WEIGHT}/"
        return tuple(sorted(key.removeprefix(prefix) for key in self.index.tensors if key.startswith(prefix)))

    def shape(self, name: str, /) -> tuple[int, ...]:
        """Return the shape of a whole weight."""
        return self._stored(name, None).shape

    def read(self, name: str, /, *, state: str | None = None) -> Tensor:
        """Return a whole weight in FP32 on the CPU, or one of the optimizer's states of it, such as `exp_avg`."""
        return self.read_rows(name, rows=slice(None), state=state)

    def read_rows(self, name: str, /, *, rows: slice, state: str | None = None) -> Tensor:
        """Return some rows of a weight.

        Args:
            name: global name of the weight.
            rows: consecutive rows.
            state: name of an optimizer state; None: the weight.
        """
        size = self._stored(name, state).shape
        start, stop, step = rows.indices(size[0])
        assert step == 1, "rows must be consecutive"
        values = torch.zeros((max(0, stop - start), *size[1:]))
        block = tensors.Block(
            key=_key(name, state), full_shape=size, offsets=(start, *[0] * (len(size) - 1)), values=values
        )
        if values.numel():
            with folders.reported_as(self.folder):
                tensors.load_blocks([block], index=self.index, folder=self.folder / folders.TENSORS_NAME)
        return values

    def _stored(self, name: str, state: str | None) -> StoredTensor:
        key = _key(name, state)
        if key not in self.index.tensors:
            raise CheckpointError(f"{self.folder} has no tensor {key}{did_you_mean(key, self.index.tensors)}")
        return self.index.tensors[key]


def _key(name: str, state: str | None) -> str:
    return f"{state or WEIGHT}/{name}"
