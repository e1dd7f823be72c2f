"""Folders of others: what came with a tokenizer comes back out, and texts begin with BOS where its own do."""

import json
import shutil

import pytest
import tokenizers
import torch
from tokenizers import processors
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chinchilla_ds.checkpoint.reader import CheckpointReader
from chinchilla_ds.cli.main import main
from chinchilla_ds.data.preparing.pipeline import prepare_recipe
from chinchilla_ds.data.preparing.recipe import Recipe, SourceRecipe, rules_of
from chinchilla_ds.data.tokenizing.sentencepiece_json import to_tokenizers
from chinchilla_ds.data.tokenizing.tokenizer import HuggingFaceTokenizer, Tokenizer
from chinchilla_ds.evaluation.documents import file_documents, find_files, held_out_documents
from chinchilla_ds.exporting.card import TrainingFacts
from chinchilla_ds.exporting.read import import_folder
from chinchilla_ds.exporting.write import export_checkpoint
from chinchilla_ds.inference.model import TrainedModel
from chinchilla_ds.run_plan import Precision
from tests.unit.data.tokenizing.test_sentencepiece_json import train

TEMPLATE = "{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
GENERATION = {"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.6, "top_p": 0.9}
TEXT = "def f(x):\n        return x\n"


def llama_tokenizer(**more):
    """A tokenizer of transformers as Llama has it: a SentencePiece model, BOS by template, an added token, a chat."""
    made = to_tokenizers(train(allow_whitespace_only_pieces=True), place="model")
    made.add_special_tokens(["<|user|>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=TEMPLATE, **names, **more)


def write_llama(folder, *, vocab_size):
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocab_size, max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture
def llama(tmp_path):
    folder = tmp_path / "llama"
    tokenizer = llama_tokenizer()
    write_llama(folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # a tiktoken file
    (folder / "special_tokens_map.json").write_text('{"bos_token": "<s>",  "eos_token": "</s>"}')
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=1))
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text(TEMPLATE)
    (folder / "modeling_llama.py").write_text("raise SystemExit('run')")
    return folder


CAME = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json", "additional_chat_templates/tools.jinja",
)  # fmt: skip


def imported(folder, tmp_path, name="run"):
    import_folder(folder, out=tmp_path / name)
    return TrainedModel.open(tmp_path / name)


def export(model, out):
    facts = TrainingFacts(consumed_tokens=0, flops_spent=0.0)
    export_checkpoint(model.reader, out=out, dtype=Precision.FP32, facts=facts)


def test_all_that_came_with_a_tokenizer_comes_back_out(llama, tmp_path):
    model = imported(llama, tmp_path)
    kept = model.reader.tokenizer_path
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()) == sorted(CAME)
    export(model, tmp_path / "out")
    for name in CAME:
        assert (tmp_path / "out" / name).read_bytes() == (llama / name).read_bytes(), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [2, 3])
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", llama))
    assert ours(TEXT)["input_ids"] == theirs(TEXT)["input_ids"]
    assert ours(TEXT)["input_ids"][0] == 1, "control: theirs adds a BOS"
    assert ours.chat_template == theirs.chat_template is not None


def test_a_second_import_of_an_export_is_the_same(llama, tmp_path):
    model = imported(llama, tmp_path)
    export(model, tmp_path / "out")
    again = imported(tmp_path / "out", tmp_path, "again")
    assert again.tokenizer.sha256 == model.tokenizer.sha256
    assert again.tokenizer.files.contents == model.tokenizer.files.contents
    assert all(torch.equal(again.reader.read(name), model.reader.read(name)) for name in model.reader.names())


def test_prompts_begin_as_transformers_begins_them(llama, tmp_path):
    model = imported(llama, tmp_path)
    assert model.tokenizer.bos_id == 1
    assert model.encode_prompt(TEXT) == AutoTokenizer.from_pretrained(llama)(TEXT)["input_ids"]
    assert model.encode_prompt("") == [1]


