"""`chinchilla-ds mix design`: choose mixtures of a prepared corpus's sources to train small runs on.

The other `mix` commands also use this module's functions for the corpus and the caps on its sources.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.cli.arguments import Group, flag, path, quantity, whole
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.files import write_text

if TYPE_CHECKING:
    from chinchilla_ds.data.mixture.simplex import Bounds
    from chinchilla_ds.data.prepared import PreparedData

COMMAND = Command(
    name="mix design",
    group="data",
    summary="choose mixtures of a corpus's sources for small runs",
    examples=("chinchilla-ds mix design corpus/ --runs 8 --out mixtures.csv",),
)

DEFAULT_SEED = 42
DEFAULT_MAX_EPOCHS = 4.0
"""Up to here repeated text is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264)."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("corpus", type=path, metavar="CORPUS", help="prepared corpus of at least two named sources")
    runs = "number of mixtures, including the natural one; 8 per source work well"
    flag(parser, "runs", whole, runs, required=True, dest="num_runs")
    flag(parser, "out", path, "table to write", metavar="FILE.csv", required=True)
    flag(parser, "min-share", quantity(None), "smaller weights become 0; weights are multiples of it (default 2e-4)")
    cap_flags(parser)


def run(arguments: argparse.Namespace) -> str:
    """Write the table; return the text to print.

    Raises:
        ConfigError: settings are out of range, or no mixture satisfies the caps.
        DataError: the folder is not a prepared corpus of several sources.
        OutputError: the table cannot be written.
    """
    from chinchilla_ds.data.mixture.sampling import DEFAULT_MIN_SHARE, design_mixtures
    from chinchilla_ds.data.mixture.table import design_csv

    values = vars(arguments)
    check_cap_flags(values)
    corpus = load_corpus(values["corpus"])
    mixtures = design_mixtures(
        shares=[source.num_tokens for source in corpus.sources],
        num_runs=values["num_runs"],
        seed=values.get("seed", DEFAULT_SEED),
        min_share=values.get("min_share", DEFAULT_MIN_SHARE),
        bounds=caps_of(corpus, values=values),
    )
    sources = [source.name for source in corpus.sources]
    write_text(values["out"], text=design_csv(sources=sources, mixtures=mixtures))
    lowest, highest = mixtures.min(axis=0), mixtures.max(axis=0)
    rows = [
        f"{name:<28}{mixtures[0, index]:>9.4f}   {lowest[index]:.4f} to {highest[index]:.4f}"
        for index, name in enumerate(sources)
    ]
    where = f"{values['out']} --corpus {values['corpus']}"
    return "\n".join(
        [
            f"{len(mixtures)} mixtures of {len(sources)} sources written to {values['out']}",
            "",
            f"{'source':<28}{'natural':>9}   in the design",
            *rows,
            "",
            "Train one small run on each, then find the best mixture:",
            f"chinchilla-ds mix run {where} --ds_config FILE --flops BUDGET",
            f"chinchilla-ds mix fit {where}{cap_words(values)}",
        ]
    )


# ---- what the commands of `mix` share --------------------------------------------------------------------------------


def cap_flags(group: Group) -> None:
    """Add the flags that describe the large run, and the seed of the draws."""
    flag(group, "tokens", quantity("tokens"), "tokens of the large run; limits each source to --max-epochs")
    flag(
        group, "max-epochs", quantity(None), f"largest number of passes over a source (default {DEFAULT_MAX_EPOCHS:g})"
    )
    flag(group, "seed", count, f"seed of the draws (default {DEFAULT_SEED})", metavar="N")


def count(text: str) -> int:
    """Return a whole number of at least 0."""
    return 0 if text.strip() == "0" else whole(text)


def check_cap_flags(values: Mapping[str, Any]) -> None:
    """Check the flags of `cap_flags` together.

    Raises:
        ConfigError: --max-epochs without --tokens.
    """
    if "max_epochs" in values and "tokens" not in values:
        raise ConfigError("--max-epochs has no effect without --tokens: say how long the large run is")


def load_corpus(folder: Path) -> "PreparedData":
    """Return a prepared corpus of several sources.

    Raises:
        DataError: there is none, or it has one source.
    """
    from chinchilla_ds.data.prepared import PreparedData

    corpus = PreparedData.load(folder)
    if len(corpus.sources) < 2:
        raise DataError(
            f"{folder} has one source, {corpus.sources[0].name!r}; a mixture needs at least 2: prepare it with several "
            "named sources"
        )
    return corpus


def caps_of(corpus: "PreparedData", *, values: Mapping[str, Any]) -> "Bounds | None":
    """Return the bounds of --tokens and --max-epochs, in the order of the corpus's sources."""
    if "tokens" not in values:
        return None
    import numpy as np

    from chinchilla_ds.data.mixture.search import epoch_bounds

    return epoch_bounds(
        available_tokens=np.array([source.num_tokens for source in corpus.sources], dtype=float),
        num_tokens=values["tokens"],
        max_epochs=values.get("max_epochs", DEFAULT_MAX_EPOCHS),
    )


def cap_words(values: Mapping[str, Any]) -> str:
    """Return the flags that give another command the same caps."""
    names = [name for name in ("tokens", "max_epochs") if name in values]
    return "".join(f" --{name.replace('_', '-')} {values[name]:.12g}" for name in names)
