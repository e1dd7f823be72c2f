"""What the `chinchilla-ds mix` commands share: the prepared corpus of several sources, and the caps on each."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.cli.arguments import Group, flag, quantity, whole
from chinchilla_ds.errors import ConfigError, DataError

if TYPE_CHECKING:
    from chinchilla_ds.data.mixture.simplex import Bounds
    from chinchilla_ds.data.prepared import PreparedData

DEFAULT_SEED = 42
DEFAULT_MAX_EPOCHS = 4.0
"""Up to here repeated text is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264)."""


def cap_flags(group: Group) -> None:
    """Add the flags that describe the large run, and the seed of the draws."""
    flag(group, "tokens", quantity("tokens"), "tokens of the large run: holds each source to --max-epochs")
    flag(group, "max-epochs", quantity(None), f"most passes over a source (default {DEFAULT_MAX_EPOCHS:g})")
    flag(group, "seed", count, f"of the draws (default {DEFAULT_SEED})", metavar="N")


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
    """Return the flags that hold another command to the same caps."""
    names = [name for name in ("tokens", "max_epochs") if name in values]
    return "".join(f" --{name.replace('_', '-')} {values[name]:.12g}" for name in names)
