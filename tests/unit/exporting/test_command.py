"""`chinchilla-ds export` and `chinchilla-ds import` as a user sees them."""

import re

import pytest

from chinchilla_ds.cli.main import main
from chinchilla_ds.data.prepared import PreparedData
from chinchilla_ds.runs.text import DATA_NAME, place_of_text
from tests.unit.data.conftest import make_documents


@pytest.fixture
def run_folder(make_checkpoint, tmp_path):
    return make_checkpoint().folder.parent.parent


def test_export_then_import(run_folder, tmp_path, capsys):
    assert main(["export", str(run_folder), "--out", str(tmp_path / "out"), "--dtype", "bf16", "--licence", "MIT"]) == 0
    assert main(["import", str(tmp_path / "out"), "--out", str(tmp_path / "back")]) == 0
    assert main(["export", str(tmp_path / "back"), "--out", str(tmp_path / "again"), "--dtype", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"wrote \S+out: \S+K parameters, \S+ KiB in bf16, from \S+step_0000000", lines[0])
    assert lines[2] == "the plan and the padding are those of the run that was exported"
    first, again = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == again.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert "license: unknown" in (tmp_path / "again" / "README.md").read_text()


def test_report_of_a_quantised_export(run_folder, tmp_path, capsys):
    tokenizer = next(run_folder.rglob("tokenizer.model"))
    for number, text in enumerate(make_documents(number=60)):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{number}.txt").write_text(text)
    prepared = ["prepare", "--source", str(tmp_path / "text"), "--workers", "1", "--held-out-fraction", "0.3"]
    assert main([*prepared, "--tokenizer", str(tokenizer), "--out", str(tmp_path / "prepared")]) == 0
    assert main([*prepared, "--vocab-size", "400", "--out", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    words = ["export", str(run_folder), "--quantize", "vq3", "--data", str(tmp_path / "prepared")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    rows = {line[:15].strip(): line[15:].split() for line in out.splitlines() if line.endswith("%")}
    assert rows.keys() == {"tensors", "bits per byte", "tokens/s"}
    before, after, change = rows["bits per byte"]
    assert float(after) / float(before) - 1 == pytest.approx(float(change.rstrip("%")) / 100, abs=1e-3)
    assert "vq3, " in out.splitlines()[0]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    assert main([*words[:4], "--out", str(tmp_path / "alone")]) == 0
    assert "The place of the run's text is unknown" in capsys.readouterr().out
    text = place_of_text(PreparedData.load(tmp_path / "prepared"), run_folder=run_folder)
    (run_folder / DATA_NAME).write_text(text)  # a corpus elsewhere, as training notes it
    assert main([*words[:4], "--out", str(tmp_path / "by-itself")]) == 0
    assert f"bits per byte  {before:>12}{after:>12}" in capsys.readouterr().out
    assert main([*words[:4], "--data", str(tmp_path / "other"), "--out", str(tmp_path / "wrong")]) == 2
    assert "was prepared with a different tokenizer" in capsys.readouterr().err
