"""A micro-batch in a pass; on the last stage it computes the loss.

Shapes: s sequence, b micro-batch, v padded vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from chinchilla_ds.model.cross_entropy import token_losses
from chinchilla_ds.objective import OWN, LabelledTokens, Objective, spec_of


class Output:
    """The last stage as an objective sees it: a `chinchilla_ds.objective.DecoderOutput`."""

    def __init__(
        self,
        logits: Tensor,
        batch: LabelledTokens,
        *,
        prepared: Any,
        companion_logits: Tensor | None,
        overwrites_logits: bool,
    ) -> None:
        """Store one micro-batch's output.

        Args:
            logits: [s, b, v/tp], in the model's precision.
            batch: tokens and labels.
            prepared: the objective's preparation for this micro-batch.
            companion_logits: [s, b, v/tp] of the companion; None: there is none.
            overwrites_logits: whether nothing else reads the logits.
        """
        self.logits, self.batch = logits, batch
        self.prepared, self.companion_logits = prepared, companion_logits
        self._overwrites_logits = overwrites_logits
        self._token_losses: Tensor | None = None

    def cross_entropy(self) -> Tensor:
        """Return the loss of every token, [b, s] in fp32 nats."""
        if self._token_losses is None:
            self._token_losses = token_losses(self.logits, self.batch.labels, overwrites_logits=self._overwrites_logits)
        return self._token_losses


class MicroStep:
    """A micro-batch with the objective that computes its loss, and the results.

    It is passed to the decoder instead of labels: GPTModel passes those untouched to
    `Decoder.compute_language_model_loss`, which calls it.
    """

    def __init__(self, batch: LabelledTokens, *, objective: Objective, trains: bool, prepared: Any = None) -> None:
        """Take the micro-batch.

        Args:
            batch: Tokens and labels.
            objective: Computes the loss.
            trains: Whether the loss is to be optimised; otherwise it is the loss by which text is measured.
            prepared: The objective's preparation for this micro-batch.
        """
        self.batch, self._objective, self._trains, self._prepared = batch, objective, trains, prepared
        self.companion_logits: Tensor | None = None
        """[s, b, v/tp], set by the schedule before the loss is computed."""
        self.reported: dict[str, Tensor] = {}
        """On the last stage, once the loss is computed: the values of `reported_names`."""

    @property
    def tokens(self) -> Tensor:
        """Input tokens, [b, s]."""
        return self.batch.tokens

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the loss of logits [s, b, v/tp]; the preparation is then released."""
        output = Output(
            logits,
            self.batch,
            prepared=self._prepared,
            companion_logits=self.companion_logits,
            overwrites_logits=type(self._objective) is Objective,  # another one may read them after
        )
        self._prepared = self.companion_logits = None
        if not self._trains:
            return self._objective.evaluation_loss(output)
        value = self._objective.loss(output)
        if self._objective.is_evaluation_loss:
            self.reported = {"loss": value.loss.detach()}
            return value.loss
        with torch.no_grad():
            measured = self._objective.evaluation_loss(output).detach()
        self.reported = {"loss": measured, "objective_loss": value.loss.detach()}
        self.reported |= self._scalars(value.scalars, device=logits.device)
        return _no_number_unless_finite(value.loss, measured)

    def _scalars(self, values: "Mapping[str, Tensor | float]", *, device: torch.device) -> dict[str, Tensor]:
        names = self._objective.scalar_names
        assert values.keys() == set(names), (
            f"objective {spec_of(self._objective)} reports {sorted(values)}, and its scalar_names are {sorted(names)}"
        )
        return {f"{OWN}/{name}": torch.as_tensor(values[name], device=device).detach().float() for name in names}


def reported_names(objective: Objective) -> Sequence[str]:
    """Return the names that a step reports, in the same order on every rank; the measured loss comes first."""
    if objective.is_evaluation_loss:
        return ("loss",)
    return ("loss", "objective_loss", *(f"{OWN}/{name}" for name in objective.scalar_names))


def _no_number_unless_finite(loss: Tensor, measured: Tensor) -> Tensor:
    """Return the loss; NaN if the measured loss is non-finite, since such a step must not be taken."""
    return loss + torch.where(torch.isfinite(measured), 0.0, torch.nan)
