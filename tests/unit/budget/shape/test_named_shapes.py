import pytest

from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.budget.shape.published import NAMED_SHAPES, decoder_of, named_shape
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.run_plan import DecoderSwitches

UNTIED, TIED = DecoderSwitches(), DecoderSwitches(tied_embeddings=True)

# Parameters of the released checkpoints (LlamaForCausalLM.num_parameters of their config.json), and of the papers.
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.3-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
}


@pytest.mark.parametrize(("name", "num_params"), PUBLISHED.items())
def test_parameters_are_those_of_the_released_models(name: str, num_params: int) -> None:
    shape = decoder_of(named_shape(name), seq_length=2048, vocab_size=None, switches=UNTIED)
    assert count_parameters(shape=shape).total == num_params


@pytest.mark.parametrize(("name", "billions"), [("gpt-3-175b", 175), ("llama-3-405b", 405)])
def test_others_are_as_large_as_their_names(name: str, billions: int) -> None:
    shape = decoder_of(named_shape(name), seq_length=2048, vocab_size=None, switches=TIED)
    assert count_parameters(shape=shape).total == pytest.approx(billions * 1e9, rel=0.01)


def test_chinchilla_without_its_relative_positions() -> None:
    # Table A9's formula gives 70.065e9, of which 80 layers x 8192 x 8192 project relative positions, and 32000 x 8192
    # is the one, tied table.
    shape = decoder_of(named_shape("chinchilla-70b"), seq_length=2048, vocab_size=None, switches=TIED)
    assert count_parameters(shape=shape).total == pytest.approx(70.065e9 - 80 * 8192**2, rel=0.005)


def test_a_vocabulary_of_one_s_own() -> None:
    shape = decoder_of(named_shape("LLAMA-3-8B"), seq_length=512, vocab_size=1000, switches=UNTIED)
    assert (shape.vocab_size, shape.padded_vocab_size, shape.seq_length) == (1000, 1024, 512)


def test_an_unknown_shape_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'llama-3-8b'"):
        named_shape("lama-3-8b")


def test_heads_fit_the_hidden_size() -> None:
    for name, named in NAMED_SHAPES.items():
        assert named.num_attention_heads % named.num_query_groups == 0
        if not name.startswith("qwen3"):  # whose heads of 128 are wider or narrower together than the hidden size
            assert named.num_attention_heads * named.kv_channels == named.hidden_size


def test_what_a_published_model_switches_on_stays_on() -> None:
    qwen = decoder_of(named_shape("qwen3-0.6b"), seq_length=2048, vocab_size=None, switches=UNTIED)
    assert (qwen.qk_norm, qwen.tied_embeddings) == (True, True)
    llama = decoder_of(named_shape("llama-3-8b"), seq_length=2048, vocab_size=None, switches=TIED)
    assert (llama.qk_norm, llama.tied_embeddings) == (False, True)


@pytest.mark.parametrize("name", ["olmo-2-7b", "olmo-3-7b", "smollm3-3b", "gemma-2-2b"])
def test_models_that_are_another_decoder_are_not_listed(name: str) -> None:
    with pytest.raises(ConfigError, match="must be one of"):
        named_shape(name)
