import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from chinchilla_ds.budget.laws.fitting.columns import parse_columns
from chinchilla_ds.budget.laws.fitting.read import Row, read_runs, table_of
from chinchilla_ds.budget.laws.loss_unit import LossUnit
from chinchilla_ds.errors import ConfigError, DataError

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
    found = problems(write(tmp_path, "width,steps,Final train loss,perf", "1e8,2e9,3,1"))
    header = "the header has 'width', 'steps', 'Final train loss', 'perf'"
    assert found == (
        f"column num_params is missing; {header}; `columns=num_params=NAME` says which it is",
        f"column num_tokens is missing; {header}; `columns=num_tokens=NAME` says which it is",
        f"column loss is missing; {header}; is it `columns=loss=Final train loss`?",
    )


def test_hints_are_columns_that_may_be_meant(tmp_path: Path) -> None:
    """`d_model` and `n_layers` are no tokens and no parameters; `N_opt` and `D_opt` may be."""
    found = problems(write(tmp_path, "d_model,n_layers,n_heads,N_opt,D_opt,loss_opt", "1,1,1,1e8,2e9,3"))
    assert [problem.partition("; is it ")[2] for problem in found] == [
        "`columns=num_params=N_opt`?",
        "`columns=num_tokens=D_opt`?",
        "`columns=loss=loss_opt`?",
    ]


def test_fields_that_nothing_separates(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, "N D loss", "1e8 2e9 3"))
    assert found.startswith("has a single column, 'N D loss'; commas, tabs, semicolons or bars must separate")


def test_a_column_given_twice(tmp_path: Path) -> None:
    (found,) = problems(write(tmp_path, "N,num_params,D,loss"))
    assert found == "'N' and 'num_params' may each be num_params: say which, `columns=num_params=N`"
    path = write(tmp_path, "N,num_params,D,val_loss,train_loss,loss", *(f"7,{row},9,{row[-3:]}" for row in GOOD))
    assert problems(path)[1] == "'val_loss' and 'loss' may each be loss: say which, `columns=loss=val_loss`"
    runs = read_runs(path, min_rows=5, columns={"num_params": "num_params", "loss": "LOSS"})
    assert runs.table.num_params.tolist() == [1e8, 2e8, 3e8, 4e8, 5e8]
    assert runs.table.loss.tolist() == [3.5, 3.3, 3.0, 2.8, 2.7]


def test_a_quote_that_does_not_end(tmp_path: Path) -> None:
    assert "is not CSV" in problems(write(tmp_path, HEADER, '"1e8,2e9,3'))[0]


def test_rows_of_another_length(tmp_path: Path) -> None:
    assert problems(write(tmp_path, HEADER, *GOOD, "1e8,2e9")) == ("row 7 has 2 fields; the header has 3",)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("x,2e9,3", "row 7: num_params 'x' is not a number such as 1e13, 7B or 1.5T"),
        ('"1,00,000",2e9,3', "row 7: num_params '1,00,000' is not a number such as 1e13, 7B or 1.5T"),
        ('1e8,2e9,"3,215"', "row 7: loss '3,215' is not a number"),
        ("-1e8,2e9,3", "row 7: num_params '-1e8' is not a positive finite number"),
        ("0,2e9,3", "row 7: num_params '0' is not a positive finite number"),
        ("1e8,inf,3", "row 7: num_tokens 'inf' is not a positive finite number"),
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
    (found,) = problems(write(tmp_path, HEADER, *GOOD, GOOD[1]))
    assert found.startswith("row 3 and row 7 are the same run (N, D and loss are equal); keep one, or add a column")


def test_two_seeds_are_no_duplicates(tmp_path: Path) -> None:
    assert len(read_runs(write(tmp_path, HEADER, *GOOD, "2e8,2e9,3.31"), min_rows=5).table) == 6


