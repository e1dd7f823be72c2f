import json
import random
from pathlib import Path

import pytest

from chinchilla_ds.cli.main import main
from chinchilla_ds.data.prepared import PreparedData


@pytest.fixture
def text(tmp_path: Path) -> Path:
    generator, path = random.Random(0), tmp_path / "a.jsonl"
    letters = "abcdefghijklmnop    "
    lines = ["".join(generator.choices(letters, k=400)) for _ in range(60)]
    path.write_text("".join(json.dumps({"content": line}) + "\n" for line in lines))
    return path


def test_one_command(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["prepare", "--source", f"x={text}", "--text-field", "content", "--out", str(out), "--workers", "1"]
    assert main([*words, "--vocab-size", "400", "--json"]) == 0
    printed = capsys.readouterr()
    ledger = json.loads(printed.out)
    assert ledger["sources"][0]["name"] == "x"
    assert ledger["sources"][0]["read"]["documents"] == 60
    assert ledger == json.loads((out / "ledger.json").read_text())
    assert "encoding ..." in printed.err
    assert PreparedData.load(out).train_tokens == ledger["train_tokens"]
    assert main([*words, "--vocab-size", "400"]) == 0
    assert f"train on it with --data {out}" in capsys.readouterr().out


def test_a_recipe_and_flags_over_it(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "corpus.yaml"
    recipe.write_text(
        f"out: {tmp_path / 'out'}\nvocab_size: 400\nsources: [{{name: a, paths: {text}, text_field: content}}]"
    )
    assert main(["prepare", str(recipe), "--workers", "1", "--dedup", "none"]) == 0
    assert PreparedData.load(tmp_path / "out").sources[0].name == "a"
    assert "= train" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either a recipe, or --source PATH with --out FOLDER"),
        (["--source", "nowhere.txt"], "--out FOLDER is missing"),
        (["--source", "nowhere.txt", "--out", "o"], "nowhere.txt does not exist"),
        (["--source", "x", "--out", "o", "--dedup", "fineweeb"], "did you mean 'fineweb'?"),
        (["--source", "x", "--out", "o", "--clean", "nfd"], "cleaning rule 'nfd' is not one of"),
        (["--source", "my web=.", "--out", "o"], "source name 'my web' must be letters, digits, '_', '-' and '.'"),
        (["--source", "web=hf:/org name", "--out", "o"], "'hf://org name' names no data set"),
    ],
)
def test_refusals(words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_name_in_any_script_and_what_is_left_out(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(text.read_bytes())
    (folder / "b.png").write_bytes(b"\x89PNG")
    words = ["prepare", "--source", f"文章={folder}", "--text-field", "content", "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "1", "--vocab-size", "400"]) == 0
    assert f"text          {folder} (1 file; left out: 1 x .png)\n" in capsys.readouterr().out
    assert [source.name for source in PreparedData.load(tmp_path / "out").sources] == ["文章"]


def test_nothing_left_says_where_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes("第一回".encode("gbk") * 50)
    words = ["prepare", "--source", str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--on-error", "skip"]) == 2
    message = "of 1 documents read, 1 skipped (not UTF-8); without --on-error skip each is reported with its place"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
