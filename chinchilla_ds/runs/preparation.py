"""The output during the preparation of a corpus, and its description afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.units import format_bytes, format_count

WITHOUT_DIGESTS = (
    "this corpus was prepared before files had digests: their sizes and the tokenizer match, the tokens are not "
    "checked; prepare the text again to have them checked"
)


@contextmanager
def show_preparation(*, to_stderr: bool = False) -> Iterator[Callable[[str, float], None]]:
    """Yield a function that shows a stage's name and progress: a bar in a terminal, otherwise a line per stage."""
    console = Console(stderr=to_stderr)
    seen: dict[str, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:

        def show(stage: str, share: float) -> None:
            if stage not in seen:
                seen[stage] = bar.add_task(stage, total=1.0)
                if not console.is_terminal:
                    print(f"{stage} ...", file=console.file, flush=True)
            bar.update(seen[stage], completed=share)

        yield show


def describe(prepared: PreparedData) -> str:
    """Return the corpus in two lines."""
    skipped = f", {prepared.skipped_files} files that are not UTF-8 left out" if prepared.skipped_files else ""
    unchecked = "" if prepared.files is not None else f"\nunchecked     {WITHOUT_DIGESTS}"
    return (
        f"data          {prepared.source}: {prepared.num_documents} documents, {format_bytes(prepared.train_bytes)}, "
        f"{format_count(prepared.train_tokens)} tokens to train on{skipped}\n"
        f"held out      {prepared.held_out_documents} documents, {format_count(prepared.held_out_tokens)} tokens of "
        f"{prepared.bytes_per_token:.2f} bytes{unchecked}"
    )
