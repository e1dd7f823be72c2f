"""Tokenizers that end the library that reads them: one line, and this process goes on."""

import json
import random
import subprocess

import pytest
import tokenizers

from chinchilla_ds.cli.main import main
from chinchilla_ds.data.tokenizing import child as tokenizer_child
from chinchilla_ds.data.tokenizing.tokenizer import SentencePieceTokenizer, Tokenizer
from chinchilla_ds.errors import DataError
from tests.unit.data.tokenizing.test_sentencepiece_json import train
from tests.unit.data.tokenizing.test_tokenizer import train_byte_level


def definition(**model):
    """A tokenizer.json whose model is changed."""
    values = json.loads(train_byte_level().to_str())
    values["model"] |= model
    return values


def panics():
    """Longer than a merge: tokenizers takes a slice that begins behind its end."""
    return definition(continuing_subword_prefix="#" * 20)


@pytest.fixture
def forged(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(panics()))
    return path


def test_a_panic_is_one_line(forged):
    for path in (forged, forged.parent):
        with pytest.raises(DataError) as caught:
            Tokenizer.load(path)
        [problem] = caught.value.problems
        assert problem.startswith(f"{path} cannot be read: the library that reads it fails (")
        assert "\n" not in problem
    with pytest.raises(BaseException, match="out of range") as caught:
        tokenizers.Tokenizer.from_file(str(forged))
    assert not isinstance(caught.value, Exception), "control: it would have ended this process"


def test_every_command_that_reads_a_tokenizer_says_so(forged, tmp_path, capfd):
    (tmp_path / "text.txt").write_text("some text\n" * 100)
    words = ["prepare", "--source", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--tokenizer", str(forged)]) == 2
    [line] = capfd.readouterr().err.splitlines()[-1:]
    assert line.startswith("error: ")
    assert "the library that reads it fails" in line


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "it crashes the library that reads it (SIGSEGV)"),
        ("while True: pass", "its library was still processing it after 1 s"),
        ("raise SystemError('first line\\n\\nlast line')", "the library that reads it fails (last line)"),
    ],
    ids=["dies", "does not end", "raises"],
)
def test_what_becomes_of_the_child_is_told(code, text, tmp_path, monkeypatch):
    path, program, run = tmp_path / "tokenizer.model", tmp_path / "program.py", subprocess.run
    path.write_bytes(train(vocab_size=460))
    program.write_text(f"import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 2))\n{code}\n")
    monkeypatch.setattr(subprocess, "run", lambda words, **more: run([words[0], program], **more))
    monkeypatch.setattr(tokenizer_child, "_CPU_S", 1)
    with pytest.raises(DataError) as caught:
        Tokenizer.load(path)
    assert caught.value.problems == (f"{path} cannot be read: {text}",)
    monkeypatch.undo()
    assert isinstance(Tokenizer.load(path), SentencePieceTokenizer), "control: it is sound"


def test_what_the_child_refuses_is_refused_in_the_same_words(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(byte_fallback=False))
    with pytest.raises(DataError) as told:
        Tokenizer.load(path)
    with pytest.raises(DataError) as here:
        Tokenizer.load(path, trusted=True)
    assert told.value.problems == here.value.problems
    assert "loses text" in told.value.problems[0]


def test_a_sound_tokenizer_is_tried_once(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(vocab_size=500))
    Tokenizer.load(path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    Tokenizer.load(path)


def test_nothing_in_the_working_folder_is_run(tmp_path, monkeypatch):
    """`python -m` looks for modules where it is started, which may be a folder from elsewhere."""
    for name in ("json", "tokenizers", "sentencepiece", "chinchilla_ds", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write({name!r})")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(train(vocab_size=480))
    monkeypatch.chdir(tmp_path)
    Tokenizer.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_damaged_models_never_end_this_process(tmp_path):
    """Bytes flipped, cut and repeated, of both formats: read, or refused in lines."""
    generator, told = random.Random(1), []
    sound = {"tokenizer.model": train(vocab_size=400), "tokenizer.json": train_byte_level().to_str().encode()}
    for number in range(30):
        name = generator.choice(list(sound))
        content = bytearray(sound[name])
        for _ in range(generator.randint(1, 8)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        if generator.random() < 0.3:
            del content[generator.randrange(len(content)) :]
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(content)
        try:
            Tokenizer.load(path)
        except DataError as error:
            told += error.problems
    assert len(told) > 5, "control: most of them are not sound"
    assert all("\n" not in problem for problem in told)
