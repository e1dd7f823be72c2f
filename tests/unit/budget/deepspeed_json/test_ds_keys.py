"""The table of keys against the DeepSpeed that is installed, and what is said of keys and values."""

import inspect
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from chinchilla_ds.budget.deepspeed_json.keys import checked, find, table_key
from chinchilla_ds.budget.deepspeed_json.table import (
    AUTO_IS_DEFAULT,
    DEEPSPEED_VERSION,
    OLD_NAMES,
    OTHER_NAMES,
    OWN_SECTION,
    SECTIONS,
    Use,
)

deepspeed = pytest.importorskip("deepspeed")
same_version = pytest.mark.skipif(
    deepspeed.__version__ != DEEPSPEED_VERSION, reason=f"the table was read from DeepSpeed {DEEPSPEED_VERSION}"
)


def problems_of(ds: dict[str, Any]) -> list[str]:
    return checked(ds)[1]


# ---- the table against DeepSpeed -------------------------------------------------------------------------------------


class Recorder(dict[str, Any]):
    """A section of a ds_config that remembers which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> "Recorder":
        other = Recorder(self)
        other.asked = self.asked
        return other


def keys_asked_for(path: tuple[str, ...] = (), **values: Any) -> set[str]:
    """Return the keys that DeepSpeed asks for in a section, which holds `values`, or at the top level."""
    from deepspeed.runtime.config import DeepSpeedConfig

    recorder = Recorder(values)
    section: dict[str, Any] = recorder
    for name in reversed(path):
        section = {name: section}
    DeepSpeedConfig(section if not path else section | {"train_batch_size": 1})
    return recorder.asked


def models() -> dict[tuple[str, ...], Any]:
    """Return the sections that DeepSpeed reads by a pydantic model, and the sections within them."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.monitor.config import DeepSpeedMonitorConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    found: dict[tuple[str, ...], Any] = {
        ("bf16",): DeepSpeedBF16Config,
        ("comms_logger",): CommsLoggerConfig,
        ("fp16",): DeepSpeedFP16Config,
        ("timers", "throughput"): DeepSpeedThroughputTimerConfig,
        ("zero_optimization",): DeepSpeedZeroConfig,
    }
    found |= {(name,): part for name, part in inner_models(DeepSpeedMonitorConfig)}
    for path, model in list(found.items()):
        found |= {(*path, name): part for name, part in inner_models(model)}
    return found


def inner_models(model: Any) -> Iterator[tuple[str, Any]]:
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    for name, field in model.model_fields.items():
        for part in (field.annotation, *typing.get_args(field.annotation)):
            if inspect.isclass(part) and issubclass(part, DeepSpeedConfigModel):
                yield field.alias or name, part


def model_keys(model: Any) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def recorded() -> dict[tuple[str, ...], set[str]]:
    """Return the keys of the sections that DeepSpeed reads from plain dictionaries."""
    return {
        ("activation_checkpointing",): keys_asked_for(("activation_checkpointing",)),
        ("aio",): keys_asked_for(("aio",)),
        ("checkpoint",): keys_asked_for(("checkpoint",)),
        ("data_types",): keys_asked_for(("data_types",)),
        ("flops_profiler",): keys_asked_for(("flops_profiler",)),
        ("optimizer",): keys_asked_for(("optimizer",), type="Adam"),
        ("optimizer", "params"): parameters_of_adamw(),
        ("timers",): keys_asked_for(("timers",), throughput={}),
    }


