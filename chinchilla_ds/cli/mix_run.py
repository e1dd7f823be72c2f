"""`chinchilla-ds mix run`: train a small run on each mixture of a table, and enter their held-out losses.

Each run is an ordinary training run in a separate process, one after the other. They share one plan.
"""

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from chinchilla_ds.budget.deepspeed_json import resolve as ds_json
from chinchilla_ds.budget.planner import plan as make_plan
from chinchilla_ds.cli.arguments import budget_flags, ds_config_flag, flag, model_flags, path, quantity, run_config
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.cli.mix_design import load_corpus
from chinchilla_ds.config import DataConfig
from chinchilla_ds.distributed.devices import device_type
from chinchilla_ds.distributed.launch import read_place
from chinchilla_ds.errors import ConfigError, DataError, OutputError, reason
from chinchilla_ds.files import write_text
from chinchilla_ds.optimizers import checkpoint_bytes
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.runs.corpus import corpus_data, with_prepared_corpus
from chinchilla_ds.runs.disk import check_output
from chinchilla_ds.runs.proxy import Proxy, train_proxy
from chinchilla_ds.structured import parse_json, read_json
from chinchilla_ds.units import format_count, format_flops

if TYPE_CHECKING:
    from chinchilla_ds.data.mixture.table import DesignedRun
    from chinchilla_ds.data.prepared import PreparedData

COMMAND = Command(
    name="mix run",
    group="data",
    summary="train a small run on each mixture",
    examples=("chinchilla-ds mix run mixtures.csv --corpus corpus/ --ds_config zero1 --flops 2e10",),
)

_Show = Callable[[str, float | None], None]
"""Called with a run's name and None when it starts, and with its loss when it ends."""

