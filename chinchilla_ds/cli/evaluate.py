"""`chinchilla-ds evaluate`: a trained model's losses on held-out text, on files, and on tasks."""

import argparse
import functools
import json
import re
import tempfile
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.cli.arguments import flag, path, whole
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.cli.trained import model_flags, ranks_of
from chinchilla_ds.config import DataConfig
from chinchilla_ds.errors import ConfigError, OutputError, reason
from chinchilla_ds.run_plan import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chinchilla_ds.inference.model import TrainedModel
    from chinchilla_ds.inference.ranks import ModelRanks

COMMAND = Command(
    name="evaluate",
    group="use",
    summary="measure bits per byte, perplexity and tasks of a trained model",
    examples=(
        "chinchilla-ds evaluate runs/first                     # the run's own held-out text",
        "chinchilla-ds evaluate runs/first --data mine=notes.txt",
    ),
)

LOG_NAME = "evaluations.jsonl"
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*)=(.+)")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    model_flags(parser)
    data = parser.add_argument_group("text")
    data.add_argument(
        "--data",
        nargs="+",
        metavar="[NAME=]PATH",
        help="files, folders, patterns, or a prepared folder, for its held-out part (default: the run's own)",
    )
    flag(data, "text-field", str, f"column that holds the text (default {DataConfig().text_field})")
    flag(data, "window", whole, "tokens read at a time (default: the model's context)")
    flag(data, "stride", whole, "tokens scored by each window after a document's first (default: half the window)")
    tasks = parser.add_argument_group("tasks (needs chinchilla-ds[eval])")
    flag(tasks, "tasks", str, "tasks of lm-eval, such as arc_easy,hellaswag", metavar="NAME,...")
    flag(tasks, "include-path", path, "folder with your own task files (.yaml)", metavar="FOLDER")
    flag(tasks, "limit", whole, "largest number of examples of each task")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> str:
    """Evaluate, append the result to the run's log, and return it as a table or as JSON."""
    for name in ("include_path", "limit"):
        if getattr(arguments, name) is not None and arguments.tasks is None:
            raise ConfigError(f"--{name.replace('_', '-')} is for --tasks, which is not given: drop it, or name tasks")
    warnings.filterwarnings(
        "ignore", category=UserWarning, module=r"megatron\."
    )  # about packages that nothing here needs
    from chinchilla_ds.inference.model import TrainedModel

    ranks = ranks_of(arguments)
    model = TrainedModel.open(arguments.run)
    log = model.run_folder / LOG_NAME
    _check_log(log)
    result: dict[str, Any] = {
        "checkpoint": str(model.reader.folder),
        "iteration": model.reader.state.iteration,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if arguments.tasks is None:
        result |= _on_text(arguments, model=model, ranks=ranks)
    else:
        result |= _on_tasks(arguments, model=model, ranks=ranks)
    if not _is_first(ranks):
        return ""
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(result, ensure_ascii=False) + "\n")
    if arguments.json:
        return json.dumps(result, indent=2, ensure_ascii=False)
    return "\n".join([*_table(result), "", f"appended to {log}"])


def _check_log(log: Path) -> None:
    """Check before the evaluation that its result can be appended.

    Raises:
        OutputError: the log cannot be written.
    """
    try:
        log.open("a").close()
    except OSError as error:
        raise OutputError(f"the result cannot be written to {log}: {reason(error)}") from None


def _on_text(arguments: argparse.Namespace, *, model: "TrainedModel", ranks: "ModelRanks") -> dict[str, Any]:
    from chinchilla_ds.runs.evaluate import evaluate_on_text

    with _Progress(shown=_is_first(ranks)) as on_tokens:
        evaluation = evaluate_on_text(
            model,
            load=functools.partial(model.load, ranks=ranks, precision=arguments.dtype),
            paths=None if arguments.data is None else _by_source(arguments.data),
            text_field=arguments.text_field,
            window=arguments.window,
            stride=arguments.stride,
            on_tokens=on_tokens,
        )
    return {
        "text": evaluation.text,
        "window": evaluation.window,
        "stride": evaluation.stride,
        "dtype": str(evaluation.dtype).removeprefix("torch."),
        "scores": {name: score.to_data() for name, score in evaluation.scores.items()},
    }