def parameters_of_adamw() -> set[str]:
    """Return what DeepSpeed hands to one of its AdamWs, or to torch's, or takes out before."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.runtime.config import ADAM_W_MODE, MAX_GRAD_NORM, TORCH_ADAM_PARAM

    kinds = (DeepSpeedCPUAdam, FusedAdam, torch.optim.AdamW)
    names = {name for kind in kinds for name in inspect.signature(kind.__init__).parameters}
    # adamw_mode is what DeepSpeed makes of adam_w_mode, and fails on where it is given
    return names - {"self", "params", "model_params", "adamw_mode"} | {ADAM_W_MODE, MAX_GRAD_NORM, TORCH_ADAM_PARAM}


@same_version
def test_top_level_keys_are_those_that_deepspeed_asks_for() -> None:
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS

    # read elsewhere, in deepspeed.initialize; curriculum_learning is asked for in data_efficiency too
    elsewhere = {"sequence_parallel_size", "data_parallel_size"}
    asked = keys_asked_for(train_batch_size=1) | set(_REMOVED_TOP_LEVEL_CONFIG_KEYS) | elsewhere
    assert asked == set(SECTIONS[()]) - {OWN_SECTION} | {"bfloat16"}


def differences() -> dict[tuple[str, ...], set[str]]:
    """Return, by section, the keys that DeepSpeed reads and the table lacks, or the other way round."""
    from deepspeed.runtime.config import _REMOVED_ZERO_CONFIG_KEYS

    known = {path: model_keys(model) for path, model in models().items()} | recorded()
    known["zero_optimization",] |= set(_REMOVED_ZERO_CONFIG_KEYS)
    differ = {path: set(SECTIONS[path]) for path in SECTIONS if path not in known and path not in ((), (OWN_SECTION,))}
    for path, keys in known.items():
        old = {old_path[-1] for old_path in OLD_NAMES if old_path[:-1] == path}
        if path in SECTIONS:
            differ[path] = (keys - old) ^ set(SECTIONS[path])
        elif (key := table_key(path)) is not None and key.use is not Use.REFUSED:
            differ[path] = keys
    return {path: keys for path, keys in differ.items() if keys}


@same_version
def test_every_section_has_the_keys_that_deepspeed_reads() -> None:
    assert differences() == {}


@same_version
def test_control_a_new_key_of_deepspeed_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime import config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    monkeypatch.setitem(fields, "shiny", fields["reduce_scatter"])
    monkeypatch.setitem(fields, "shiny_section", fields["zenflow"])
    read = config.get_timers_config
    monkeypatch.setattr(config, "get_timers_config", lambda ds: (ds.get("timers", {}).get("wall_clock"), read(ds))[1])
    assert differences() == {
        ("zero_optimization",): {"shiny", "shiny_section"},
        ("timers",): {"wall_clock"},
    }


@same_version
def test_keys_of_the_top_level_that_hold_sections_are_looked_into_or_refused() -> None:
    for name, key in SECTIONS[()].items():
        if (name,) not in SECTIONS and key.use is not Use.REFUSED:
            assert not key.kind.accepts({}), f"{name} takes any object"


@same_version
def test_second_names_are_those_under_which_deepspeed_reads_a_key() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    aliases = {name: field.alias for name, field in DeepSpeedZeroConfig.model_fields.items() if field.alias}
    assert {path[-1]: name for path, name in OTHER_NAMES.items() if path[0] == "zero_optimization"} == aliases
    assert DeepSpeedZeroConfig.model_config["populate_by_name"]


@same_version
def test_deprecated_names_are_those_of_deepspeed() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields.items()
    deprecated = {name for name, field in fields if (field.json_schema_extra or {}).get("deprecated")}
    assert {path[-1] for path in OLD_NAMES if path[0] == "zero_optimization"} == deprecated


@same_version
def test_auto_is_a_default_where_deepspeed_drops_it() -> None:
    assert {path for path in models() if path in SECTIONS} | {("optimizer", "params")} == AUTO_IS_DEFAULT


@same_version
def test_null_is_accepted_where_it_is_deepspeeds_default() -> None:
    for path, model in models().items():
        for name, field in model.model_fields.items():
            key = SECTIONS.get(path, {}).get(field.alias or name)
            if key is not None:
                takes_none = type(None) in typing.get_args(field.annotation)
                assert key.nullable == takes_none, (path, name)


# ---- every key -------------------------------------------------------------------------------------------------------


def nested(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value  # type: ignore[no-any-return]


ALL_KEYS = {(*path, name): key for path, keys in SECTIONS.items() for name, key in keys.items()}
REFUSED = {path: key for path, key in ALL_KEYS.items() if key.use is Use.REFUSED}


@pytest.mark.parametrize("path", REFUSED, ids=".".join)
def test_what_is_refused_is_refused_once_with_a_way_out(path: tuple[str, ...]) -> None:
    for value in ({"enabled": True}, True, 2, 0.5, "x", [1]):
        if not any(value == harmless and type(value) is type(harmless) for harmless in REFUSED[path].same):
            [problem] = problems_of(nested(path, value))
            assert problem.startswith(f"{'.'.join(path)} cannot be ")
            assert any(word in problem for word in ("remove", "use ", "see ")), problem


@pytest.mark.parametrize("path", [path for path, key in REFUSED.items() if key.same or key.switch], ids=".".join)
def test_what_happens_anyway_may_be_said(path: tuple[str, ...]) -> None:
    key = REFUSED[path]
    harmless = [*key.same, *([{}, {key.switch: False}, {key.switch: 0, "x": 1}] if key.switch else [])]
    for value in harmless:
        assert problems_of(nested(path, value)) == []


@pytest.mark.parametrize("section", ["autotuning", "data_efficiency", "hybrid_engine", "torch_autocast"])
def test_sections_that_are_switched_off_are_left_out(section: str) -> None:
    off = {"enabled": False, "data_sampling": {"enabled": False, "curriculum_learning": {"num_epochs": 3}}}
    assert checked({section: off}) == ({}, [])
    off["data_sampling"]["curriculum_learning"]["enabled"] = True  # type: ignore[index]
    assert len(problems_of({section: off})) == 1


@pytest.mark.parametrize("path", [path for path in ALL_KEYS if path in SECTIONS], ids=".".join)
def test_sections_must_be_objects(path: tuple[str, ...]) -> None:
    for value in (True, 1, "auto", "cpu", [], [{}]):
        [problem] = problems_of(nested(path, value))
        assert problem.startswith(f"{'.'.join(path)} is ")
        assert "must be a JSON object" in problem


@pytest.mark.parametrize("path", [path for path, key in ALL_KEYS.items() if not key.nullable], ids=".".join)
def test_null_is_refused_where_deepspeed_does_not_know_it(path: tuple[str, ...]) -> None:
    [problem] = problems_of(nested(path, None))
    assert problem.startswith(f"{'.'.join(path)} is null; it must be ")


@pytest.mark.parametrize("path", [path for path, key in ALL_KEYS.items() if key.nullable], ids=".".join)
def test_null_is_dropped_where_deepspeed_means_nothing_by_it(path: tuple[str, ...]) -> None:
    plain, problems = checked(nested(path, None))
    assert (find(plain, path[:-1]), problems) == ({}, [])
    assert path[-1] not in (find(plain, path[:-1]) or {})


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ds", "expected"),
    [
        ({"zero_optimisation": {}}, "zero_optimisation is not a key that DeepSpeed 0.19.8 reads; did you mean 'zero_o"),
        ({"zero_optimization": {"stag": 3}}, "zero_optimization.stag is not a key"),
        ({"zero_optimization": {"cpu_offload": True}}, "cpu_offload is deprecated by DeepSpeed; use offload_optimizer"),
        ({"zero_optimization": True}, 'zero_optimization is true; it must be a JSON object, such as {"stage": 1}'),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, "did you mean 'device'?"),
        ({"zero_optimization": {"gradient_clipping": 1.0}}, "reads there; it reads one in the top level"),
        ({"overlap_comm": True}, "reads there; it reads one in zero_optimization"),
        ({"loss_scale": 0}, "reads there; it reads one in fp16"),
        ({"allgather_size": 5e8}, "deprecated by DeepSpeed; use zero_optimization.allgather_bucket_size"),
        ({"optimizer": {"params": {"max_grad_norm": 1.0}}}, "optimizer.params.max_grad_norm cannot be set"),
        ({"optimizer": {"params": {"momentum": 0.9}}}, "optimizer.params.momentum is not a key"),
        (
            {OWN_SECTION: {"tensor_model_parallel": 2}},
            "that chinchilla_ds reads; did you mean 'tensor_model_parallel_size'",
        ),
        ({"fp16": {"loss_scale": "dynamic"}}, 'fp16.loss_scale is "dynamic"; it must be a number of at least 0 or "a'),
        ({"fp16": {"loss_scale_window": 0}}, "fp16.loss_scale_window is 0; it must be a whole number of at least 1"),
        ({"zero_optimization": {"reduce_bucket_size": 0.5}}, "must be a whole number of at least 1"),
        ({"aio": {"block_size": "auto"}}, 'aio.block_size is "auto", but the plan has no value for it'),
        ({"optimizer": {"params": {"betas": "0.9"}}}, 'optimizer.params.betas is "0.9"; it must be a list of two nu'),
        ({"train_batch_size": [16]}, "train_batch_size is [16]; it must be a whole number of at least 1"),
        ({"amp": {"enabled": "auto"}}, "amp cannot be set: DeepSpeed 0.19.8 no longer has it"),
    ],
)
def test_problems_name_key_value_and_way_out(ds: dict[str, Any], expected: str) -> None:
    [problem] = problems_of(ds)
    assert expected in problem


@pytest.mark.parametrize("name", ["Muon", "Lamb", "OneBitLamb", "OneBitAdam", "ZeroOneAdam", "Lion", "SGD"])
def test_another_optimizer_is_one_problem_whatever_its_parameters(name: str) -> None:
    params = {"lr": 0.02, "momentum": 0.95, "muon_lr": 0.1, "freeze_step": 10, "cuda_aware": False, "betas": "x"}
    [problem] = problems_of({"optimizer": {"type": name, "params": params}})
    assert problem.startswith(f'optimizer.type is "{name}", but the plan says "AdamW"')


def test_deepspeeds_adam_is_adamw() -> None:
    assert checked({"optimizer": {"type": "Adam"}}) == ({"optimizer": {"type": "AdamW"}}, [])
    [problem] = problems_of({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}})
    assert problem.startswith("optimizer.params.adam_w_mode cannot be false")


def test_second_names_are_read_and_both_at_once_are_refused() -> None:
    given = {"zero_optimization": {"stage": 3, "max_live_parameters": 1e9, "prefetch_bucket_size": 1000}}
    wanted = {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 1e9, "stage3_prefetch_bucket_size": 1000}}
    assert checked(given) == (wanted, [])
    both = {"zero_optimization": {"max_live_parameters": 1, "stage3_max_live_parameters": 2}}
    assert problems_of(both) == [
        "max_live_parameters and stage3_max_live_parameters of zero_optimization are two names of one key; keep "
        "stage3_max_live_parameters"
    ]


def test_find() -> None:
    ds = {"a": {"b": 1}, "c": 2}
    assert (find(ds, ("a", "b")), find(ds, ("a", "x")), find(ds, ("c", "d"))) == (1, None, None)
