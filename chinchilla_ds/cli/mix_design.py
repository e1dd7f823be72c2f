"""`chinchilla-ds mix design`: the mixtures of a prepared corpus's sources to train small runs on."""

import argparse

from chinchilla_ds.cli.arguments import flag, path, quantity, whole
from chinchilla_ds.cli.mix_corpus import DEFAULT_SEED, cap_flags, cap_words, caps_of, check_cap_flags, load_corpus
from chinchilla_ds.runs.disk import write_text


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument("corpus", type=path, metavar="CORPUS", help="prepared corpus of at least two named sources")
    runs = "mixtures to write, the natural one among them; 8 per source serve well"
    flag(parser, "runs", whole, runs, required=True, dest="num_runs")
    flag(parser, "out", path, "table to write", metavar="FILE.csv", required=True)
    flag(parser, "min-share", quantity(None), "smaller weights become 0, and weights are its multiples (default 2e-4)")
    cap_flags(parser)


def run(arguments: argparse.Namespace) -> str:
    """Write the table; return the text to print.

    Raises:
        ConfigError: settings out of range, or caps that no mixture keeps.
        DataError: no prepared corpus of several sources.
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