@pytest.mark.parametrize("column", ["run", "seed", "mask"])
def test_reruns_with_equal_losses_are_no_duplicates(tmp_path: Path, column: str) -> None:
    rows = [f"{row},{index}" for index, row in enumerate([*GOOD, GOOD[1]])]
    assert len(read_runs(write(tmp_path, f"{HEADER},{column}", *rows), min_rows=5).table) == 6
    (found,) = problems(write(tmp_path, f"{HEADER},{column}", *rows, rows[0]))
    assert found.startswith("row 2 and row 8 are the same run")


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
    assert table_of([row], source="mlflow:x", min_rows=1).table.flops.tolist() == [3e12]
    with pytest.raises(DataError, match="run tiny: loss is nan; it must be a positive finite number"):
        table_of([Row(where="run tiny", num_params=1e5, num_tokens=1e6, loss=float("nan"))], source="m", min_rows=1)
    with pytest.raises(DataError, match="run tiny and run tiny are the same run"):
        table_of([row, row], source="mlflow:x", min_rows=1)
    again = replace(row, where="run tiny again", run="again")
    assert len(table_of([row, again], source="mlflow:x", min_rows=1).table) == 2


# ---- tables as they are published ------------------------------------------------------------------------------------

PUBLIC_HEADERS = [
    # epoch-research/analyzing-chinchilla, svg_extracted_data.csv
    ("Model Size,Training Tokens,Training FLOP,loss", "{n},{d},{c},{loss}"),
    # huggingface/datablations, utils/parametric_fit.ipynb
    ("run,N,D,U,loss,epochs", "2b84b4b,{n},{d},{d},{loss},1.0"),
    # formll/resolving-scaling-law-discrepancies, data/summary_df*.pickle.xz
    (
        "dataset,hparams,warmup,decay,param_count,loss_split,flops,N,D,loss",
        "rw,base,long,cosine,standard,val,{c},{n},{d},{loss}",
    ),
    # Open-Athena/scaling-law-analysis, data/isoflops/isoflops.csv: ML scalefit, misfitting, Llama 3 and others
    (
        "source,provenance,dataset,model,condition,experiment,tokens,params,budget,loss",
        "misfitting,chinchilla,fineweb_c4,transformer,,x,{d},{n},{c},{loss}",
    ),
    # fourlhs/greek-scaling-laws, results.csv
    ("run_id,n_params,n_tokens,flops,val_loss", "a,{n},{d},{c},{loss}"),
]


def published(header: str, form: str, *, separator: str = ",") -> list[str]:
    rows = [
        form.format(n=f"{n}e8", d=f"{d}e9", c=f"{6 * n * d}e17", loss=loss)
        for n, d, loss in [(1, 2, 3.5), (2, 2, 3.3), (3, 4, 3.0), (4, 8, 2.8), (5, 10, 2.7)]
    ]
    return [line.replace(",", separator) for line in [header, *rows]]


@pytest.mark.parametrize(("header", "form"), PUBLIC_HEADERS)
def test_usual_names_are_known(tmp_path: Path, header: str, form: str) -> None:
    table = read_runs(write(tmp_path, *published(header, form)), min_rows=5).table
    assert table.num_params.tolist() == [1e8, 2e8, 3e8, 4e8, 5e8]
    assert table.num_tokens.tolist() == [2e9, 2e9, 4e9, 8e9, 1e10]
    assert table.loss.tolist() == [3.5, 3.3, 3.0, 2.8, 2.7]


MARIN = '"Name","parameter_count","throughput/total_tokens","eval/paloma/macro_loss","throughput/total_gflops"'
"""Header of Open-Athena/scaling-law-analysis, data/isoflops/marin_202603/raw/isoflop-dclm.csv, an export of marin's."""
GADRE = "name,dataset,N,N_no_embed,D,lr,mult,loss_openlm,loss_c4_val,loss_paloma_ptb"
"""Header of mlfoundations/scaling, exp_data/models."""


def test_columns_that_only_the_user_knows_are_asked_for_with_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path, *published(MARIN, '"isoflop-6e+19","{n}","{d}","{loss}","{c}"'))
    assert [problem.partition("; is it ")[2] for problem in problems(path)] == [
        "`columns=num_tokens=throughput/total_tokens`?",
        "`columns=loss=eval/paloma/macro_loss`?",
    ]
    named = parse_columns("loss=eval/paloma/macro_loss,tokens=throughput/total_tokens")
    assert read_runs(path, min_rows=5, columns=named).table.num_tokens.tolist() == [2e9, 2e9, 4e9, 8e9, 1e10]
    path = write(tmp_path, *published(GADRE, "x,rpj,{n},{n},{d},1e-3,1,{loss},4,4"))
    (found,) = problems(path)
    assert found.endswith("is it `columns=loss=loss_openlm` (or loss_c4_val, loss_paloma_ptb)?")
    assert read_runs(path, min_rows=5, columns={"loss": "loss_openlm"}).table.loss.tolist()[0] == 3.5