@pytest.fixture
def prepared(llama, tmp_path):
    """Text that is prepared with the tokenizer of an import, to train on from it."""
    model = imported(llama, tmp_path)
    text = tmp_path / "text.jsonl"
    lines = [f"line {number} of the text\n    indented {number * 7}\n" for number in range(60)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    recipe = Recipe(
        sources=(SourceRecipe(name="text", paths=(str(text),)),),
        held_out_fraction=0.3,
        tokenizer=model.reader.tokenizer_path,
        cleaning=rules_of([]),
        dedup=False,
        minhash=None,
    )
    return model, prepare_recipe(recipe, folder=tmp_path / "prepared", num_workers=1), text


def test_training_documents_begin_and_end_as_the_tokenizer_says(prepared):
    from chinchilla_ds.data.feeding.indexed import read_documents

    model, corpus, _ = prepared
    documents = [tokens.tolist() for tokens in read_documents(corpus.train_prefix)]
    assert len(documents) > 20
    assert all(tokens[0] == 1 and tokens[-1] == 2 and 1 not in tokens[1:] for tokens in documents)
    assert corpus.tokenizer_sha256 == model.reader.state.tokenizer_sha256, "a run can begin from the import"
    kept = Tokenizer.load(corpus.tokenizer_path)
    assert kept.files.contents == model.tokenizer.files.contents, "its checkpoints will hold all of it"


def test_evaluation_reads_a_document_as_training_did_and_does_not_score_its_bos(prepared):
    model, corpus, text = prepared
    held_out = [document.tokens for document in held_out_documents(corpus, tokenizer=model.tokenizer)]
    sources = find_files({"text": [str(text)]}, text_field="text")
    files = [document.tokens for document in file_documents(sources, tokenizer=model.tokenizer)]
    assert all(1 not in tokens and tokens[-1] == 2 for tokens in (*held_out, *files))
    assert {tuple(tokens) for tokens in held_out} <= {tuple(tokens) for tokens in files}


def test_a_corpus_that_an_early_version_prepared_has_no_bos(llama):
    """It noted two settings beside tokenizer.json, and never put a token in front of text."""
    definition = (llama / "tokenizer.json").read_bytes()
    early = llama.parent / "early"
    early.mkdir()
    (early / "tokenizer.json").write_bytes(definition)
    (early / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}, indent=2) + "\n"
    )
    loaded = Tokenizer.load(early)
    assert loaded.bos_id is None
    assert loaded.sha256 == loaded.text_sha256
    assert HuggingFaceTokenizer(definition).bos_id == 1, "control: the definition alone has one"
    assert HuggingFaceTokenizer(definition).sha256 != loaded.sha256


def sentencepiece_folder(folder, **config):
    """A folder without tokenizer.json, as Llama 2 was first published."""
    write_llama(folder, vocab_size=600)
    (folder / "tokenizer.model").write_bytes(train())
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}, 1),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, None),
        ({"tokenizer_class": "Other", "add_bos_token": True, "bos_token": {"content": "<s>"}}, 1),
        ({"tokenizer_class": "Other"}, None),
    ],
)
def test_a_sentencepiece_model_with_settings(config, bos, tmp_path):
    sentencepiece_folder(tmp_path / "llama", **config)
    model = imported(tmp_path / "llama", tmp_path)
    assert model.tokenizer.bos_id == bos
    plain = model.tokenizer.encode(TEXT)
    assert model.encode_prompt(TEXT) == ([] if bos is None else [bos]) + plain
    export(model, tmp_path / "out")
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "llama" / name).read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").exists(), "it came without"


def test_a_sentencepiece_model_alone_gets_a_tokenizer_json_and_keeps_its_settings_of_generation(tmp_path):
    sentencepiece_folder(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer_config.json").unlink()
    model = imported(tmp_path / "llama", tmp_path)
    assert model.tokenizer.bos_id is None
    export(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == GENERATION
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs(TEXT)["input_ids"] == model.tokenizer.encode(TEXT)
    export_again = imported(tmp_path / "out", tmp_path, "again")
    assert export_again.tokenizer.sha256 == model.tokenizer.sha256
    assert CheckpointReader.open(tmp_path / "again").state.tokenizer_sha256 == model.tokenizer.sha256


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<s> <|user|> $A", "adds <s> <|user|> to texts"),
        ("<s> $A <|user|>", "adds <s> <|user|> to texts"),
    ],
)
def test_templates_that_a_document_cannot_follow_are_refused(template, text, llama, tmp_path, capsys):
    made = tokenizers.Tokenizer.from_file(str(llama / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("<|user|>", 600)])
    made.save(str(llama / "tokenizer.json"))
    assert main(["import", str(llama), "--out", str(tmp_path / "run")]) == 2
    assert text in capsys.readouterr().err


def test_end_of_text_by_template_stands_once(llama):
    made = tokenizers.Tokenizer.from_file(str(llama / "tokenizer.json"))
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    loaded = HuggingFaceTokenizer(made.to_str().encode(), eod_token="</s>")
    [ids] = loaded.encode_documents([TEXT.encode()], num_threads=1)
    assert ids.tolist() == made.encode(TEXT).ids == [1, *loaded.encode(TEXT), 2]


def test_eos_of_the_special_tokens_map(llama):
    (llama / "tokenizer_config.json").unlink()
    assert Tokenizer.load(llama).eod_id == 2
    (llama / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|user|>"}}')
    assert Tokenizer.load(llama).eod_id == 600


def test_nothing_but_named_files_is_kept(llama, tmp_path):
    shutil.copyfile(llama / "model.safetensors", llama / "other.safetensors")
    (llama / "notes.txt").write_text("notes")
    kept = imported(llama, tmp_path).reader.folder
    names = {path.name for path in kept.rglob("*") if path.is_file()}
    assert not names & {"other.safetensors", "model.safetensors", "notes.txt", "modeling_llama.py"}
