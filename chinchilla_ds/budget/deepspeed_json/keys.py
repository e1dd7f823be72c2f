"""Check the DeepSpeed JSON against the table of keys: known keys, values of the right type, nothing without effect.

DeepSpeed itself ignores unknown keys at the top level.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from chinchilla_ds.budget.deepspeed_json.table import (
    AUTO_IS_DEFAULT,
    DEEPSPEED_VERSION,
    OLD_NAMES,
    OTHER_NAMES,
    OWN_SECTION,
    SECTIONS,
    Key,
    Path,
    Use,
)
from chinchilla_ds.budget.deepspeed_json.values import AUTO, OBJECT, same, show
from chinchilla_ds.errors import did_you_mean
from chinchilla_ds.optimizers import OptimizerSpec, adamw

ADAMW_TYPE = "AdamW"
_SAME_OPTIMIZERS = ("adamw", "adam")
"""DeepSpeed's Adam is AdamW, unless adam_w_mode is false."""


def checked(ds: Mapping[str, Any], /, *, optimizer: OptimizerSpec | None = None) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON under the table's names, without meaningless entries, and the problems of single keys.

    Meaningless entries are null where DeepSpeed treats it as a missing key, and sections that are switched off.

    Args:
        ds: The JSON.
        optimizer: The plan's optimizer; None: AdamW.
    """
    plain, problems = _under_one_name(ds)
    if problem := optimizer_problem(plain, optimizer or adamw()):
        problems.append(problem)
        problems += _section_problems({name: value for name, value in plain.items() if name != "optimizer"}, ())
    else:
        problems += _section_problems(plain, ())
    _drop_meaningless(plain, ())
    section = plain.get("optimizer")
    if isinstance(section, dict) and same(section.get("type"), "Adam"):
        section["type"] = ADAMW_TYPE
    return plain, problems


def find(ds: Mapping[str, Any], path: Path) -> Any:
    """Return the value at `path`, or None if any part of it is missing."""
    value: Any = ds
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def table_key(path: Path, /) -> Key | None:
    """Return the table's entry for a path."""
    return SECTIONS.get(path[:-1], {}).get(path[-1])


def builds_another_optimizer(ds: Mapping[str, Any], optimizer: OptimizerSpec, /) -> bool:
    """Return whether the JSON requests a different optimizer from the plan's."""
    name, planned = find(ds, ("optimizer", "type")), optimizer.deepspeed_type
    if not isinstance(name, str) or name == AUTO:
        return False
    if planned == ADAMW_TYPE:
        return name.lower() not in _SAME_OPTIMIZERS
    return planned is None or not same(name, planned)


def optimizer_problem(ds: Mapping[str, Any], optimizer: OptimizerSpec, /) -> str | None:
    """Return the problem of a JSON that requests another optimizer; its keys are then not checked."""
    if not builds_another_optimizer(ds, optimizer):
        return None
    planned = optimizer.deepspeed_type or optimizer.title
    return (
        f'optimizer.type is {show(find(ds, ("optimizer", "type")))}, but the plan says "{planned}", which the engine '
        'builds by itself; remove the section, or set type to "auto" and leave params out'
    )


