"""AutoTokenizer on an export against the tokenizer of the training text."""

import functools
import json
import random

import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

from chinchilla_ds.data.tokenizing.sentencepiece_json import to_tokenizers
from chinchilla_ds.data.tokenizing.tokenizer import HuggingFaceTokenizer, ModelType, Tokenizer, train_tokenizer
from chinchilla_ds.errors import DataError
from chinchilla_ds.exporting.tokenizer_files import find_tokenizer, write_tokenizer
from tests.unit.data.conftest import make_documents
from tests.unit.data.tokenizing.test_tokenizer import fuzzed_texts

PARTS = [
    " ", "  ", "\n", "\t", "\r\n", "a", "aa", "ab", "ba", "x = ", "def f(self):\n    return ", "the ", "0", "12", "__",
    "--", "####", "'''", "...", "世界", "你好\uff0c", "机器学习", "🙂", "👩‍👩‍👧", "é", "e\u0301", "العرب",
    "\u00a0", "\u200b", "ﬁ", "<0x0A>", "<|endoftext|>", "<unk>", "\u2581", "\u2585",
]  # fmt: skip
CHINESE = "世界你好\uff0c机器学习。今天天气很好。"


def texts(number):
    """Runs and mixtures of parts, some of them pieces, and of code points of all planes."""
    generator = random.Random(11)
    mixed = [
        "".join(
            generator.choice(PARTS) * generator.choice([1, 1, 1, 2, 3, 5, 9]) for _ in range(generator.randint(1, 25))
        )
        for _ in range(number)
    ]
    return [*mixed, *fuzzed_texts(number), *make_documents(number=20), "", " ", "\n\n\n  x"]


@functools.cache
def trained(model_type):
    documents = [
        *make_documents(number=150),
        "def f(self):\n    return x  # ####\n" * 40,
        CHINESE * 60,
    ]
    return train_tokenizer([text.encode() for text in documents], vocab_size=900, model_type=model_type)


def written(tokenizer, tmp_path, name="tokenizer.model"):
    tokenizer.save(tmp_path / name)
    (tmp_path / "out").mkdir()
    write_tokenizer(Tokenizer.load(tmp_path / name), folder=tmp_path / "out", seq_length=64)
    return AutoTokenizer.from_pretrained(tmp_path / "out")


def test_byte_pair_ids_are_the_same(tmp_path):
    ours = trained(ModelType.BPE)
    theirs = written(ours, tmp_path)
    different = [text for text in texts(400) if theirs(text)["input_ids"] != ours.encode(text)]
    assert different == []
    assert all(theirs.decode(ours.encode(text)) == ours.decode(ours.encode(text)) for text in texts(100))
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == ("<|endoftext|>", ours.eod_id, ours.vocab_size)
    assert theirs.model_max_length == 64


def test_a_unigram_model_is_refused_since_its_ties_fall_otherwise(tmp_path):
    with pytest.raises(DataError, match="is a unigram model, and only byte-pair models have an exact counterpart"):
        written(trained(ModelType.UNIGRAM), tmp_path)


def test_the_converter_of_transformers_would_not_do(tmp_path):
    ours = trained(ModelType.BPE)
    theirs = to_tokenizers(ours._model, place="model")
    theirs.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Strip(left=False, right=True), tokenizers.normalizers.Replace(" ", "\u2581")]
    )
    assert any(theirs.encode(text, add_special_tokens=False).ids != ours.encode(text) for text in texts(100))


def test_hugging_face_tokenizer_is_copied(tmp_path):
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|end_of_text|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(make_documents(number=50), trainer)
    ours = HuggingFaceTokenizer(made.to_str().encode())
    theirs = written(ours, tmp_path, "tokenizer")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == made.to_str().encode()
    plain = [text for text in texts(100) if "<|" not in text]
    assert all(theirs(text)["input_ids"] == ours.encode(text) for text in plain)
    assert theirs.eos_token == "<|end_of_text|>"
    assert find_tokenizer(tmp_path / "out").sha256 == ours.sha256


def test_model_that_cannot_be_converted_is_refused(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_documents(number=50)), model_prefix=str(tmp_path / "tokenizer"), vocab_size=400,
        hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        user_defined_symbols=["<sep>"], minloglevel=2,
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    model = Tokenizer.load(tmp_path / "tokenizer.model")
    with pytest.raises(DataError, match="user-defined pieces"):
        write_tokenizer(model, folder=tmp_path / "out", seq_length=64)


def test_added_tokens_make_the_folder_the_tokenizer(tmp_path):
    written(trained(ModelType.BPE), tmp_path)
    folder = tmp_path / "out"
    assert find_tokenizer(folder).saved_as == "tokenizer.model"
    more = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    more.add_special_tokens(["<|user|>"])
    more.save(str(folder / "tokenizer.json"))
    assert find_tokenizer(folder).saved_as == "tokenizer"
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"