def test_a_column_that_the_user_misspells(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_runs(write(tmp_path, HEADER, *GOOD), min_rows=5, columns={"loss": "num_token", "run": "x"})
    first, second = caught.value.problems
    assert "`columns=loss=num_token`: there is no such column; the header has 'num_params', 'num_tokens'" in first
    assert first.endswith("did you mean 'num_tokens'?")
    assert "`columns=run=x`" in second


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("loss=Loss,params=N_total,tokens=D", {"loss": "Loss", "num_params": "N_total", "num_tokens": "D"}),
        ("Loss=a b, c,N = d=e", {"loss": "a b, c", "num_params": "d=e"}),
    ],
)
def test_columns_as_written(text: str, columns: dict[str, str]) -> None:
    assert parse_columns(text) == columns


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("loss", "'loss' does not say which column is meant"),
        ("=x", "'=x' does not say"),
        ("los=x", "'los' is not one of num_params, num_tokens, loss,"),
        ("loss=a,val_loss=b", "loss is given twice, as 'a' and 'b'"),
    ],
)
def test_columns_that_are_not(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_columns(text)


def test_tokens_follow_from_flops_and_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "params,compute,Loss", "1e8,1.2e18,3.5", '"300,000,000","7,200,000,000,000,000,000",3.0')
    runs = read_runs(path, min_rows=1)
    assert runs.table.num_params.tolist() == [1e8, 3e8]
    assert runs.table.num_tokens.tolist() == pytest.approx([2e9, 4e9])
    assert runs.notes == ("there is no column of tokens: D = C / (6 N), with C from 'compute'",)
    assert problems(write(tmp_path, "params,compute,Loss", "1e8,,3.5"), min_rows=1) == (
        "row 2: flops is empty, and without a column of tokens D follows from it",
    )


@pytest.mark.parametrize("text", ["190,354,176", "190354176", "190.354176M", "0.190354176B", "1.90354176e8"])
def test_a_count_in_any_spelling(tmp_path: Path, text: str) -> None:
    table = read_runs(write(tmp_path, HEADER, f'"{text}","2,000,000,000",3.5'), min_rows=1).table
    assert table.num_params.tolist() == pytest.approx([190354176], rel=1e-15)
    assert table.num_tokens.tolist() == [2e9]


@pytest.mark.parametrize("mark", ["\t", ";", "|"])
def test_other_separators(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path, *published(*PUBLIC_HEADERS[0], separator=mark))
    assert read_runs(path, min_rows=5).table.num_tokens.tolist() == [2e9, 2e9, 4e9, 8e9, 1e10]


@pytest.mark.parametrize("loss", ["nan", "NaN", "", "inf", "-inf", "None", "N/A"])
def test_runs_without_a_loss_are_left_out_and_named(tmp_path: Path, loss: str) -> None:
    runs = read_runs(write(tmp_path, HEADER, *GOOD[:3], f"1e8,2e9,{loss}", *GOOD[3:], f"x,,{loss}"), min_rows=5)
    assert runs.table.labels == ("row 2", "row 3", "row 4", "row 6", "row 7")
    (note,) = runs.notes
    shown = loss or "empty"
    assert note == f"2 rows without a finite loss are left out: row 5: loss is {shown}; row 8: loss is {shown}"
    assert problems(write(tmp_path, HEADER, *GOOD[:4], f"1e8,2e9,{loss}")) == (
        f"row 6: loss is {shown}; it must be a positive finite number",
        "has 4 runs, and the fit has 5 constants: at least 5 runs are needed",
    )


def test_many_runs_without_a_loss_are_counted(tmp_path: Path) -> None:
    (note,) = read_runs(write(tmp_path, HEADER, *GOOD, *["1e8,2e9,nan"] * 12), min_rows=5).notes
    assert note.startswith("12 rows without a finite loss are left out: row 7: loss is nan; row 8")
    assert note.endswith("row 16: loss is nan; and 2 more")