def _under_one_name(ds: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a copy with DeepSpeed's alternative names replaced, and a problem for every key given under both names."""
    plain, problems = copy.deepcopy(dict(ds)), []
    for path, name in OTHER_NAMES.items():
        section = find(plain, path[:-1])
        if not isinstance(section, dict) or path[-1] not in section:
            continue
        value = section.pop(path[-1])
        if name in section:
            what = f"{path[-1]} and {name}" if len(path) == 1 else f"{path[-1]} and {name} of {path[0]}"
            problems.append(f"{what} are two names of one {'section' if len(path) == 1 else 'key'}; keep {name}")
        section.setdefault(name, value)
    return plain, problems


def _drop_meaningless(section: dict[str, Any], path: Path) -> None:
    for name, value in list(section.items()):
        key, inner = table_key((*path, name)), (*path, name)
        if key is None:
            continue
        if (value is None and key.nullable) or (isinstance(value, Mapping) and _is_switched_off(key, value)):
            del section[name]
        elif inner in SECTIONS and isinstance(value, dict):
            _drop_meaningless(value, inner)


# ---- problems --------------------------------------------------------------------------------------------------------


def _section_problems(section: Mapping[str, Any], path: Path) -> Iterator[str]:
    for name, value in section.items():
        here = (*path, name)
        key = table_key(here)
        if key is None:
            yield _unknown(here)
        elif here in SECTIONS and isinstance(value, Mapping):
            yield from _section_problems(value, here)
        else:
            yield from _value_problems(here, key, value)


def _value_problems(path: Path, key: Key, value: Any) -> Iterator[str]:
    where = ".".join(path)
    if value is None:
        if not key.nullable:
            yield f"{where} is null; it must be {_wanted(path, key)}, or left out"
    elif key.use is Use.REFUSED:
        yield from _refusal(path, key, value)
    elif value == AUTO and key.kind is not OBJECT:
        if key.use is not Use.PLAN and path[:-1] not in AUTO_IS_DEFAULT:
            yield f'{where} is "auto", but the plan has no value for it; give one, or leave it out'
    elif not key.kind.accepts(value):
        yield f"{where} is {show(value)}; it must be {_wanted(path, key)}"


def _refusal(path: Path, key: Key, value: Any) -> Iterator[str]:
    """Yield why the value is refused, unless it requests what happens anyway."""
    if any(same(value, harmless) for harmless in key.same) or (value == AUTO and path[:-1] in AUTO_IS_DEFAULT):
        return
    if isinstance(value, Mapping) and _is_switched_off(key, value):
        return
    what = f"cannot be {show(value)}" if key.same else "cannot be set"
    yield f"{'.'.join(path)} {what}: {key.why}"


def _is_switched_off(key: Key, section: Mapping[str, Any]) -> bool:
    """Return whether a refused section is empty, or switched off with nothing in it switched on."""
    if key.switch is None:
        return False
    if not section:
        return True
    switches = [section[name] for name in (key.switch, "enabled") if name in section]
    return bool(switches) and all(value in (False, 0, None) for value in switches) and not _switches_on(section)


def _switches_on(section: Mapping[str, Any]) -> bool:
    return bool(section.get("enabled")) or any(
        _switches_on(value) for value in section.values() if isinstance(value, Mapping)
    )


def _wanted(path: Path, key: Key) -> str:
    if path in SECTIONS:
        example = _EXAMPLES.get(path)
        return f"a JSON object, such as {example}" if example else "a JSON object"
    text = "a value" if key.kind.text == "anything" else key.kind.text
    takes_auto = key.use is Use.PLAN or path[:-1] in AUTO_IS_DEFAULT
    return f'{text} or "auto"' if takes_auto else text


_EXAMPLES: Mapping[Path, str] = {
    ("bf16",): '{"enabled": true}',
    ("fp16",): '{"enabled": true}',
    ("optimizer",): '{"type": "AdamW"}',
    ("zero_optimization",): '{"stage": 1}',
    ("zero_optimization", "offload_optimizer"): '{"device": "cpu"}',
    ("zero_optimization", "offload_param"): '{"device": "cpu"}',
}


def _unknown(path: Path) -> str:
    """Return the problem of a key that is not in the table."""
    where, name, section = ".".join(path), path[-1], SECTIONS[path[:-1]]
    if path in OLD_NAMES:
        return f"{where} is deprecated by DeepSpeed; {OLD_NAMES[path]}"
    if path[0] == OWN_SECTION:
        return f"{where} is not a key that {OWN_SECTION} reads{did_you_mean(name, section)}"
    near = did_you_mean(name, section) or _place_of(name)
    return f"{where} is not a key that DeepSpeed {DEEPSPEED_VERSION} reads{near}"


def _place_of(name: str) -> str:
    """Return where DeepSpeed reads a key with this name."""
    places = [
        ".".join(path) or "the top level" for path, keys in SECTIONS.items() if name in keys and path != (OWN_SECTION,)
    ]
    return f" there; it reads one in {' and '.join(places)}" if places and len(places) < _MANY_PLACES else ""


_MANY_PLACES = 3
