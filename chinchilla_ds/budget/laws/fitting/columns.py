"""Which column of a table is which: by the usual names, or as the user says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from chinchilla_ds.errors import ConfigError, DataError, did_you_mean

USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_params": (
        "num_params", "n", "params", "parameters", "n_params", "num_parameters", "n_parameters", "param_count",
        "parameter_count", "total_params", "model_size",
    ),
    "num_tokens": (
        "num_tokens", "d", "tokens", "n_tokens", "train_tokens", "training_tokens", "total_tokens", "token_count",
        "tokens_seen", "num_tokens_seen",
    ),
    "loss": (
        "loss", "val_loss", "valid_loss", "validation_loss", "eval_loss", "test_loss", "held_out_loss", "final_loss",
        "final_val_loss", "final_eval_loss",
    ),
    "flops": (
        "flops", "c", "flop", "compute", "train_flops", "train_flop", "training_flops", "training_flop", "total_flops",
    ),
    "run": ("run", "run_name", "run_id", "name"),
    "tokenizer_hash": ("tokenizer_hash", "tokenizer_sha256", "tokenizer"),
    "held_out_hash": ("held_out_hash", "held_out_sha256"),
    "bytes_per_token": ("bytes_per_token",),
    "train_bytes_per_token": ("train_bytes_per_token",),
}  # fmt: skip
"""What a header may call each column; `plain` ignores case and punctuation, so `Val-Loss` and `val/loss` are meant."""
REQUIRED = ("num_params", "num_tokens", "loss")
PLAIN_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_params": ("num_params", "N"),
    "num_tokens": ("num_tokens", "D"),
    "flops": ("flops", "C"),
}
"""Unambiguous names: a table may have other columns with usual names beside them."""
_FIRST_COUNTS = ("run", "tokenizer_hash", "held_out_hash")
"""Columns for which the first usual name is taken where a table has several."""
_PERPLEXITY = frozenset({"ppl", "perplexity"})
_BITS = frozenset({"bpb", "bpc", "bits"})
_HINTS = {"num_params": "param", "num_tokens": "token", "loss": "loss"}
"""A word in the names of columns that may be the one that is missing."""
_MOST_HINTS = 6


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Where the columns of a table are."""

    places: Mapping[str, int]
    """Place in the header by our name."""
    ignored: tuple[str, ...]
    """Names of the other columns."""


def parse_columns(text: str, /) -> dict[str, str]:
    """Return the column of each of our names, of `loss=Loss,params=N_total,tokens=D`.

    Raises:
        ValueError: it is not of that form, or names something twice or something that no table has.
    """
    ours = {name: column for column, names in USUAL_NAMES.items() for name in names}
    columns: dict[str, str] = {}
    for part in re.split(r",(?=\s*\w+\s*=)", text):
        name, equals, header = (piece.strip() for piece in part.partition("="))
        if not (name and equals and header):
            raise ValueError(f"{part!r} does not say which column is meant; write it as loss=Loss,params=N,tokens=D")
        column = ours.get(plain(name))
        if column is None:
            raise ValueError(f"{name!r} is not one of {', '.join(USUAL_NAMES)}{did_you_mean(name, USUAL_NAMES)}")
        if column in columns:
            raise ValueError(f"{column} is given twice, as {columns[column]!r} and {header!r}")
        columns[column] = header
    return columns


def plain(name: str, /) -> str:
    """Return a column's name in lower case, with underscores for anything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def find_columns(header: Sequence[str], /, *, named: Mapping[str, str], is_perplexity: bool = False) -> TableColumns:
    """Return where the columns are.

    Args:
        header: The names in a table.
        named: The column of each of our names that the user has said.
        is_perplexity: Whether the losses are perplexities.

    Raises:
        ConfigError: the user named a column that the table does not have, or that is not the loss in nats.
        DataError: columns are missing, or several may be the same one; names all of them and what to write.
    """
    places: dict[str, int] = {}
    problems = list(_take_named(header, named, places))
    if problems:
        raise ConfigError(problems)
    for column, names in USUAL_NAMES.items():
        if column in places:
            continue
        usual = [place for place, name in enumerate(header) if plain(name) in names and place not in places.values()]
        if column == "loss" and is_perplexity:
            usual = [place for place, name in enumerate(header) if _is_perplexity(name)] or usual
        usual = [place for place in usual if header[place] in PLAIN_NAMES.get(column, ())] or usual
        if len(usual) > 1 and column not in _FIRST_COUNTS:
            problems.append(_ambiguous(column, [header[place] for place in usual]))
        if usual:
            places[column] = min(usual, key=lambda place: _rank(header[place], names))
    if "flops" in places and "num_params" in places:
        missing = [column for column in REQUIRED if column not in places and column != "num_tokens"]
    else:
        missing = [column for column in REQUIRED if column not in places]
    problems += [_missing(column, header) for column in missing]
    if "loss" in places and not is_perplexity:
        problems += _unit_problems(header[places["loss"]])
    if problems:
        raise DataError(problems)
    taken = set(places.values())
    return TableColumns(
        places=places, ignored=tuple(name for place, name in enumerate(header) if place not in taken and name)
    )


def _take_named(header: Sequence[str], named: Mapping[str, str], places: dict[str, int]) -> Iterator[str]:
    """Put the columns that the user named into `places`; yield the problems of them."""
    for column, name in named.items():
        same = [place for place, field in enumerate(header) if field == name]
        same = same or [place for place, field in enumerate(header) if plain(field) == plain(name)]
        if not same:
            yield (
                f"`columns={column}={name}`: there is no such column; the header has {_listed(header)}"
                f"{did_you_mean(name, header)}"
            )
        elif len(same) > 1:
            yield f"`columns={column}={name}`: {len(same)} columns have that name; rename one"
        else:
            places[column] = same[0]


def _rank(name: str, names: Sequence[str]) -> int:
    return names.index(plain(name)) if plain(name) in names else len(names)


def _ambiguous(column: str, names: Sequence[str]) -> str:
    return f"{' and '.join(map(repr, names))} may each be {column}: say which, `columns={column}={names[0]}`"


def _missing(column: str, header: Sequence[str]) -> str:
    """Return that a column is missing, and which of the others may be meant."""
    if column == "loss" and (perplexities := [name for name in header if _is_perplexity(name)]):
        return f"column loss is missing, and {perplexities[0]!r} is a perplexity: `unit=perplexity` takes its logarithm"
    word = _HINTS[column]
    usual = USUAL_NAMES[column]
    hints = [
        name
        for name in header
        if word in plain(name)
        or name.partition("_")[0] in PLAIN_NAMES.get(column, ())
        or did_you_mean(plain(name), usual)
    ]
    start = f"column {column} is missing; the header has {_listed(header)}"
    if not hints:
        return f"{start}; `columns={column}=NAME` says which it is"
    others = f" (or {', '.join(hints[1:_MOST_HINTS])})" if len(hints) > 1 else ""
    return f"{start}; is it `columns={column}={hints[0]}`{others}?"


def _unit_problems(name: str) -> Iterator[str]:
    """Yield why a column of that name does not hold nats."""
    if _is_perplexity(name):
        yield f"column {name!r} is a perplexity, and the loss is in nats: `unit=perplexity` takes its logarithm"
    elif _BITS & set(plain(name).split("_")):
        yield f"column {name!r} is in bits, and the loss is in nats: multiply it by ln 2 = 0.6931"


def _is_perplexity(name: str) -> bool:
    return bool(_PERPLEXITY & set(plain(name).split("_")))


def _listed(header: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in header if name)