def test_perplexities_are_refused_or_converted(tmp_path: Path) -> None:
    rows = [f"{row.rpartition(',')[0]},{math.exp(float(row.rpartition(',')[2]))!r}" for row in GOOD]
    for header in ("N,D,ppl", "N,D,Val-Perplexity"):
        path = write(tmp_path, header, *rows)
        (found,) = problems(path)
        assert found.endswith("is a perplexity: `unit=perplexity` takes its logarithm")
        table = read_runs(path, min_rows=5, unit=LossUnit.PERPLEXITY).table
        assert table.loss.tolist() == pytest.approx([3.5, 3.3, 3.0, 2.8, 2.7])
        assert table.unit is LossUnit.TOKEN
        with pytest.raises(DataError, match="is a perplexity, and the loss is in nats"):
            read_runs(path, min_rows=5, columns={"loss": header.split(",")[2]})
    path = write(tmp_path, HEADER, *rows)  # under the name of a loss: the values tell
    (found,) = problems(path)
    assert found.startswith(
        "loss is 14.8797 to 33.1155 in 5 of 5 runs, and a uniform guess among 442,413 pieces has 13"
    )
    assert read_runs(path, min_rows=5, unit=LossUnit.PERPLEXITY).table.loss.tolist()[0] == pytest.approx(3.5)
    below = write(tmp_path, "N,D,ppl", *rows, "1e8,2e9,0.9")
    with pytest.raises(DataError, match=r"row 7: loss is a perplexity of 0\.9; it must be above 1"):
        read_runs(below, min_rows=5, unit=LossUnit.PERPLEXITY)


def test_bits_are_not_nats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'eval_bpb' is in bits"):
        read_runs(write(tmp_path, "N,D,eval_bpb", "1e8,2e9,1.1"), min_rows=1, columns={"loss": "eval_bpb"})


def test_one_diverged_run_is_said_and_kept(tmp_path: Path) -> None:
    (note,) = read_runs(write(tmp_path, HEADER, *GOOD, *extra(6), "1e8,2e9,15"), min_rows=5).notes
    assert note.startswith("row 13: loss is 15 nats per token, worse than a uniform guess: the run has diverged")


def extra(count: int) -> list[str]:
    return [f"{6 + index}e8,1e10,2.{60 - index}" for index in range(count)]


RECORDS = [
    {"params": "100M", "tokens": 2000000000, "loss": 3.5},
    {"params": 2e8, "loss": 3.3, "tokens": 2e9, "run": "b"},
]


