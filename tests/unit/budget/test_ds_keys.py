"""Our literal lists of keys against the DeepSpeed that is installed."""

from collections.abc import Iterator
from typing import Any

import pytest

from chinchilla_ds.budget.ds_keys import (
    DEEPSPEED_VERSION,
    DEPRECATED_ZERO_KEYS,
    OWN_SECTION,
    SECTION_KEYS,
    TOP_LEVEL_KEYS,
    ZERO_KEYS,
    find,
    key_problems,
)

deepspeed = pytest.importorskip("deepspeed")
same_version = pytest.mark.skipif(
    deepspeed.__version__ != DEEPSPEED_VERSION, reason=f"the lists were read from DeepSpeed {DEEPSPEED_VERSION}"
)


class Recorder(dict[str, Any]):
    """A ds_config that remembers which of its keys were asked for."""

    asked: set[str]

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> "Recorder":
        other = Recorder(self)
        other.asked = self.asked
        return other


def model_keys(model: type) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


@same_version
def test_top_level_keys_are_those_that_deepspeed_asks_for() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS, DeepSpeedConfig

    recorder = Recorder(train_batch_size=1)
    recorder.asked = set()
    DeepSpeedConfig(recorder)
    # read elsewhere: deepspeed.initialize (the sizes, tensor_parallel) and comm.config (comms_logger)
    elsewhere = {"sequence_parallel_size", "data_parallel_size"}
    inside_data_efficiency = {"curriculum_learning"}
    asked = recorder.asked - set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) - inside_data_efficiency
    assert asked | elsewhere == TOP_LEVEL_KEYS


@same_version
def test_zero_keys_are_those_of_deepspeeds_model() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert model_keys(DeepSpeedZeroConfig) == ZERO_KEYS | set(DEPRECATED_ZERO_KEYS)


def section_models() -> Iterator[tuple[tuple[str, ...], type]]:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    yield ("bf16",), DeepSpeedBF16Config
    yield ("fp16",), DeepSpeedFP16Config
    yield ("zero_optimization", "offload_param"), DeepSpeedZeroOffloadParamConfig
    yield ("zero_optimization", "offload_optimizer"), DeepSpeedZeroOffloadOptimizerConfig


@same_version
def test_section_keys_are_those_of_deepspeeds_models() -> None:
    for path, model in section_models():
        assert SECTION_KEYS[path] == model_keys(model), path


@same_version
def test_plain_sections_are_those_of_deepspeeds_defaults() -> None:
    from deepspeed.runtime.activation_checkpointing.config import ACT_CHKPT_DEFAULT
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    assert SECTION_KEYS[("activation_checkpointing",)] == set(ACT_CHKPT_DEFAULT)
    assert SECTION_KEYS[("aio",)] == set(AIO_DEFAULT_DICT)


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation is not a key that DeepSpeed 0.19.8 reads; did you mean 'zero_o"),
        ({"zero_optimization": {"stag": 3}}, "zero_optimization.stag is not a key"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload is deprecated by DeepSpeed; use offload_optimizer"),
        ({"zero_optimization": True}, "zero_optimization must be a JSON object, not True"),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, "did you mean 'device'?"),
        ({"optimizer": {"params": {"max_grad_norm": 1.0}}}, "optimizer.params.max_grad_norm is not a key"),
        (
            {OWN_SECTION: {"tensor_model_parallel": 2}},
            "that chinchilla_ds reads; did you mean 'tensor_model_parallel_size'",
        ),
    ],
)
def test_unknown_keys_are_named(ds: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in key_problems(ds))


def test_keys_of_other_sections_are_not_ours_to_judge() -> None:
    assert not list(key_problems({"tensorboard": {"whatever": 1}, "comms_logger": {"verbose": True}}))


def test_find() -> None:
    ds = {"a": {"b": 1}, "c": 2}
    assert (find(ds, ("a", "b")), find(ds, ("a", "x")), find(ds, ("c", "d"))) == (1, None, None)
