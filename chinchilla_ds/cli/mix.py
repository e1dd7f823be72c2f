"""`chinchilla-ds mix`: mixtures to train small runs on, and from their losses the mixture to train a large run on."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chinchilla_ds.cli.arguments import flag, path, quantity, whole
from chinchilla_ds.cli.output import write_text
from chinchilla_ds.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from chinchilla_ds.data.mixture.simplex import Bounds
    from chinchilla_ds.data.prepared import PreparedData

STEPS = ("design", "fit")
DEFAULT_DRAWS = 200
DEFAULT_SEED = 42
DEFAULT_MAX_EPOCHS = 4.0
"""Up to here repeated text is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264)."""
_FLAGS_OF = {
    "design": ("runs", "min_share", "out", "seed", "tokens", "max_epochs"),
    "fit": ("target", "corpus", "bootstrap", "json", "out", "seed", "tokens", "max_epochs"),
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("step", metavar="design|fit", help="write mixtures to run, or find the best from their losses")
    parser.add_argument("source", type=path, metavar="PATH", help="design: prepared corpus; fit: table with losses")
    flag(parser, "seed", _count, f"of the draws (default {DEFAULT_SEED})", metavar="N")
    flag(parser, "out", path, "design: table to write (required); fit: blend to write (.yaml)", metavar="FILE")
    flag(parser, "tokens", quantity("tokens"), "tokens of the large run: holds each source to --max-epochs")
    flag(parser, "max-epochs", quantity(None), f"most passes over a source (default {DEFAULT_MAX_EPOCHS:g})")
    design = parser.add_argument_group("design")
    flag(design, "runs", whole, "mixtures to write, the natural one among them; 8 per source serve well (required)")
    flag(design, "min-share", quantity(None), "smaller weights become 0, and weights are its multiples (default 2e-4)")
    fit = parser.add_argument_group("fit")
    fit.add_argument(
        "--target", nargs="+", metavar="COLUMN", help="losses to take the mean of (default: loss, or all loss:NAME)"
    )
    flag(
        fit,
        "corpus",
        path,
        "prepared corpus: its shares and tokens, for the natural mixture and --tokens",
        metavar="FOLDER",
    )
    flag(fit, "bootstrap", whole, f"draws for intervals (default {DEFAULT_DRAWS})")
    fit.add_argument("--json", action="store_true", help="print the result as JSON")


def _count(text: str) -> int:
    return 0 if text.strip() == "0" else whole(text)


def run(arguments: argparse.Namespace) -> str:
    """Design or fit; return the text to print.

    Raises:
        ConfigError: flags that contradict one another, or caps that no mixture keeps.
        DataError: no prepared corpus, or a table that breaks a rule.
        OutputError: the file cannot be written.
    """
    values = vars(arguments)
    if problems := _flag_problems(values):
        raise ConfigError(problems)
    return _design(values) if values["step"] == "design" else _fit(values)


def _flag_problems(values: Mapping[str, Any]) -> list[str]:
    step = values["step"]
    if step not in STEPS:
        return [f"{step!r} is none of {', '.join(STEPS)}{did_you_mean(step, STEPS)}"]
    other = STEPS[1 - STEPS.index(step)]
    problems = [
        f"--{name.replace('_', '-')} belongs to mix {other} and has no effect on mix {step}: drop it"
        for name in _FLAGS_OF[other]
        if name in values and name not in _FLAGS_OF[step]
    ]
    if step == "design":
        needed = {"runs": "how many mixtures", "out": "the table to write"}
        problems += [f"mix design needs --{name}: {what}" for name, what in needed.items() if name not in values]
    if "max_epochs" in values and "tokens" not in values:
        problems.append("--max-epochs has no effect without --tokens: say how long the large run is")
    if step == "fit" and "tokens" in values and "corpus" not in values:
        problems.append("--tokens needs --corpus: the tokens that each source has")
    if values.get("bootstrap", DEFAULT_DRAWS) < 20:
        problems.append(
            f"--bootstrap is {values['bootstrap']}; it must be at least 20, and {DEFAULT_DRAWS} for steady ends"
        )
    return problems


def _design(values: Mapping[str, Any]) -> str:
    from chinchilla_ds.data.mixture.sampling import DEFAULT_MIN_SHARE, design_mixtures
    from chinchilla_ds.data.mixture.table import design_csv

    corpus = _corpus(values["source"])
    mixtures = design_mixtures(
        shares=[source.num_tokens for source in corpus.sources],
        num_runs=values["runs"],
        seed=values.get("seed", DEFAULT_SEED),
        min_share=values.get("min_share", DEFAULT_MIN_SHARE),
        bounds=_caps(corpus, values=values),
    )
    sources = [source.name for source in corpus.sources]
    write_text(values["out"], text=design_csv(sources=sources, mixtures=mixtures))
    lowest, highest = mixtures.min(axis=0), mixtures.max(axis=0)
    rows = [
        f"{name:<28}{mixtures[0, index]:>9.4f}   {lowest[index]:.4f} to {highest[index]:.4f}"
        for index, name in enumerate(sources)
    ]
    return "\n".join(
        [
            f"{len(mixtures)} mixtures of {len(sources)} sources written to {values['out']}",
            "",
            f"{'source':<28}{'natural':>9}   in the design",
            *rows,
            "",
            "Train one small run on each, add its held-out loss as column `loss`, then:",
            f"chinchilla-ds mix fit {values['out']} --corpus {values['source']}{_cap_words(values)}",
        ]
    )


def _cap_words(values: Mapping[str, Any]) -> str:
    """Return the flags that hold the fit to the caps of the design."""
    names = [name for name in ("tokens", "max_epochs") if name in values]
    return "".join(f" --{name.replace('_', '-')} {values[name]:.12g}" for name in names)


def _fit(values: Mapping[str, Any]) -> str:
    import numpy as np

    from chinchilla_ds.data.mixture.search import search_mixture
    from chinchilla_ds.data.mixture.table import NATURAL, read_mixture_runs
    from chinchilla_ds.data.mixture.text import blend_yaml, fit_data, fit_text

    corpus = _corpus(values["corpus"]) if "corpus" in values else None
    caps = None if corpus is None else _caps(corpus, values=values)
    names = None if corpus is None else [source.name for source in corpus.sources]
    runs = read_mixture_runs(values["source"], targets=values.get("target", ()), known_sources=names)
    if corpus is not None:
        order = [[source.name for source in corpus.sources].index(name) for name in runs.sources]
        tokens = np.array([corpus.sources[index].num_tokens for index in order], dtype=float)
        natural = tokens / tokens.sum()
        if caps is not None:
            caps = type(caps)(lower=caps.lower[order], upper=caps.upper[order])
    elif runs.natural is not None:
        natural = runs.natural
    else:
        raise DataError(
            f"{values['source']} has no row named {NATURAL}, so that the best mixture has nothing to be compared with; "
            "name that row, or give --corpus"
        )
    fit = search_mixture(
        runs,
        natural=natural,
        caps=caps,
        num_draws=values.get("bootstrap", DEFAULT_DRAWS),
        seed=values.get("seed", DEFAULT_SEED),
    )
    if "out" in values:
        write_text(values["out"], text=blend_yaml(fit))
    return json.dumps(fit_data(fit), indent=2, allow_nan=False) if values.get("json") else fit_text(fit)


def _corpus(folder: Path) -> "PreparedData":
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


def _caps(corpus: "PreparedData", *, values: Mapping[str, Any]) -> "Bounds | None":
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
