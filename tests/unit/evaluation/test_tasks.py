"""Tasks through lm-eval, where it is installed: a local task, whose bits per byte are ours; unknown names."""

import json
import warnings

import pytest

from chinchilla_ds.cli.main import main
from tests.unit.inference.models import reader, small_tokenizer, write_run

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what lm-eval and its metrics import is not ours
    pytest.importorskip("lm_eval", reason="lm-eval, an extra, is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [f"def value_{number}(x):\n    return x + {number}" for number in range(20)]
ROLLING = """
task: own_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
"""
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "def value_"
doc_to_target: 0
doc_to_choice: ["1(x)", "the list of names"]
metric_list:
  - metric: acc
"""


@pytest.fixture
def tasks(tmp_path):
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in (("rolling", ROLLING), ("choice", CHOICE)):
        (folder / f"{name}.yaml").write_text(task.format(data=data))
    return folder


@pytest.fixture
def run_folder(tmp_path):
    tokenizer = small_tokenizer()
    weights = reader(padded_vocab_size=512, vocab_size=tokenizer.vocab_size, seq_length=64)
    return write_run(tmp_path / "run", weights, tokenizer=tokenizer)


def test_bits_per_byte_of_lm_eval_are_ours(tasks, run_folder, capsys):
    words = ["evaluate", str(run_folder), "--json"]
    assert main([*words, "--tasks", "own_text, own_choice", "--include-path", str(tasks)]) == 0
    theirs = json.loads(capsys.readouterr().out)["tasks"]
    assert 0 <= theirs["own_choice"]["acc"] <= 1
    assert main([*words, "--data", str(tasks.parent / "text.jsonl")]) == 0
    ours = json.loads(capsys.readouterr().out)["scores"]["all"]
    assert theirs["own_text"]["bits_per_byte"] == pytest.approx(ours["text_bits_per_byte"], rel=1e-4)
    assert abs(ours["bits_per_byte"] / ours["text_bits_per_byte"] - 1) > 1e-2, "control: ends of documents count"
    log = (run_folder / "evaluations.jsonl").read_text().splitlines()
    assert [sorted(json.loads(line).keys() & {"tasks", "scores"}) for line in log] == [["tasks"], ["scores"]]


def test_an_unknown_task_and_a_missing_folder_are_refused(tasks, run_folder, capsys):
    words = ["evaluate", str(run_folder), "--tasks"]
    assert main([*words, "own_txt,hellaswagg", "--include-path", str(tasks)]) == 2
    problems = capsys.readouterr().err
    assert "'own_txt' is not a task of lm-eval; did you mean 'own_text'?" in problems
    assert "'hellaswagg' is not a task of lm-eval; did you mean 'hellaswag'?" in problems
    assert main([*words, "own_text", "--include-path", str(tasks / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_task_whose_data_is_not_here_is_refused(run_folder, capsys):
    assert main(["evaluate", str(run_folder), "--tasks", "arc_easy"]) == 2
    assert "lm-eval cannot run arc_easy" in capsys.readouterr().err
