"""What a checkpoint holds beside its tensors: where the run stands, and what it was trained with. JSON in and out."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from chinchilla_ds.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class CheckpointState:
    """Where a run stood when it was saved."""

    iteration: int
    """Optimizer steps taken."""
    data_step: int
    """Global batches consumed: those of steps taken, and those that were left out for good."""
    attempts: int
    """Steps tried, skipped ones included."""
    bad_batches: int = 0
    """Batches passed over because of a loss or gradient that was no number."""
    rewinds: int = 0
    """How often the run went back because of a loss spike."""
    optimizer_step: int = 0
    """AdamW's own count, for its bias correction; the engine fills it in."""
    elapsed_s: float
    """Training time so far."""
    loss_scaler: dict[str, Any] = field(default_factory=dict)
    """FP16's dynamic loss scale and its counters; empty in other precisions."""
    tokenizer_sha256: str | None = None
    data_key: str | None = None
    """Hash of the prepared text's manifest."""
    world_size: int = 0
    """Ranks that wrote it; the engine fills it in."""
    run_name: str | None = None
    complete: bool = False
    """Whether the run had reached its end."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of chinchilla-ds, torch, deepspeed, megatron-core and Python."""
    loss: float | None = None
    """Of the last step, nats per token."""
    held_out_loss: float | None = None
    """Of the last evaluation, nats per token."""
    held_out_bits_per_byte: float | None = None

    def to_json(self) -> str:
        """Return indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> "CheckpointState":
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: not JSON, or other fields; the message names `where`.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{where} is no state of a checkpoint: {error}") from None
