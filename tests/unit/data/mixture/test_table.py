"""Tables of mixtures: what is written is read back, and what breaks a rule is refused with its row."""

from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.data.mixture.table import (
    MAX_PROBLEMS,
    MixtureRuns,
    design_csv,
    read_design,
    read_mixture_runs,
    with_loss,
)
from chinchilla_ds.errors import DataError

HEADER = "run,weight:code,weight:web,loss"
GOOD = [f"mix-{i},{i / 10:.1f},{1 - i / 10:.1f},{3 + i / 100}" for i in range(1, 10)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path, *, targets: tuple[str, ...] = (), known: tuple[str, ...] | None = None) -> MixtureRuns:
    return read_mixture_runs(path, targets=targets, known_sources=known)


def problems(path: Path, *, targets: tuple[str, ...] = (), known: tuple[str, ...] | None = None) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read(path, targets=targets, known=known)
    assert all(problem.startswith(str(path)) for problem in caught.value.problems)
    return tuple(problem.removeprefix(f"{path}: ") for problem in caught.value.problems)


def test_a_design_is_read_back_once_it_has_losses(tmp_path: Path) -> None:
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 12)
    lines = design_csv(sources=("a, b", "c", "d"), mixtures=mixtures).splitlines()
    losses = np.linspace(3, 4, 12)
    path = write(tmp_path / "t.csv", lines[0] + ",loss", *(f"{a},{b}" for a, b in zip(lines[1:], losses, strict=True)))
    runs = read(path)
    assert runs.sources == ("a, b", "c", "d")
    np.testing.assert_allclose(runs.weights, mixtures, atol=1.1e-6)
    np.testing.assert_allclose(runs.losses, losses)
    assert runs.natural is not None
    np.testing.assert_allclose(runs.natural, mixtures[0], atol=1.1e-6)


def test_targets_default_to_all_losses_and_their_mean_is_taken(tmp_path: Path) -> None:
    rows = [f"{line},5" for line in GOOD]
    path = write(tmp_path / "t.csv", "run,weight:code,weight:web,loss:a,loss:b", *rows)
    both, one = read(path), read(path, targets=("loss:a",))
    assert (both.targets, one.targets) == (("loss:a", "loss:b"), ("loss:a",))
    np.testing.assert_allclose(one.losses, [3 + i / 100 for i in range(1, 10)])
    np.testing.assert_allclose(both.losses, [4 + i / 200 for i in range(1, 10)])
    assert one.notes == ("columns not used: loss:b",)


def test_unfinished_rows_are_left_out_with_a_note(tmp_path: Path) -> None:
    runs = read(write(tmp_path / "t.csv", HEADER, *GOOD, "natural,0.35,0.65,"))
    assert len(runs.losses) == 9
    assert runs.notes == ("1 rows have no loss yet: left out",)
    assert runs.natural is not None
    assert runs.natural.tolist() == [0.35, 0.65]


def test_hand_rounded_weights_are_scaled_to_one(tmp_path: Path) -> None:
    runs = read(write(tmp_path / "t.csv", HEADER, *GOOD, "x,0.3335,0.6670,3.3"))
    np.testing.assert_allclose(runs.weights.sum(axis=1), 1)


def test_repeats_with_another_loss_are_welcome(tmp_path: Path) -> None:
    assert len(read(write(tmp_path / "t.csv", HEADER, *GOOD, "again,0.1,0.9,3.02")).losses) == 10


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    bad = [
        "a,0.5,0.6,3",
        "b,-0.5,1.5,3",
        "c,0.5,0.5,nan",
        "d,0.5,0.5,-1",
        "e,x,0.5,3",
        "f,0.5,0.5",
        "g,,1,3",
        "h,0,0,3",
    ]
    found = problems(write(tmp_path / "t.csv", HEADER, *GOOD, GOOD[0], *bad))
    wanted = [
        "row 12: the weights sum to 1.1; they must sum to 1 within 0.001; divide each by 1.1",
        "row 13: weight:code is -0.5; it must be a finite number of at least 0",
        "row 14: loss is nan; it must be a positive finite number",
        "row 15: loss is -1; it must be a positive finite number",
        "row 16: weight:code is 'x', which is not a number",
        "row 17 has 3 fields; the header has 4",
        "row 18: weight:code is empty",
        "row 19: the weights sum to 0; they must sum to 1 within 0.001",
    ]
    assert list(found[:-1]) == wanted
    assert found[-1].startswith("rows 2 and 11 are the same run")


def test_many_problems_are_counted(tmp_path: Path) -> None:
    found = problems(write(tmp_path / "t.csv", HEADER, *["a,0.5,0.6,3"] * 50))
    assert len(found) == MAX_PROBLEMS + 1
    assert found[-1] == "and 30 more problems"


