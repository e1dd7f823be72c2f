"""`chinchilla-ds evaluate` on a small checkpoint: table, JSON and log; the run's own text and files; refusals."""

import json
import math
from pathlib import Path

import pytest
import torch

from chinchilla_ds import evaluate
from chinchilla_ds.cli.main import main
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe, rules_of
from chinchilla_ds.errors import ConfigError, DataError
from chinchilla_ds.runs.text import DATA_NAME, place_of_text
from tests.parity.transformers_llama import llama_of
from tests.unit.inference.models import EOD_ID, reader, small_tokenizer, write_run

TEXTS = {
    "code": [f"def value_{number}(x):\n    return x + {number}\n" for number in range(40)],
    "prose": [f"the name of number {number} is {number * 7} and that is for the list\n" for number in range(40)],
}


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    return {name: write_jsonl(folder / f"{name}.jsonl", texts) for name, texts in TEXTS.items()}


@pytest.fixture(scope="module")
def weights():
    return reader(padded_vocab_size=512, vocab_size=small_tokenizer().vocab_size, seq_length=32)


@pytest.fixture
def run_folder(tmp_path, weights):
    return write_run(tmp_path / "run", weights, tokenizer=small_tokenizer())


@pytest.fixture
def prepared(tmp_path, files):
    small_tokenizer().save(tmp_path / "tokenizer.model")
    recipe = Recipe(
        sources=tuple(SourceRecipe(name=name, paths=(str(path),)) for name, path in files.items()),
        held_out_fraction=0.3,
        tokenizer=tmp_path / "tokenizer.model",
        cleaning=rules_of([]),
        dedup=False,
        minhash=None,
    )
    return prepare_recipe(recipe, folder=tmp_path / "prepared", num_workers=1)