def _is_first(ranks: "ModelRanks") -> bool:
    return ranks.tp_rank == 0 and ranks.pp_rank == 0


def _by_source(words: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the paths of each source; a path without a name is a source of its own."""
    paths: dict[str, tuple[str, ...]] = {}
    for word in words:
        match = None if Path(word).exists() else _NAMED.fullmatch(word)
        name, place = (match[1], match[2]) if match else (word, word)
        paths[name] = (*paths.get(name, ()), place)
    return paths


class _Progress:
    """Shows the number of tokens scored so far in a terminal."""

    def __init__(self, *, shown: bool) -> None:
        import sys

        from rich.console import Console
        from rich.progress import Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not shown or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("scoring ...")
        self._tokens = 0

    def __enter__(self) -> "Callable[[int], None]":
        self._progress.start()
        return self._add

    def _add(self, tokens: int) -> None:
        self._tokens += tokens
        self._progress.update(self._task, description=f"{self._tokens} tokens scored")

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _on_tasks(arguments: argparse.Namespace, *, model: "TrainedModel", ranks: "ModelRanks") -> dict[str, Any]:
    """Return the tasks' metrics, from a temporary export."""
    if ranks.world_size > 1:
        raise ConfigError("--tasks runs transformers on one rank: drop the parallel sizes, and start without torchrun")
    if others := [name for name in ("data", "text_field", "window", "stride") if getattr(arguments, name) is not None]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ConfigError(f"{flags} cannot be combined with --tasks, which bring their own text: drop one")
    from chinchilla_ds.evaluation.tasks import open_tasks, run_tasks
    from chinchilla_ds.inference.model import default_device

    names = [name.strip() for name in arguments.tasks.split(",") if name.strip()]
    manager = open_tasks(names, include_path=arguments.include_path)
    device = default_device()
    chosen = arguments.dtype or (model.reader.plan.precision if device.type == "cuda" else Precision.FP32)
    with tempfile.TemporaryDirectory(prefix="chinchilla-ds-export-") as folder:
        export = Path(folder, "model")
        _export(model, out=export, dtype=chosen)
        metrics = run_tasks(
            export,
            names=names,
            manager=manager,
            device=str(device),
            dtype=chosen.dtype_name,
            limit=arguments.limit,
            add_bos_token=model.tokenizer.bos_id is not None,
        )
    return {"dtype": chosen.dtype_name, "limit": arguments.limit, "tasks": metrics}


def _export(model: "TrainedModel", *, out: Path, dtype: Precision) -> None:
    from chinchilla_ds.exporting.card import TrainingFacts
    from chinchilla_ds.exporting.write import export_checkpoint

    facts = TrainingFacts.of_checkpoint(model.reader)
    export_checkpoint(model.reader, out=out, dtype=dtype, facts=facts)


def _table(result: dict[str, Any]) -> "Iterator[str]":
    yield f"checkpoint    {result['checkpoint']} (step {result['iteration']}), {result['dtype']}"
    if "tasks" in result:
        yield ""
        yield f"{'task':<32}{'metric':<20}{'value':>10}"
        for task, metrics in result["tasks"].items():
            for metric, value in metrics.items():
                yield f"{task:<32}{metric:<20}{value:>10.4f}"
        return
    yield f"text          {result['text']}"
    yield f"windows       {result['window']} tokens, each {result['stride']} after the previous"
    yield ""
    width = max(8, *map(len, result["scores"]))
    yield f"{'source':<{width}}{'documents':>11}{'tokens':>12}{'nats/token':>12}{'perplexity':>12}{'bits/byte':>11}"
    for name, score in result["scores"].items():
        yield (
            f"{name:<{width}}{score['documents']:>11}{score['tokens']:>12}{score['loss']:>12.4f}"
            f"{score['perplexity']:>12.2f}{score['bits_per_byte']:>11.4f}"
        )