_OWN = ("table", "corpus", "ds_config", "max_epochs", "output")
PLAN_NAME, CORPUS_NAME = "plan.json", "corpus.json"
"""The file with what all runs of a table share."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("table", type=path, metavar="FILE.csv", help="table of mixtures; rows with a loss are skipped")
    flag(parser, "corpus", path, "prepared corpus that the table was designed for", metavar="FOLDER", required=True)
    ds_config_flag(parser)
    epochs = DataConfig().max_epochs
    flag(
        parser,
        "max-epochs",
        quantity(None),
        f"largest number of passes of a small run over a source (default {epochs:g})",
    )
    flag(parser, "output", path, "folder for the runs (default runs/ and the table's name)", metavar="FOLDER")
    budget_flags(parser.add_argument_group("budget of each run"))
    model_flags(parser.add_argument_group("model and optimizer of each run"))


def run(arguments: argparse.Namespace) -> str:
    """Train on the mixtures that have no loss yet; return the text to print.

    Raises:
        ConfigError: the flags give no plan, or a different plan from that of the losses in the table.
        DataError: the corpus is not prepared or cannot feed a mixture, or the table is invalid.
        OutputError: the table or the folder cannot be written.
    """
    from chinchilla_ds.data.mixture.table import read_design

    if (place := read_place()).world_size > 1:
        raise ConfigError(
            f"mix run is one process, which starts its runs one after the other, and {place.launcher or 'RANK'} says "
            f"that there are {place.world_size} processes: start it once, such as with srun --ntasks 1"
        )
    values = vars(arguments)
    own = {name: values.pop(name) for name in _OWN if name in values}
    table, output = own["table"], own.get("output", Path("runs") / own["table"].stem)
    corpus = load_corpus(own["corpus"])
    data = corpus_data(own["corpus"], max_epochs=own.get("max_epochs", DataConfig().max_epochs))
    runs = read_design(table, known_sources=[source.name for source in corpus.sources])
    config, explicit = run_config(values, data=data)
    ds = ds_json.load_ds_config(own["ds_config"])
    config = with_prepared_corpus(ds_json.apply_to_config(config, ds, explicit=explicit))
    plan = make_plan(config, world_size=1, device=device_type())
    ds_json.resolve(ds, plan)
    _check_tokens(runs, corpus=corpus, data=data, plan=plan, table=table)
    check_output(output, num_bytes=checkpoint_bytes(plan))
    _keep_settings(output, plan=plan, corpus=corpus, table=table, runs=runs)
    proxies = [
        Proxy(
            name=designed.name,
            weights=designed.weights,
            plan=dataclasses.replace(plan, seed=plan.seed + designed.repeat),
            corpus=own["corpus"],
            max_epochs=data.max_epochs,
            ds_config=own["ds_config"],
            folder=output / designed.name,
        )
        for designed in runs
        if designed.loss is None
    ]
    with _progress(runs, plan=plan) as show:
        for proxy in proxies:
            show(proxy.name, None)
            loss = train_proxy(proxy)
            _write_loss(table, run=proxy.name, loss=loss)
            show(proxy.name, loss)
    return _summary(read_design(table, known_sources=list(runs[0].weights)), own=own, num_new=len(proxies))


def _check_tokens(
    runs: Sequence["DesignedRun"], *, corpus: "PreparedData", data: DataConfig, plan: RunPlan, table: Path
) -> None:
    """Check, before the first run starts, that the corpus has enough tokens for each remaining run."""
    from chinchilla_ds.data.feeding.blend_file import epoch_problems, with_blend
    from chinchilla_ds.data.prepare import check_enough_tokens

    problems: list[str] = []
    for designed in runs:
        if designed.loss is None:
            blended = with_blend(corpus, designed.weights, where=f"{table}: {designed.name}")
            beyond = epoch_problems(blended, num_tokens=plan.num_tokens, max_epochs=data.max_epochs)
            problems += [f"{table}: {designed.name}: {problem}" for problem in beyond]
    if problems:
        raise DataError(problems)
    check_enough_tokens(corpus, data=data, num_tokens=plan.num_tokens, seq_length=plan.shape.seq_length)


def _keep_settings(
    output: Path, *, plan: RunPlan, corpus: "PreparedData", table: Path, runs: Sequence["DesignedRun"]
) -> None:
    """Write what all runs share, or check it against what the losses in the table were made with.

    Raises:
        ConfigError: the finished runs had a different plan or corpus.
        OutputError: it cannot be written.
    """
    num_done = sum(designed.loss is not None for designed in runs)
    corpus_text = dataclasses.replace(corpus, folder=Path()).to_json()
    for name, text in ((PLAN_NAME, plan.to_json()), (CORPUS_NAME, corpus_text)):
        file = output / name
        if num_done and file.is_file() and (difference := _difference(file, text)):
            raise ConfigError(
                f"{num_done} rows of {table} have losses made with a different {name.removesuffix('.json')} "
                f"({file}: {difference}); only the weights may differ: give the same flags, or empty the column and "
                "name another --output"
            )
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--output {output} cannot be created: {reason(error)}") from None
        write_text(file, text=text, named=None)


def _difference(file: Path, now: str) -> str:
    """Return the first field in which the JSON object in a file and another differ, or the empty string.

    Raises:
        ConfigError: the file cannot be read, or holds something else.
    """
    first, second = read_json(file, what="settings of the runs"), parse_json(now, where="settings")
    if not isinstance(first, dict):
        raise ConfigError(f"settings of the runs {file} must be an object of named fields")
    for name in second:
        if name != "reasons" and first.get(name) != second[name]:
            return f"{name} was {first.get(name)!r:.80} and is {second[name]!r:.80}"
    return ""


def _write_loss(table: Path, *, run: str, loss: float) -> None:
    """Write a loss into the current table, which may have been edited in the meantime."""
    from chinchilla_ds.data.mixture.table import with_loss

    try:
        text = table.read_text(encoding="utf-8")
    except OSError as error:
        raise OutputError(f"run {run} has loss {loss:.6f}, but {table} cannot be read: {reason(error)}") from None
    write_text(table, text=with_loss(text, run=run, loss=loss), named=None)


@contextmanager
def _progress(runs: Sequence["DesignedRun"], *, plan: RunPlan) -> Iterator[_Show]:
    """Show which run is active and how many are done: a bar in a terminal, a line per run elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    num_done = sum(designed.loss is not None for designed in runs)
    console.print(
        f"{len(runs) - num_done} runs of {format_flops(plan.true_flops)}: {format_count(plan.num_params)} parameters, "
        f"{format_count(plan.num_tokens)} tokens" + (f"; {num_done} rows have a loss already" if num_done else ""),
        highlight=False,
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(runs), completed=num_done)

        def show(name: str, loss: float | None) -> None:
            if loss is None:
                bar.update(task, description=name)
            else:
                bar.advance(task)
                bar.console.print(f"{name:<16}held-out loss {loss:.4f}", highlight=False)

        try:
            yield show
        except KeyboardInterrupt:
            console.print("interrupted; the same command resumes with the rows that have no loss")
            raise


def _summary(runs: Sequence["DesignedRun"], *, own: dict[str, Path], num_new: int) -> str:
    losses = {designed.name: designed.loss for designed in runs if designed.loss is not None}
    best = min(losses, key=losses.__getitem__)
    lines = [f"{len(losses)} of {len(runs)} runs have a loss in {own['table']}, {num_new} of them new"]
    lines += [f"{name:<16}{losses[name]:.4f}" for name in dict.fromkeys((best, "natural")) if name in losses]
    return "\n".join([*lines, "", f"chinchilla-ds mix fit {own['table']} --corpus {own['corpus']}"])