@pytest.fixture
def evaluated(capsys):
    def run(*words):
        assert main(["evaluate", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    def run(*words):
        assert main(["evaluate", *map(str, words)]) == 2
        return capsys.readouterr().err

    return run


@torch.inference_mode()
def independent_bits_per_byte(weights, texts):
    """Every document by itself, at most one window long, with transformers."""
    tokenizer, model = small_tokenizer(), llama_of(weights)
    nats = 0.0
    for text in texts:
        tokens = [EOD_ID, *tokenizer.encode(text), EOD_ID]
        assert len(tokens) - 1 <= 32, "longer than one window"
        log_p = model(torch.tensor([tokens[:-1]])).logits[0, :, : tokenizer.vocab_size].double().log_softmax(dim=-1)
        nats -= float(log_p.gather(1, torch.tensor(tokens[1:])[:, None]).sum())
    return nats / math.log(2) / sum(len(text.encode()) for text in texts)


def test_files_by_source_equal_an_independent_computation(run_folder, weights, files, evaluated):
    found = evaluated(run_folder, "--data", *(f"{name}={path}" for name, path in files.items()))
    scores = found["scores"]
    assert list(scores) == ["code", "prose", "all"]
    for name, texts in TEXTS.items():
        assert scores[name]["documents"] == len(texts)
        assert scores[name]["bits_per_byte"] == pytest.approx(independent_bits_per_byte(weights, texts), rel=1e-4)
    everything = TEXTS["code"] + TEXTS["prose"]
    assert scores["all"]["bits_per_byte"] == pytest.approx(independent_bits_per_byte(weights, everything), rel=1e-4)
    assert scores["all"]["tokens"] == scores["code"]["tokens"] + scores["prose"]["tokens"]
    assert scores["code"]["bits_per_byte"] != pytest.approx(scores["prose"]["bits_per_byte"], rel=1e-2)


def test_the_runs_own_held_out_text_is_the_default_and_its_sources_are_told_apart(run_folder, prepared, evaluated):
    (run_folder / DATA_NAME).write_text(place_of_text(prepared, run_folder=run_folder))
    found = evaluated(run_folder)["scores"]
    assert list(found) == ["code", "prose", "all"]
    assert found["all"]["documents"] == prepared.held_out_documents > 10
    assert found["all"]["tokens"] == prepared.held_out_tokens
    assert found["all"]["bytes"] == prepared.held_out_bytes
    by_hand = dict.fromkeys(TEXTS, 0)
    held_out = set(_held_out_texts(prepared))
    for name, texts in TEXTS.items():
        by_hand[name] = sum(len(text.encode()) for text in texts if text in held_out)
    assert {name: found[name]["bytes"] for name in TEXTS} == by_hand
    assert evaluated(run_folder, "--data", prepared.folder)["scores"] == found


def test_the_library_returns_the_scores_of_the_command(run_folder, prepared, files, evaluated):
    paths = {name: str(path) for name, path in files.items()}
    words = [f"{name}={path}" for name, path in paths.items()]
    for text, data in ((paths, words), (prepared.folder, [prepared.folder]), (str(files["code"]), [files["code"]])):
        scores = evaluate(run_folder, text, window=16, stride=4)
        shown = evaluated(run_folder, "--data", *data, "--window", 16, "--stride", 4)["scores"]
        assert {name: score.to_data() for name, score in scores.items()} == shown
        assert list(scores) == list(shown)


def test_the_library_refuses_what_the_command_refuses(run_folder, prepared, files):
    with pytest.raises(DataError, match="does not say where its held-out text is"):
        evaluate(run_folder)
    with pytest.raises(DataError, match=r"includes the prepared folder .*name it alone"):
        evaluate(run_folder, {"mine": prepared.folder})
    with pytest.raises(DataError, match=r"includes the prepared folder .*name it alone"):
        evaluate(run_folder, [prepared.folder, files["code"]])
    with pytest.raises(DataError, match="an empty list of paths holds no text"):
        evaluate(run_folder, [])
    with pytest.raises(ConfigError, match="`stride=17` tokens exceeds `window=16`"):
        evaluate(run_folder, files["code"], window=16, stride=17)


def _held_out_texts(prepared):
    from chinchilla_ds.data.feeding.indexed import read_documents

    tokenizer = small_tokenizer()
    return [tokenizer.decode(tokens.tolist()) for tokens in read_documents(prepared.held_out_prefix)]


def test_the_text_is_found_where_run_and_text_have_moved_together(run_folder, prepared, evaluated, tmp_path):
    (run_folder / DATA_NAME).write_text(place_of_text(prepared, run_folder=run_folder))
    before = evaluated(run_folder)["scores"]
    (tmp_path / "new").mkdir()
    for path in (run_folder, prepared.folder):
        path.rename(tmp_path / "new" / path.name)
    assert evaluated(tmp_path / "new" / "run")["scores"] == before


def test_a_corpus_of_before_is_one_source(run_folder, prepared, evaluated):
    """Format version 2 had neither origins nor digests."""
    (prepared.folder / "held_out_origins.npy").unlink()
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    del manifest["files"]
    (prepared.folder / "manifest.json").write_text(json.dumps(manifest | {"format_version": 2}))
    found = evaluated(run_folder, "--data", prepared.folder)["scores"]
    assert list(found) == ["held-out", "all"]
    assert found["all"]["bytes"] == prepared.held_out_bytes


def test_every_evaluation_is_appended_to_the_runs_log_and_shown(run_folder, files, evaluated, capsys):
    first = evaluated(run_folder, "--data", files["code"], "--window", 16, "--stride", 4)
    assert (first["window"], first["stride"], first["iteration"]) == (16, 4, 0)
    assert list(first["scores"]) == [str(files["code"]), "all"]
    assert main(["evaluate", str(run_folder), "--data", str(files["prose"])]) == 0
    table = capsys.readouterr().out
    log = [json.loads(line) for line in (run_folder / "evaluations.jsonl").read_text().splitlines()]
    assert log[0] == first
    assert f"{log[1]['scores']['all']['bits_per_byte']:.4f}" in table
    assert str(run_folder / "evaluations.jsonl") in table


def test_bad_input_is_refused(run_folder, files, prepared, refused, tmp_path):
    assert "does not say where its held-out text is" in refused(run_folder)
    assert "code.jsonk does not exist; did you mean 'code.jsonl'?" in refused(
        run_folder, "--data", str(files["code"])[:-1] + "k"
    )
    assert "has no field 'content'" in refused(run_folder, "--data", files["code"], "--text-field", "content")
    assert "exceeds the model's context of 32" in refused(run_folder, "--data", files["code"], "--window", 64)
    assert "--stride 9 tokens exceeds --window 8" in refused(
        run_folder, "--data", files["code"], "--window", 8, "--stride", 9
    )
    assert "name it alone" in refused(run_folder, "--data", prepared.folder, files["code"])
    assert "--text-field has no effect on prepared text" in refused(
        run_folder, "--data", prepared.folder, "--text-field", "content"
    )
    assert "--limit is for --tasks" in refused(run_folder, "--limit", 3)
    assert "--data, --window cannot be combined with --tasks" in refused(
        run_folder, "--tasks", "arc_easy", "--data", files["code"], "--window", 8
    )
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "holds no text" in refused(run_folder, "--data", tmp_path / "empty.jsonl")
    small_tokenizer(vocab_size=390).save(tmp_path / "other.model")
    assert not (run_folder / "evaluations.jsonl").read_text()


def test_text_prepared_with_another_tokenizer_is_refused(prepared, refused, weights, tmp_path):
    other = write_run(tmp_path / "other", weights, tokenizer=small_tokenizer(vocab_size=390))
    assert "was prepared with a different tokenizer" in refused(other, "--data", prepared.folder)


def test_tasks_without_lm_eval_say_what_to_install(run_folder, refused, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert "pip install 'chinchilla-ds[eval]'" in refused(run_folder, "--tasks", "arc_easy")