def test_too_few_runs(tmp_path: Path) -> None:
    rows = [*GOOD[:5], "again,0.1,0.9,3.5", "m,0.95,0.05,"]
    (found,) = problems(write(tmp_path / "t.csv", HEADER, *rows))
    assert found.startswith("5 different mixtures have a loss, and 1 rows have no loss yet; a regression on 2 sources")
    assert "needs 8" in found


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("run,code,web,loss", "no column weight:SOURCE"),
        ("run,weight:code,loss", "there is one source, 'code'"),
        ("run,weight:code,weight:code,loss", "column weight:code occurs 2 times"),
        ("run,weight:code,weight:web,lss", "column loss (or loss:NAME) is missing"),
        ("run;weight:code;weight:web;loss", "the header is separated by ';'"),
    ],
)
def test_headers(tmp_path: Path, header: str, wanted: str) -> None:
    assert any(problem.startswith(wanted) for problem in problems(write(tmp_path / "t.csv", header, *GOOD)))


def test_names_that_are_none_say_what_was_meant(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "run,weight:cod,weight:web,loss:web", *GOOD)
    assert problems(path, targets=("loss:wbe",), known=("code", "web")) == (
        "column loss:wbe is missing; did you mean 'loss:web'?",
        "weight:cod is not a source of the corpus; did you mean 'code'?",
        "column weight:code is missing: code is a source of the corpus",
    )


def test_weights_are_no_target(tmp_path: Path) -> None:
    found = problems(write(tmp_path / "t.csv", HEADER, *GOOD), targets=("weight:web", "run"))
    assert found == ("`targets=weight:web` is not a column of losses", "`targets=run` is not a column of losses")


def test_two_natural_mixtures(tmp_path: Path) -> None:
    found = problems(write(tmp_path / "t.csv", HEADER, *GOOD, "natural,0.5,0.5,3", "natural,0.6,0.4,3"))
    assert found == ("rows 11, 12 are named natural and have different weights",)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "mixes.csv", HEADER)
    with pytest.raises(DataError, match=r"did you mean 'mixes\.csv'"):
        read(tmp_path / "mixs.csv")
    (tmp_path / "bad.csv").write_bytes(b"run\xff")
    with pytest.raises(DataError, match="is not UTF-8"):
        read(tmp_path / "bad.csv")
    (tmp_path / "none.csv").write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path / "none.csv")
    write(tmp_path / "quote.csv", HEADER, '"open')
    with pytest.raises(DataError, match="is not CSV"):
        read(tmp_path / "quote.csv")


def test_a_loss_is_added_and_all_else_stays() -> None:
    text = 'run ,weight:a,weight:b,note\nnatural,0.25,0.75,"x, y"\n\nmix-1,1,0,\n'
    first = with_loss(text, run="mix-1", loss=3.1234567)
    assert first == 'run,weight:a,weight:b,note,loss\nnatural,0.25,0.75,"x, y",\nmix-1,1,0,,3.123457\n'.replace(
        "\nmix-1", "\n\nmix-1"
    )
    again = with_loss(first, run="natural", loss=4)
    assert again == first.replace('"x, y",', '"x, y",4.000000')


def test_a_design_is_read_with_and_without_losses(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", HEADER, "natural,0.35,0.65,3.5", "mix-1,0.333,0.667,", "again,0.35,0.65,")
    runs = read_design(path, known_sources=["code", "web"])
    assert [(run.name, run.loss, run.repeat) for run in runs] == [
        ("natural", 3.5, 0), ("mix-1", None, 0), ("again", None, 1),
    ]  # fmt: skip
    assert runs[1].weights == {"code": 0.333, "web": 0.667}
    path = write(tmp_path / "t.csv", "run,weight:code,weight:web", "x,0.35,0.65")
    assert read_design(path, known_sources=["code", "web"])[0].loss is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["weight:code,weight:web", "0.5,0.5"], "column run is missing: it names each run"),
        (["run,weight:code,weight:wbe", "a,0.5,0.5"], "weight:wbe is not a source of the corpus; did you mean 'web'?"),
        (["run,weight:code,weight:web", "a,0.5,0.5", "a,0.4,0.6"], "rows 2 and 3 are both named a"),
        (["run,weight:code,weight:web", ",0.5,0.5"], "row 2: run is ''; it names a folder"),
        (["run,weight:code,weight:web,loss", "a,0.5,0.5,x"], "row 2: loss is 'x', which is not a number"),
        (["run,weight:code,weight:web"], "it holds no runs"),
        ([""], "no column weight:SOURCE"),
    ],
)
def test_designs_that_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "t.csv", *lines)
    with pytest.raises(DataError) as caught:
        read_design(path, known_sources=["code", "web"])
    assert message in "\n".join(caught.value.problems)
