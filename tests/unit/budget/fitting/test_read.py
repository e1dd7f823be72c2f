from pathlib import Path

import pytest

from chinchilla_ds.budget.laws.fitting.read import Row, read_runs, table_of
from chinchilla_ds.errors import DataError

HEADER = "num_params,num_tokens,loss"
GOOD = [f"{size}e8,{tokens}e9,{loss}" for size, tokens, loss in [(1, 2, 3.5), (2, 2, 3.3), (3, 4, 3.0), (4, 8, 2.8)]]
GOOD = [*GOOD, "5e8,1e10,2.7"]


def write(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def problems(path: Path, *, min_rows: int = 5) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_runs(path, min_rows=min_rows)
    found = [problem.removeprefix("table ") for problem in caught.value.problems]
    assert all(problem.startswith(f"{path}") for problem in found)
    return tuple(problem.removeprefix(f"{path}").removeprefix(":").strip() for problem in found)


def test_a_plain_table(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path, HEADER, *GOOD), min_rows=5)
    assert runs.table.num_params.tolist() == [1e8, 2e8, 3e8, 4e8, 5e8]
    assert runs.table.num_tokens.tolist() == [2e9, 2e9, 4e9, 8e9, 1e10]
    assert runs.table.loss.tolist() == [3.5, 3.3, 3.0, 2.8, 2.7]
    assert runs.table.flops.tolist() == pytest.approx([1.2e18, 2.4e18, 7.2e18, 1.92e19, 3e19])
    assert runs.table.labels == ("row 2", "row 3", "row 4", "row 5", "row 6")
    assert runs.notes == ()


def test_short_names_suffixes_labels_flops_blank_lines_and_other_columns(tmp_path: Path) -> None:
    lines = ["\ufeffrun,seed,D,C,loss,N", "", " a ,1, 2B ,1.3e18,3.5, 100M ", ",2,2_000_000_000,,3.3,0.2B"]
    runs = read_runs(write(tmp_path, *lines), min_rows=1)
    assert runs.table.num_params.tolist() == [1e8, 2e8]
    assert runs.table.num_tokens.tolist() == [2e9, 2e9]
    assert runs.table.flops.tolist() == pytest.approx([1.3e18, 2.4e18])
    assert runs.table.labels == ("a", "row 4")
    assert runs.notes == ("ignored columns: seed",)


def test_no_such_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, HEADER, *GOOD)
    assert problems(tmp_path / "run.csv") == ("cannot be read: No such file or directory; did you mean 'runs.csv'?",)


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    assert problems(tmp_path)[0].startswith("cannot be read: Is a directory")


def test_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_bytes(b"num_params,num_tokens,loss\xff\n")
    assert problems(path) == ("is not UTF-8: invalid start byte at byte 26",)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    assert "is empty" in problems(write(tmp_path, text))[0]


def test_a_header_alone(tmp_path: Path) -> None:
    assert problems(write(tmp_path, HEADER)) == ("has a header and no rows",)


def test_every_missing_column_is_named(tmp_path: Path) -> None:
    found = problems(write(tmp_path, "Num_Params,tokens,final", "1e8,2e9,3"))
    assert found == (
        "column num_params (or N) is missing; is it 'Num_Params'? Names are case-sensitive",
        "column num_tokens (or D) is missing; is it 'tokens'? Names are case-sensitive",
        "column loss is missing; the header has 'Num_Params', 'tokens', 'final'",
    )


def test_a_column_given_twice(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "N,num_params,D,loss")) == ("N and num_params are the same column; keep one",)


def test_semicolons(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "N;D;loss", "1;2;3")) == ("the header is separated by ';'; use commas",)


def test_a_quote_that_does_not_end(tmp_path: Path) -> None:
    assert "is not CSV" in problems(write(tmp_path, HEADER, '"1e8,2e9,3'))[0]


