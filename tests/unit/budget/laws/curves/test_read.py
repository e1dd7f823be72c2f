"""What the reader of curves refuses, with the place and the rule; and what it takes."""

from pathlib import Path

import numpy as np
import pytest

from chinchilla_ds.budget.laws.curves.read import CurveSource, read_curves
from chinchilla_ds.errors import DataError

GOOD = [(step, 3e-4 * min(1, (3000 - step) / 1000), 3 + 1 / step) for step in range(100, 2600, 100)]


def _write(path: Path, rows: list[tuple[float, float, float]], header: str = "step,lr,loss") -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


def _problems(path: Path, *, warmup_steps: int | None = None) -> list[str]:
    files, problems = read_curves([str(path)], warmup_steps=warmup_steps, needs_loss=True)
    assert bool(files) != bool(problems)
    return problems


def _changed(row: int, column: int, value: float) -> list[tuple[float, float, float]]:
    rows = [list(values) for values in GOOD]
    rows[row][column] = value
    return [(a, b, c) for a, b, c in rows]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (_changed(3, 2, float("nan")), "row 5: loss is nan; it must be finite"),
        (_changed(3, 2, 0.0), "row 5: loss is 0.0; it must be in nats per token, above 0"),
        (_changed(3, 2, -2.0), "row 5: loss is -2.0"),
        (_changed(3, 2, 190354176.0), "at most"),
        (_changed(3, 1, -1e-4), "row 5: lr is -0.0001; it must be at least 0"),
        (_changed(3, 1, float("inf")), "row 5: lr is inf; it must be finite"),
        (_changed(3, 0, 150.5), "row 5: step is 150.5; it must be a whole number"),
        (_changed(24, 0, 3e9), "at most 10,000,000 optimizer steps are read (are these tokens?)"),
        (_changed(3, 0, 50), "step 50 comes after step 300, as 1 in all: steps must rise"),
        (_changed(3, 0, 300), "step 300 comes after step 300"),
        ([(step, 0.0, loss) for step, _, loss in GOOD], "lr is 0 in every row"),
        ([(step, step * 1e-7, loss) for step, _, loss in GOOD], "it is all warm-up"),
        (GOOD[:1], "has 1 rows of a curve; at least 2 are needed"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, rows: list[tuple[float, float, float]], problem: str) -> None:
    (message,) = _problems(_write(tmp_path / "run.csv", rows))
    assert message.startswith(f"{tmp_path / 'run.csv'}: ")
    assert problem in message


def test_all_problems_of_all_files_are_collected(tmp_path: Path) -> None:
    first = _write(tmp_path / "a.csv", [(step, float("nan"), -1.0) for step, _, _ in GOOD])
    second = _write(tmp_path / "b.csv", GOOD, header="step,rate,los")
    third = tmp_path / "missing.csv"
    files, problems = read_curves(map(str, (first, second, third)), warmup_steps=None, needs_loss=True)
    assert files == []
    assert len(problems) == 10 + 1 + 2 + 1
    assert "and 40 more problems" in problems[10]
    assert "the column lr or learning_rate is missing" in problems[11]
    assert "the column loss is missing; its header is step, rate, los" in problems[12]
    assert "cannot be read" in problems[13]


def test_sizes_and_warm_up_that_contradict_the_file_are_refused(tmp_path: Path) -> None:
    header = "step,lr,loss,num_params"
    rows = [(*row, "25M" if i else "100M") for i, row in enumerate(GOOD)]
    path = _write(tmp_path / "run.csv", rows, header=header)
    assert "num_params is 2.5e+07 to 1e+08; one file is one run" in _problems(path)[0]
    _write(path, [(*row, "25M") for row in GOOD], header=header)
    assert "num_params is 2.5e+07, and @1e+08 was given" in _problems(Path(f"{path}@100M"))[0]
    assert "the number of parameters after @ 'x' is not a number" in _problems(Path(f"{path}@x"))[0]
    message = _problems(path, warmup_steps=200)[0]
    assert "`warmup=200` steps end after the first row, at step 100" in message


def test_a_file_is_read_with_its_size_and_other_names_of_columns(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.csv", [(c, a, b) for a, b, c in GOOD], header="loss,step,learning_rate")
    (file,), problems = read_curves([f"{path}@25e6"], warmup_steps=100, needs_loss=True)
    assert problems == []
    assert file.num_params == 25e6
    assert file.curve.loss.tolist() == [loss for _, _, loss in GOOD]
    assert file.curve.summed_rate[0] == pytest.approx(3e-4 * (100 / 2 + 1))


@pytest.mark.parametrize("mark", ["\t", ";", "|"])
def test_other_separators_and_capitals_are_read(tmp_path: Path, mark: str) -> None:
    plain, other = _write(tmp_path / "a.csv", GOOD), tmp_path / "b.csv"
    text = plain.read_text(encoding="utf-8").replace("step,lr,loss", "Step,Learning Rate,Loss").replace(",", mark)
    other.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    (first, second), problems = read_curves([str(plain), str(other)], warmup_steps=None, needs_loss=True)
    assert problems == []
    assert second.curve.loss.tolist() == first.curve.loss.tolist()
    assert second.rate.tolist() == first.rate.tolist()


def test_rows_of_the_warm_up_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [(step, step * 3e-6, 9.0) for step in range(10, 100, 10)] + GOOD
    (file,), _ = read_curves([str(_write(tmp_path / "run.csv", rows))], warmup_steps=None, needs_loss=True)
    assert file.num_warmup_rows == 9
    assert file.curve.step[0] == 100
    assert file.curve.summed_rate[0] == pytest.approx(3e-6 * 100 * 101 / 2, rel=1e-3), "by their own rates"


def test_a_file_to_predict_needs_no_losses(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.csv", [row[:2] for row in GOOD], header="step,lr")  # type: ignore[misc]
    (file,), _ = read_curves([str(path)], warmup_steps=None, needs_loss=False)
    assert not file.has_loss
    assert np.isnan(file.curve.loss).all()


def test_a_file_whose_name_has_an_at_sign_is_a_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "run@25e6", GOOD)
    assert CurveSource.named(str(path)) == CurveSource(path=path)
    with pytest.raises(DataError):
        CurveSource.named("run@many")
