"""`chinchilla-ds mix fit`: find the mixture for a large run from the losses of small runs."""

import argparse
import json

from chinchilla_ds.cli.arguments import flag, path, whole
from chinchilla_ds.cli.commands import Command
from chinchilla_ds.cli.mix_design import DEFAULT_SEED, cap_flags, caps_of, check_cap_flags, load_corpus
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.files import write_text

COMMAND = Command(
    name="mix fit",
    group="data",
    summary="find the best mixture from the losses of small runs",
    examples=("chinchilla-ds mix fit mixtures.csv --corpus corpus/ --out blend.yaml",),
)

DEFAULT_DRAWS = 200


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("table", type=path, metavar="FILE.csv", help="mixtures with losses")
    corpus = "prepared corpus, whose shares and tokens the natural mixture and --tokens need"
    flag(parser, "corpus", path, corpus, metavar="FOLDER")
    parser.add_argument(
        "--target",
        dest="targets",
        nargs="+",
        metavar="COLUMN",
        help="losses to average (default: loss, or all loss:NAME)",
    )
    flag(parser, "out", path, "blend to write, for `pretrain.py --blend`", metavar="FILE.yaml")
    flag(parser, "bootstrap", whole, f"bootstrap draws for intervals (default {DEFAULT_DRAWS})")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    cap_flags(parser)


def run(arguments: argparse.Namespace) -> str:
    """Fit the losses; return the text to print.

    Raises:
        ConfigError: flags contradict each other, or no mixture satisfies the caps.
        DataError: the corpus is not prepared, or the table is invalid.
        OutputError: the blend cannot be written.
    """
    import numpy as np

    from chinchilla_ds.data.mixture.screen import blend_yaml, fit_data, fit_text
    from chinchilla_ds.data.mixture.search import search_mixture
    from chinchilla_ds.data.mixture.table import NATURAL, read_mixture_runs

    values = vars(arguments)
    _check(arguments)
    corpus = load_corpus(values["corpus"]) if "corpus" in values else None
    caps = None if corpus is None else caps_of(corpus, values=values)
    names = None if corpus is None else [source.name for source in corpus.sources]
    runs = read_mixture_runs(values["table"], targets=values.get("targets", ()), known_sources=names)
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
            f"{values['table']} has no row named {NATURAL}, so that the best mixture has nothing to be compared with; "
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


def _check(arguments: argparse.Namespace) -> None:
    values = vars(arguments)
    problems = []
    if "tokens" in values and "corpus" not in values:
        problems.append("--tokens needs --corpus: the tokens that each source has")
    if values.get("bootstrap", DEFAULT_DRAWS) < 20:
        problems.append(
            f"--bootstrap is {values['bootstrap']}; it must be at least 20, and {DEFAULT_DRAWS} for steady ends"
        )
    if problems:
        raise ConfigError(problems)
    check_cap_flags(values)
