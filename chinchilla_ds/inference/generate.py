"""Continue prompts, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from chinchilla_ds.data.tokenizing.tokenizer import Tokenizer
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.inference.sampling import Sampling, choose
from chinchilla_ds.inference.source import LogitSource
from chinchilla_ds.inference.text_stream import TextStream

OnText = Callable[[int, str], None]
"""Called with the number of a prompt and the text that has just become certain."""


class Finish(StrEnum):
    """Why a continuation ended."""

    END_OF_DOCUMENT = "end_of_document"
    STOP = "stop"
    """A stop string appeared; it is not part of the text."""
    LENGTH = "length"
    """max_new_tokens."""


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The text that continues one prompt."""

    tokens: tuple[int, ...]
    """All tokens drawn, including those of a stop string but not the end-of-document token."""
    text: str
    finish: Finish


class OpenContinuation:
    """One prompt's continuation as it grows."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str],
        on_text: Callable[[str], None],
    ) -> None:
        """Start after a prompt.

        Args:
            tokenizer: Turns tokens into text.
            prompt: Tokens of the prompt.
            max_new_tokens: Largest number of tokens to draw.
            stop: The continuation ends before the first of these strings.
            on_text: Called with text as it becomes certain.
        """
        self._eod_id, self.max_new_tokens, self._on_text = tokenizer.eod_id, max_new_tokens, on_text
        self._stream = TextStream(tokenizer, prompt=prompt, stop=stop)
        self._pieces: list[str] = []
        self.tokens: list[int] = []
        self.finish: Finish | None = None
        """Why it ended; None until then."""

    def add(self, token: int) -> None:
        """Add the next token; do nothing once the continuation is finished."""
        if self.finish is not None:
            return
        if token == self._eod_id:
            self._end(Finish.END_OF_DOCUMENT)
            return
        self.tokens.append(token)
        self._show(self._stream.add(token))
        if self._stream.is_stopped:
            self.finish = Finish.STOP
        elif len(self.tokens) == self.max_new_tokens:
            self._end(Finish.LENGTH)

    def _end(self, finish: Finish) -> None:
        self._show(self._stream.finish())
        self.finish = Finish.STOP if self._stream.is_stopped else finish

    def _show(self, text: str) -> None:
        if text:
            self._pieces.append(text)
            self._on_text(text)

    def continuation(self) -> Continuation:
        """Return the finished continuation."""
        assert self.finish is not None, "the row still grows"
        return Continuation(tokens=tuple(self.tokens), text="".join(self._pieces), finish=self.finish)


def make_rows(
    prompts: Sequence[Sequence[int]],
    *,
    tokenizer: Tokenizer,
    max_new_tokens: int,
    stop: Sequence[str],
    on_text: OnText | None,
) -> list[OpenContinuation]:
    """Return an empty continuation for each prompt.

    Args:
        prompts: Tokens of each prompt, at least one.
        tokenizer: Turns tokens into text.
        max_new_tokens: Largest number of tokens to draw.
        stop: A continuation ends before the first of these strings.
        on_text: Called with the number of a prompt and its text as it becomes certain.
    """
    assert prompts, "there is a prompt"
    assert all(prompts), "a prompt has at least one token"
    if "" in stop:
        raise ConfigError("a stop string is empty; it must have at least one character")

    def teller(number: int) -> Callable[[str], None]:
        return lambda text: on_text(number, text) if on_text is not None else None

    return [
        OpenContinuation(tokenizer, prompt=prompt, max_new_tokens=max_new_tokens, stop=stop, on_text=teller(number))
        for number, prompt in enumerate(prompts)
    ]


@torch.inference_mode()
def generate(
    model: LogitSource,
    *,
    prompts: Sequence[Sequence[int]],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    on_text: OnText | None = None,
) -> list[Continuation]:
    """Return the continuation of each prompt; all are computed together.

    Args:
        model: Source of the logits; every rank calls this function with the same arguments.
        prompts: Tokens of each prompt, at least one. Each has its own random generator, so that its continuation does
            not depend on the others.
        tokenizer: Only its tokens can be drawn, not the padded rows of the vocabulary.
        max_new_tokens: Largest number of tokens to draw, at least 1.
        sampling: How tokens are drawn.
        stop: A continuation ends before the first of these strings.
        on_text: Called with text as it becomes certain.

    Raises:
        ConfigError: a stop string is empty.
    """
    rows = make_rows(prompts, tokenizer=tokenizer, max_new_tokens=max_new_tokens, stop=stop, on_text=on_text)
    generators = [sampling.generator(number) for number in range(len(rows))]
    logits = model.start(prompts, max_new_tokens=max_new_tokens)
    while True:
        logits = logits[:, : tokenizer.vocab_size].float().cpu()
        tokens = [
            choose(of_row, sampling=sampling, generator=generator) if row.finish is None else tokenizer.eod_id
            for row, of_row, generator in zip(rows, logits, generators, strict=True)
        ]
        for row, token in zip(rows, tokens, strict=True):
            row.add(token)
        if all(row.finish is not None for row in rows):
            return [row.continuation() for row in rows]
        logits = model.extend(tokens)
