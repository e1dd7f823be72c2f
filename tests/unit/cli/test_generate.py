"""`chinchilla-ds generate` on a small checkpoint: what is printed, what streams, what is refused."""

import io
import json

import pytest

from chinchilla_ds.cli import generate as command
from chinchilla_ds.cli.main import main
from tests.unit.data.tokenizing.test_tokenizer import train_byte_level
from tests.unit.data.tokenizing.test_tokenizer_child import panics
from tests.unit.inference.models import reader, small_tokenizer, write_run

GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return folders by name: a model, a smaller one, one with another tokenizer, and one without."""
    folder = tmp_path_factory.mktemp("runs")
    tokenizer = small_tokenizer()
    shape = {"padded_vocab_size": 512, "vocab_size": tokenizer.vocab_size, "seq_length": 64}
    other = small_tokenizer(vocab_size=390)
    return {
        "large": write_run(folder / "large", reader(**shape), tokenizer=tokenizer),
        "small": write_run(folder / "small", reader(**shape, num_layers=2, seed=1), tokenizer=tokenizer),
        "other": write_run(folder / "other", reader(**shape, num_layers=1), tokenizer=other),
        "bare": write_run(folder / "bare", reader(**shape, num_layers=1), tokenizer=None),
    }


@pytest.fixture
def printed(capsys):
    def run(*words):
        assert main(["generate", *map(str, words)]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    def run(*words):
        assert main(["generate", *map(str, words)]) == 2
        return capsys.readouterr().err

    return run


def test_streamed_drafted_and_plain_text_are_the_same(runs, printed):
    words = (runs["large"], "--prompt", "def value(", *GREEDY)
    text = printed(*words)
    assert text.startswith("def value(")
    assert len(text) > len("def value(") + 5
    assert printed(*words, "--stream") == text
    assert printed(*words, "--draft", runs["small"]) == text
    assert printed(*words, "--draft", runs["small"], "--stream") == text
    assert printed(runs["large"] / "checkpoints" / "step_0000000", *words[1:]) == text


def test_a_seed_draws_the_same_text_again_and_another_does_not(runs, printed):
    words = (runs["large"], "--prompt", "def ", "--max-tokens", "20", "--seed")
    assert printed(*words, 1) == printed(*words, 1) != printed(*words, 2)


def test_several_prompts_as_text_and_as_json(runs, printed):
    words = (runs["large"], "--prompt", "def ", "class value", "--max-tokens", "5", "--seed", "3")
    rows = json.loads(printed(*words, "--json"))
    assert [row["prompt"] for row in rows] == ["def ", "class value"]
    assert all(row["finish"] in ("length", "end_of_document") for row in rows)
    texts = [row["prompt"] + row["text"] for row in rows]
    assert printed(*words) == f"--- 1 of 2\n{texts[0]}\n--- 2 of 2\n{texts[1]}\n"


def test_a_stop_string_ends_the_text(runs, printed):
    words = (runs["large"], "--prompt", "def value(", *GREEDY)
    text = printed(*words).removeprefix("def value(").removesuffix("\n")
    stop = text[3:6]
    [row] = json.loads(printed(*words, "--stop", "never", stop, "--json"))
    assert (row["text"], row["finish"]) == (text[: text.find(stop)], "stop")
    assert row["num_tokens"] < 12


def test_lines_of_a_pipe_are_continued_one_by_one(runs, printed, monkeypatch):
    alone = [printed(runs["large"], "--prompt", prompt, *GREEDY) for prompt in ("def ", "class value")]
    monkeypatch.setattr("sys.stdin", io.StringIO("def \nclass value\n"))
    assert printed(runs["large"], *GREEDY) == "".join(alone)


def test_a_person_is_asked_and_a_prompt_that_is_too_long_is_no_end(runs, printed, monkeypatch):
    answers = iter(["def ", "value " * 100, "class value"])

    def typed(_prompt):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    alone = [printed(runs["large"], "--prompt", prompt, *GREEDY) for prompt in ("def ", "class value")]
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("builtins.input", typed)
    shown = printed(runs["large"], *GREEDY)
    assert shown.startswith(alone[0] + "error: prompt 1 has ")
    assert shown.endswith(alone[1] + "\n")


def test_nothing_is_a_prompt_too(runs, printed):
    assert printed(runs["large"], "--prompt", "", *GREEDY).strip()


def test_bad_input_is_refused(runs, refused):
    large = runs["large"]
    long = refused(large, "--prompt", "a", "value " * 100)
    assert long.startswith("error: prompt 2 has ")
    assert "and the model's context has 64; shorten it to at most 63" in long
    assert "at most 63 fit" in refused(large, "--prompt", "a", "--max-tokens", 64)
    assert "does not exist" in refused(large.with_name("none"), "--prompt", "a")
    assert "holds no checkpoint" in refused(large.parent, "--prompt", "a")
    assert "holds no tokenizer" in refused(runs["bare"], "--prompt", "a")
    assert "has a different tokenizer from" in refused(large, "--prompt", "a", "--draft", runs["other"])
    assert refused(large, "--prompt", "a", "--top-k", 0, "--top-p", 2).count("error: ") == 2
    assert "= 2 ranks, and 1 were started" in refused(large, "--prompt", "a", "--tensor-model-parallel-size", 2)
    assert "did you mean 'bf16'" in refused(large, "--prompt", "a", "--dtype", "bf61")
    clashes = refused(large, "--prompt", "a", "b", "--stream", "--json", "--compile", "--draft", runs["small"])
    assert clashes.count("error: ") == 3
    assert clashes.count(": drop one") == 3


def test_a_checkpoint_with_the_tokenizer_of_another_text_is_refused(runs, refused, tmp_path):
    import dataclasses

    from chinchilla_ds.checkpoint.reader import CheckpointReader
    from chinchilla_ds.checkpoint.writer import write_checkpoint

    reader = CheckpointReader.open(runs["large"])
    state = dataclasses.replace(reader.state, tokenizer_sha256="0" * 64)
    weights = ((name, reader.read(name)) for name in reader.names())
    folder = tmp_path / "step_0000001"
    write_checkpoint(
        folder, plan=reader.plan, ds_config={}, weights=weights, tokenizer=reader.tokenizer_path, state=state
    )
    assert "is not the tokenizer of the training text" in refused(folder, "--prompt", "a")


def test_lines_reach_every_rank_from_the_first():
    class OneRank:
        world_size = 1

    assert list(command._shared_lines(lambda: iter(["a\n", "b\n"]), ranks=OneRank())) == ["a\n", "b\n"]


def test_texts_that_are_not_utf8_are_refused(runs, refused, monkeypatch):
    large = runs["large"]
    assert refused(large, "--prompt", "a", "b\udcff") == "error: prompt 2 is not UTF-8 at character 2\n"
    assert refused(large, "--prompt", "a", "--stop", "\udce9") == "error: --stop string 1 is not UTF-8 at character 1\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"def \n\xff\xfe\n"), encoding="utf-8"))
    assert refused(large, *GREEDY).startswith("error: standard input is not UTF-8: invalid start byte")
    escaped = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="ascii", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", escaped)
    assert refused(large, *GREEDY).endswith("error: prompt 1 is not UTF-8 at character 1\n")


def with_tokenizer(tokenizer, folder):
    """A checkpoint that holds a folder as its tokenizer."""
    from chinchilla_ds.checkpoint.writer import write_checkpoint

    weights = reader(padded_vocab_size=512, vocab_size=500, seq_length=64)
    return write_checkpoint(
        folder / "step_0000000", plan=weights.plan, ds_config={}, weights=weights.state.items(), tokenizer=tokenizer
    )


def test_forged_tokenizers_of_checkpoints_are_refused(refused, tmp_path):
    (tmp_path / "secret").write_text("secret")
    for name, forge, text in (
        ("panics", lambda path: path.write_text(json.dumps(panics())), "the library that reads it fails"),
        ("link", lambda path: path.symlink_to(tmp_path / "secret"), "is a link "),
        ("large", lambda path: path.write_text(json.dumps(many_tokens())), "has 600 tokens, and the model's embedding"),
        ("huge", lambda path: path.write_text(json.dumps(many_tokens(2**31))), "ids below 4194304 are read"),
    ):
        (tmp_path / name).mkdir()
        forge(tmp_path / name / "tokenizer.json")
        checkpoint = with_tokenizer(tmp_path / name, tmp_path / f"{name}-run")
        assert not list(checkpoint.rglob("secret"))
        for words in (["--prompt", "a"], ["--prompt", "a", "--draft", checkpoint]):
            found = refused(checkpoint, *words)
            assert text in found
            assert len(found.splitlines()) == 1
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert main(["evaluate", str(checkpoint), "--data", str(tmp_path / "secret")]) == 2


def many_tokens(last=599):
    values = json.loads(train_byte_level().to_str())
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values["model"]["vocab"]["<|last|>"] = last
    values["added_tokens"].append({"id": last, "content": "<|last|>", **token})
    return values