def test_records_of_json_and_parquet(tmp_path: Path) -> None:
    lines, whole, parquet = tmp_path / "runs.jsonl", tmp_path / "runs.json", tmp_path / "runs.parquet"
    nan = {"params": 1e8, "tokens": 1e9, "loss": math.nan}
    lines.write_text("".join(f"{json.dumps(record)}\n\n" for record in [*RECORDS, nan]), encoding="utf-8")
    whole.write_text(json.dumps([*RECORDS, nan]), encoding="utf-8")
    numbers = [{**record, "params": 1e8 * (1 + index)} for index, record in enumerate(RECORDS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*numbers, nan]), parquet)
    for path, place in ((lines, "line 1"), (whole, "record 1"), (parquet, "record 1")):
        runs = read_runs(path, min_rows=1)
        assert runs.table.num_params.tolist() == [1e8, 2e8]
        assert runs.table.num_tokens.tolist() == [2e9, 2e9]
        assert runs.table.loss.tolist() == [3.5, 3.3]
        assert runs.table.labels[0] == place
        assert "1 rows without a finite loss are left out" in runs.notes[-1]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("runs.jsonl", '{"N": 1}\n{"N": ', "line 2 is not JSON: Expecting value at column 7"),
        ("runs.jsonl", "[1, 2]", "line 1 is not an object of named values"),
        ("runs.json", "{}", "must be a list of records, one object for each run"),
        ("runs.json", "[3]", "record 1 is not an object of named values"),
        ("runs.json", "[", "is not JSON: Expecting value at column 2"),
        ("runs.parquet", "PAR1", "is not Parquet: "),
        (
            "runs.json",
            json.dumps([{f"column {index}": 1 for index in range(10_001)}]),
            "has records of 10,001 different keys; at most 10,000 columns are read",
        ),
    ],
)
def test_damaged_records(tmp_path: Path, name: str, text: str, problem: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (found,) = problems(tmp_path / name)
    assert found.startswith(problem)


# ---- runs that cannot be compared ------------------------------------------------------------------------------------

HASHES = f"run,{HEADER},tokenizer_hash,held_out_hash,bytes_per_token,train_bytes_per_token"


def hashed(*kinds: str) -> list[str]:
    return [f"r{index},{row},{kind}" for index, (row, kind) in enumerate(zip(GOOD, kinds, strict=True))]


def test_two_tokenizers_are_refused_with_both_runs_and_both_hashes(tmp_path: Path) -> None:
    path = write(tmp_path, HASHES, *hashed("aa,h,4,", "aa,h,4,", ",h,4,", "bb,h,2,2.5", "cc,h,2,2.5"))
    (found,) = problems(path)
    assert found.startswith(
        "r0 (row 2) has the tokenizer aa and r3 (row 5) bb: losses per token of different tokenizers"
    )
    assert "`unit=byte` fits them per byte" in found
    table = read_runs(path, min_rows=5, unit=LossUnit.BYTE).table
    assert table.unit is table.select([0]).unit is LossUnit.BYTE
    assert table.loss.tolist() == pytest.approx([3.5 / 4, 3.3 / 4, 3.0 / 4, 2.8 / 2, 2.7 / 2])
    assert table.num_tokens.tolist() == pytest.approx([2e9 * 4, 2e9 * 4, 4e9 * 4, 8e9 * 2.5, 1e10 * 2.5])


def test_a_table_per_byte_for_one_tokenizer_is_one_per_token(tmp_path: Path) -> None:
    path = write(tmp_path, HASHES, *hashed(*["aa,h,4,"] * 3, *["bb,h,2,"] * 2))
    table = read_runs(path, min_rows=5, unit=LossUnit.BYTE, bytes_per_token=4).table
    assert table.unit is LossUnit.TOKEN
    assert table.loss.tolist() == pytest.approx([3.5, 3.3, 3.0, 5.6, 5.4])
    assert table.num_tokens.tolist() == pytest.approx([2e9, 2e9, 4e9, 4e9, 5e9])
    assert table.flops.tolist() == pytest.approx((6 * table.num_params * table.num_tokens).tolist())
    with pytest.raises(ConfigError, match="`bytes_per_token` has no effect on losses per token"):
        read_runs(write(tmp_path, HEADER, *GOOD), min_rows=5, bytes_per_token=4)


def test_two_held_out_texts_are_refused_in_any_unit(tmp_path: Path) -> None:
    path = write(tmp_path, HASHES, *hashed("aa,x,4,", *["aa,y,4,"] * 4))
    for unit in (LossUnit.TOKEN, LossUnit.BYTE):
        with pytest.raises(DataError) as caught:
            read_runs(path, min_rows=5, unit=unit)
        (found,) = caught.value.problems
        assert "r0 (row 2) was evaluated on the held-out text x and r1 (row 3) on y" in found


def test_unknown_hashes_are_said_to_be_assumed(tmp_path: Path) -> None:
    runs = read_runs(write(tmp_path, HASHES, *hashed(*["aa,x,4,"] * 4, ",x,4,")), min_rows=5)
    assert runs.notes == ("1 of 5 runs do not say which tokenizer they have: assumed to be that of the others",)
    (found,) = problems(write(tmp_path, HASHES, *hashed("aa,x,4,", "bb,x,,", *["aa,x,4,"] * 3)))
    assert "has the tokenizer aa and r1 (row 3) bb" in found


def test_bytes_that_are_unknown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bytes_per_token is missing in 1 of 5 runs \(row 3 first\)"):
        read_runs(
            write(tmp_path, HASHES, *hashed("aa,x,4,", "bb,x,,", *["aa,x,4,"] * 3)), min_rows=5, unit=LossUnit.BYTE
        )