def test_rows_of_another_length(tmp_path: Path) -> None:
    assert problems(write(tmp_path, HEADER, *GOOD, "1e8,2e9")) == ("row 7 has 2 fields; the header has 3",)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("x,2e9,3", "row 7: num_params 'x' is not a number such as 1e13, 7B or 1.5T"),
        ('"1,000,000",2e9,3', "row 7: num_params '1,000,000' is not a number such as 1e13, 7B or 1.5T"),
        ("-1e8,2e9,3", "row 7: num_params '-1e8' is not a positive finite number"),
        ("0,2e9,3", "row 7: num_params '0' is not a positive finite number"),
        ("1e8,inf,3", "row 7: num_tokens 'inf' is not a positive finite number"),
        ("1e8,2e9,nan", "row 7: loss 'nan' is not a positive finite number"),
        ("1e8,2e9,0", "row 7: loss '0' is not a positive finite number"),
        ("1e8,2e9,low", "row 7: loss 'low' is not a number"),
        ("1e8,,3", "row 7: num_tokens is empty"),
        ("1e8,2e9,3300", "row 7: loss is 3300; it must be in nats per token, at most 50"),
        ("1e8,2e21,3", "row 7: num_tokens is 2e+21; it must be at most 1e+18"),
        ("0.1,2e9,3", "row 7: num_params is 0.1, and other rows have up to 5e+08; is it in millions or billions?"),
    ],
)
def test_bad_values(tmp_path: Path, row: str, problem: str) -> None:
    (found,) = problems(write(tmp_path, HEADER, *GOOD, row))
    assert found.startswith(problem)


def test_all_problems_are_collected_ten_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    found = problems(write(tmp_path, HEADER, "x,y,z", *["1e8,2e9,-1"] * 12))
    assert found[:3] == (
        "row 2: num_params 'x' is not a number such as 1e13, 7B or 1.5T",
        "row 2: num_tokens 'y' is not a number such as 1e13, 7B or 1.5T",
        "row 2: loss 'z' is not a number",
    )
    assert len(found) == 11
    assert found[-1] == "and 5 more problems"


def test_duplicates_name_both_rows(tmp_path: Path) -> None:
    found = problems(write(tmp_path, HEADER, *GOOD, GOOD[1]))
    assert found == ("row 3 and row 7 are the same run (N, D and loss are equal); keep one",)


def test_two_seeds_are_no_duplicates(tmp_path: Path) -> None:
    assert len(read_runs(write(tmp_path, HEADER, *GOOD, "2e8,2e9,3.31"), min_rows=5).table) == 6


def test_millions_in_every_row(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, HEADER, *(row.replace("e8", "") for row in GOOD)))
    assert found.startswith("num_params is 1 to 5 in every row, which looks like millions or billions")


def test_losses_that_are_none(tmp_path: Path) -> None:
    rows = [f"{row.rsplit(',', 1)[0]},0.00{index + 1}" for index, row in enumerate(GOOD)]
    (found,) = problems(write(tmp_path, HEADER, *rows))
    assert found.startswith("loss is at most 0.005 in every row; it must be in nats per token")


def test_flops_that_do_not_fit_name_the_row_and_the_ratio(tmp_path: Path) -> None:
    rows = [f"{row},{6 * float(row.split(',')[0]) * float(row.split(',')[1]):g}" for row in GOOD]
    found = problems(write(tmp_path, HEADER + ",flops", *rows[:4], "5e8,1e10,2.7,3e15"))
    assert found == (
        "row 6: flops is 3e+15, 0.0001 times 6 N D = 3e+19; it must be within a factor of 3; check the units of all "
        "three",
    )


def test_swapped_flops_and_tokens(tmp_path: Path) -> None:
    found = problems(write(tmp_path, HEADER + ",flops", "1e8,1.2e18,3.5,2e9"))
    assert len(found) == 1
    assert found[0].endswith("; num_tokens and flops look swapped")


def test_fewer_rows_than_constants(tmp_path: Path) -> None:
    found = problems(write(tmp_path, HEADER, *GOOD), min_rows=6)
    assert found == ("has 5 runs, and the fit has 6 constants: at least 6 runs are needed",)


def test_rows_of_another_program_are_checked_too() -> None:
    row = Row(where="run tiny", num_params=1e5, num_tokens=1e6, loss=4.0, flops=3e12)  # 5 times 6 N D: exact, believed
    assert table_of([row], source="mlflow:x", min_rows=1).flops.tolist() == [3e12]
    with pytest.raises(DataError, match="run tiny: loss is nan; it must be a positive finite number"):
        table_of([Row(where="run tiny", num_params=1e5, num_tokens=1e6, loss=float("nan"))], source="m", min_rows=1)
    with pytest.raises(DataError, match="run tiny and run tiny are the same run"):
        table_of([row, row], source="mlflow:x", min_rows=1)
