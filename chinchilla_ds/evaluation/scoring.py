"""Scores documents with a model: the loss of every token, counted once, summed by source.

Shapes: b windows, s tokens of the longest.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from chinchilla_ds.evaluation.scores import Document, Score
from chinchilla_ds.evaluation.windows import Window, cut

TokenLosses = Callable[[Tensor, Tensor], Tensor]
"""From tokens and labels, both int64 [b, s], to the cross-entropy of each label in nats [b, s]."""

BATCH_TOKENS = 8192
"""Tokens of one forward pass, padding included."""
_WINDOWS_SORTED = 1024
"""Windows that are sorted by length before they are batched, to minimise padding."""


@torch.inference_mode()
def score_documents(
    documents: Iterable[Document],
    *,
    token_losses: TokenLosses,
    eod_id: int,
    before_id: int | None = None,
    window: int,
    stride: int,
    device: torch.device,
    on_tokens: Callable[[int], None] | None = None,
) -> dict[str, Score]:
    """Return the score of every source.

    Each document is read separately: its score does not depend on the others.

    Args:
        documents: In any order; they are not all in memory at once.
        token_losses: The model.
        eod_id: The end-of-document token, which follows a document.
        before_id: The token in front of a document, which is not scored; None: another end of document.
        window: The most tokens that the model reads at once.
        stride: Tokens that each window after a document's first scores.
        device: The model's device.
        on_tokens: Receives the number of tokens scored since its last call.
    """
    scores: dict[str, Score] = {}
    before = eod_id if before_id is None else before_id
    for batch in _batches(_windows(documents, scores, before=before, window=window, stride=stride)):
        tokens, labels, counted = _stack([part for _, part in batch], filler=eod_id)
        losses = token_losses(tokens.to(device), labels.to(device)).double().cpu() * counted
        ends = (losses * (labels == eod_id)).sum(dim=1)
        for (source, _), nats, end_nats in zip(batch, losses.sum(dim=1).tolist(), ends.tolist(), strict=True):
            scores[source] += Score(nats=nats, end_nats=end_nats)
        if on_tokens is not None:
            on_tokens(int(counted.sum()))
    return scores


def _windows(
    documents: Iterable[Document], scores: dict[str, Score], *, before: int, window: int, stride: int
) -> Iterator[tuple[str, Window]]:
    """Yield every window with its source, and count the documents in `scores`."""
    for document in documents:
        counts = Score(documents=1, tokens=len(document.tokens), bytes=document.num_bytes)
        scores[document.source] = scores.get(document.source, Score()) + counts
        for part in cut(document.tokens, before=before, window=window, stride=stride):
            yield document.source, part


def _batches(windows: Iterable[tuple[str, Window]]) -> Iterator[list[tuple[str, Window]]]:
    """Yield batches of windows of similar length, of about `BATCH_TOKENS` each."""
    waiting: list[tuple[str, Window]] = []
    for source_and_window in windows:
        waiting.append(source_and_window)
        if len(waiting) == _WINDOWS_SORTED:
            yield from _cut_batches(waiting)
            waiting = []
    yield from _cut_batches(waiting)


def _cut_batches(waiting: list[tuple[str, Window]]) -> Iterator[list[tuple[str, Window]]]:
    ordered = sorted(waiting, key=lambda source_and_window: len(source_and_window[1].tokens))
    while ordered:
        size = max(1, BATCH_TOKENS // len(ordered[-1][1].tokens))
        yield ordered[-size:]
        del ordered[-size:]


def _stack(windows: list[Window], *, filler: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens and labels [b, s], padded on the right, which no token attends to, and the mask of what counts."""
    longest = max(len(part.tokens) for part in windows)
    tokens = torch.full((len(windows), longest), filler)
    labels = torch.full((len(windows), longest), filler)
    counted = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, part in enumerate(windows):
        tokens[row, : len(part.tokens)] = torch.tensor(part.tokens)
        labels[row, : len(part.labels)] = torch.tensor(part.labels)
        counted[row, part.first_scored : len(part.labels)] = True
    return tokens, labels, counted
