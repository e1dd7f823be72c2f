"""`chinchilla-ds generate`: text from a trained model, for prompts given as flags, piped in, or typed."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from chinchilla_ds.cli.arguments import flag, path, whole
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.cli.trained import model_flags, ranks_of
from chinchilla_ds.errors import ChinchillaError, ConfigError
from chinchilla_ds.library import DEFAULT_NEW_TOKENS

if TYPE_CHECKING:
    from chinchilla_ds.inference.generate import Continuation, OnText
    from chinchilla_ds.inference.model import TrainedModel
    from chinchilla_ds.inference.ranks import ModelRanks
    from chinchilla_ds.inference.sampling import Sampling

COMMAND = Command(
    name="generate",
    group="use",
    summary="continue prompts with a trained model",
    examples=(
        'chinchilla-ds generate runs/first --prompt "def " --stream',
        'chinchilla-ds generate runs/first --prompt "def " "class " --temperature 0 --max-tokens 20 --json',
    ),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    model_flags(parser)
    parser.add_argument(
        "--prompt",
        nargs="+",
        metavar="TEXT",
        help="text to continue; several form one batch (default: ask, or read stdin)",
    )
    text = f"largest number of tokens to draw (default {DEFAULT_NEW_TOKENS}, within the context)"
    flag(parser, "max-tokens", whole, text, dest="max_new_tokens")
    flag(parser, "temperature", float, "divides the logits; 0 takes the most likely token (default 0.8)", default=0.8)
    flag(parser, "top-k", int, "draw only from the k most likely tokens", metavar="K")
    flag(parser, "top-p", float, "draw only from the most likely tokens whose probabilities sum to p", metavar="P")
    parser.add_argument("--stop", nargs="+", default=(), metavar="TEXT", help="end before the first of these strings")
    flag(parser, "seed", int, "seed of the draws (default 0)", default=0, metavar="N")
    parser.add_argument("--stream", action="store_true", help="show text as it is generated")
    flag(parser, "draft", path, "a smaller model with the same tokenizer, which drafts tokens", metavar="RUN")
    parser.add_argument(
        "--compile", action="store_true", help="use torch.compile (CUDA graphs on a GPU); slow to start"
    )
    parser.add_argument(
        "--json", action="store_true", help="print prompts, texts and the reasons for their ends as JSON"
    )


def run(arguments: argparse.Namespace) -> str:
    """Return the text, or show it as it is generated."""
    _check(arguments)
    from chinchilla_ds.inference.sampling import Sampling

    sampling = Sampling(
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p, seed=arguments.seed
    )
    ranks = ranks_of(arguments)
    writer = _Writer(arguments, ranks=ranks, sampling=sampling)
    if arguments.prompt is None:
        _answer_lines(writer, ranks=ranks)
        return ""
    text = writer.write(arguments.prompt, streams=arguments.stream)
    return text if _is_first(ranks) else ""


def _check(arguments: argparse.Namespace) -> None:
    """Refuse incompatible flags, before anything slow.

    Raises:
        ConfigError: lists all conflicts.
    """
    several = arguments.prompt is not None and len(arguments.prompt) > 1
    ranks = arguments.tensor_model_parallel_size * arguments.pipeline_model_parallel_size
    clashes = {
        f"--stream shows one prompt, and --prompt has {len(arguments.prompt or ())}": arguments.stream and several,
        "--stream cannot be combined with --json, which is printed at the end": arguments.stream and arguments.json,
        "--json without --prompt": arguments.json and arguments.prompt is None,
        "--compile cannot be combined with --draft, whose longer passes are not compiled": arguments.compile
        and arguments.draft is not None,
        f"--compile on {ranks} ranks, whose collectives are not compiled": arguments.compile and ranks > 1,
    }
    if problems := [f"{text}: drop one" for text, is_so in clashes.items() if is_so]:
        raise ConfigError(problems)
    _check_encodable(arguments.prompt or (), what="prompt")
    _check_encodable(arguments.stop, what="--stop string")


def _check_encodable(texts: Sequence[str], *, what: str) -> None:
    """Check that texts are valid UTF-8: Python represents other bytes of a command line by lone surrogates.

    Raises:
        ConfigError: names each invalid text.
    """
    problems = []
    for number, text in enumerate(texts, start=1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            problems.append(f"{what} {number} is not UTF-8 at character {error.start + 1}")
    if problems:
        raise ConfigError(problems)


class _Writer:
    """The model, the draft model if any, and the settings of generation."""

    def __init__(self, arguments: argparse.Namespace, *, ranks: "ModelRanks", sampling: "Sampling") -> None:
        from chinchilla_ds.inference.model import TrainedModel
        from chinchilla_ds.inference.source import CachedDecoder

        self._arguments, self._sampling = arguments, sampling
        self.is_first = _is_first(ranks)
        self._model = TrainedModel.open(arguments.run)
        draft = None if arguments.draft is None else TrainedModel.open(arguments.draft)
        if draft is not None:
            self._check_draft(draft)
        self._context_tokens = min(model.context_tokens for model in (self._model, draft) if model is not None)
        if arguments.prompt is not None:
            self._prepare(arguments.prompt)  # overlong prompts are reported before the weights are read
        decoder = self._model.load(ranks=ranks, precision=arguments.dtype)
        self._source = CachedDecoder(decoder, compiled=arguments.compile)
        self._draft = None if draft is None else CachedDecoder(draft.load(ranks=ranks, precision=arguments.dtype))

    def _check_draft(self, draft: "TrainedModel") -> None:
        if draft.tokenizer.sha256 != self._model.tokenizer.sha256:
            raise ConfigError(
                f"--draft {self._arguments.draft} has a different tokenizer from {self._arguments.run}: its tokens "
                "stand for different text; give a model that was trained with the same tokenizer"
            )

    def _prepare(self, prompts: Sequence[str]) -> tuple[list[list[int]], int]:
        from chinchilla_ds.inference.model import new_tokens_within

        _check_encodable(prompts, what="prompt")
        tokens = [self._model.encode_prompt(prompt) for prompt in prompts]
        wanted = self._arguments.max_new_tokens
        most = new_tokens_within(
            self._context_tokens, prompts=tokens, max_new_tokens=wanted, default=DEFAULT_NEW_TOKENS
        )
        return tokens, most

    def write(self, prompts: Sequence[str], *, streams: bool) -> str:
        """Return the text to print once generation ends; with `streams` it is shown as it is generated instead."""
        tokens, most = self._prepare(prompts)
        if streams:
            show = _show if self.is_first else _show_nothing
            show(prompts[0])
            self._continue(tokens, most, lambda _, text: show(text))
            show("\n")
            return ""
        continuations = self._continue(tokens, most, None)
        return _as_json(prompts, continuations) if self._arguments.json else _as_text(prompts, continuations)

    def _continue(self, tokens: list[list[int]], most: int, on_text: "OnText | None") -> "list[Continuation]":
        from chinchilla_ds.inference.generate import generate
        from chinchilla_ds.inference.speculative import generate_speculatively

        settings: dict[str, Any] = {
            "prompts": tokens,
            "tokenizer": self._model.tokenizer,
            "max_new_tokens": most,
            "sampling": self._sampling,
            "stop": self._arguments.stop,
            "on_text": on_text,
        }
        if self._draft is None:
            return generate(self._source, **settings)
        return generate_speculatively(self._source, draft=self._draft, **settings)


def _is_first(ranks: "ModelRanks") -> bool:
    return ranks.pp_rank == 0 and ranks.tp_rank == 0


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _show_nothing(_text: str) -> None:
    """Do nothing: all ranks except the first use this function."""


def _as_text(prompts: Sequence[str], continuations: "Sequence[Continuation]") -> str:
    """Return prompts with continuations; if there are several, a numbered line precedes each."""
    texts = [prompt + continuation.text for prompt, continuation in zip(prompts, continuations, strict=True)]
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"--- {number} of {len(texts)}\n{text}" for number, text in enumerate(texts, start=1))


def _as_json(prompts: Sequence[str], continuations: "Sequence[Continuation]") -> str:
    rows = [
        {"prompt": prompt, "text": more.text, "num_tokens": len(more.tokens), "finish": more.finish}
        for prompt, more in zip(prompts, continuations, strict=True)
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False)


def _answer_lines(writer: _Writer, *, ranks: "ModelRanks") -> None:
    """Continue one line after the other, typed or piped in."""
    asks = sys.stdin.isatty()
    for line in _shared_lines(lambda: _typed_lines() if asks else _piped_lines(), ranks=ranks):
        try:
            writer.write([line.rstrip("\n")], streams=True)
        except ChinchillaError as error:
            if not asks:
                raise
            _show("".join(f"error: {problem}\n" for problem in error.problems))


def _piped_lines() -> Iterator[str]:
    try:
        yield from sys.stdin
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8: {error.reason}; pipe UTF-8 text, a prompt a line") from None


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ")
        except EOFError:
            _show("\n")
            return


def _shared_lines(read: Callable[[], Iterator[str]], *, ranks: "ModelRanks") -> Iterator[str]:
    """Yield the lines that the first rank reads, on every rank."""
    if ranks.world_size == 1:
        yield from read()
        return
    import torch.distributed as dist

    lines = read() if _is_first(ranks) else iter(())
    while True:
        line: list[str | None] = [next(lines, None)]
        dist.broadcast_object_list(line, src=0)
        if line[0] is None:
            return
        yield line[0]
