"""The DeepSpeed JSON: read it, let it choose the layout, fill its "auto"s from the plan, refuse what contradicts it.

    python -m chinchilla_ds.budget.ds_config ds_configs/     writes the shipped files anew

A key that is missing means the same as "auto": the plan's value. DeepSpeed's words live in the ds_*.py files here and
nowhere else.
"""

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.ds_fields import (
    AUTO,
    OPTIMIZER_TYPE,
    ZERO,
    compared_values,
    current_value,
    flag,
    is_auto,
    named_fields,
    owned_values,
    same,
    suggested_values,
)
from chinchilla_ds.budget.ds_keys import OWN_KEYS, OWN_SECTION, TOP_LEVEL_KEYS, find, key_problems
from chinchilla_ds.config import LayoutConfig, RunConfig
from chinchilla_ds.errors import DsConfigError, did_you_mean
from chinchilla_ds.plan import Offload, Recompute, RunPlan

NEVER_PRINT = 1_000_000_000
"""A steps_per_print that never comes: the progress bar reports, not DeepSpeed."""

_REFUSED = {
    "scheduler": "the plan owns the learning-rate schedule; remove the section and pass --decay and --learning-rate",
    "tensor_parallel": f"DeepSpeed's AutoTP is for other models; use {OWN_SECTION}.tensor_model_parallel_size",
    "sequence_parallel_size": f"DeepSpeed's Ulysses is not used here; use {OWN_SECTION}.sequence_parallel",
    "data_parallel_size": "it follows from the ranks and the layout; remove it",
}

_AIO = {
    "block_size": 1048576,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}
"""DeepSpeed's own defaults, written out because they are what one tunes for a drive (`ds_nvme_tune`)."""

_OPTIMIZER = {"type": OPTIMIZER_TYPE, "params": {"lr": AUTO, "betas": AUTO, "eps": AUTO, "weight_decay": AUTO}}


def load_ds_config(path: Path | str, /) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises:
        DsConfigError: missing or unreadable file, not UTF-8, not JSON (line and column named), doubled keys, no object.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        folder = Path(path).parent
        near = did_you_mean(Path(path).name, (file.name for file in folder.glob("*.json"))) if folder.is_dir() else ""
        raise DsConfigError(f"ds_config {path} cannot be read: {error.strerror}{near}") from None
    except UnicodeDecodeError as error:
        raise DsConfigError(f"ds_config {path} is not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        data = json.loads(text, object_pairs_hook=_refuse_doubled_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DsConfigError(
            f"ds_config {path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except DsConfigError as error:
        raise DsConfigError([f"ds_config {path}: {problem}" for problem in error.problems]) from None
    if not isinstance(data, dict):
        raise DsConfigError(f"ds_config {path} must hold a JSON object, not {data!r:.40}")
    return data


def apply_to_config(config: RunConfig, ds: Mapping[str, Any], *, explicit: frozenset[str] = frozenset()) -> RunConfig:
    """Return `config` with the layout and precision that the JSON names.

    Args:
        config: defaults and flags.
        ds: the JSON; "auto" and missing keys leave the config alone.
        explicit: names of the config fields that a flag has set, such as `zero_stage` or `precision`.

    Raises:
        DsConfigError: unknown keys, values of the wrong kind, and values at odds with a flag, all of them.
    """
    ds, problems = _normalised(ds)
    problems += [*key_problems(ds), *_refusals(ds)]
    layout: dict[str, Any] = {}
    precision = config.precision
    for item in named_fields(ds):
        if isinstance(item, str):
            problems.append(item)
            continue
        current = current_value(config, field=item.field)
        if item.field in explicit and current != item.value:
            problems.append(
                f"{flag(item.field)} is {_show(current)}, but the ds_config's {item.where} means {_show(item.value)}; "
                f'drop the flag, or set {item.where} to "auto" or leave it out'
            )
        elif item.field == "precision":
            precision = item.value
        else:
            layout[item.field] = item.value
    if problems:
        raise DsConfigError(problems)
    return dataclasses.replace(config, layout=dataclasses.replace(config.layout, **layout), precision=precision)


def resolve(ds: Mapping[str, Any], plan: RunPlan) -> dict[str, Any]:
    """Return the JSON that DeepSpeed gets: every "auto" filled from the plan, `chinchilla_ds` removed, the rest as is.

    Raises:
        DsConfigError: unknown keys, sections that the plan owns, and every concrete value that contradicts the plan.
    """
    ds, problems = _normalised(ds)
    problems += [*key_problems(ds), *_refusals(ds)]
    problems += [item for item in named_fields(ds) if isinstance(item, str)]
    problems += [*_auto_problems(ds), *_nvme_problems(ds, plan)]
    problems += [text for where, text in _contradictions(ds, plan) if not _told(problems, where)]
    if problems:
        raise DsConfigError(problems)
    resolved = {key: value for key, value in copy.deepcopy(dict(ds)).items() if key != OWN_SECTION}
    for owned in owned_values(plan, ds=ds):
        _put(resolved, owned.path, owned.value)
    for suggested in suggested_values(plan):
        if find(ds, suggested.path) == AUTO:
            _put(resolved, suggested.path, suggested.value)
    return resolved


def emit(plan: RunPlan, /) -> dict[str, Any]:
    """Return the complete JSON for a plan, with no "auto" left and nothing that is not DeepSpeed's."""
    layout = plan.layout
    offload = {"offload_optimizer": layout.offload_optimizer, "offload_param": layout.offload_param}
    zero = {name: _offload_section(device) for name, device in offload.items() if device is not Offload.NONE}
    ds = _template(stage=layout.zero_stage, zero=zero)
    if Offload.NVME in offload.values():
        ds["aio"] = dict(_AIO)
    if layout.recompute is not Recompute.NONE:
        ds |= {"activation_checkpointing": {}, OWN_SECTION: {"recompute": layout.recompute.value}}
    return resolve(ds, plan)


def emit_for_pretrain(plan: RunPlan, /) -> dict[str, Any]:
    """Return `emit`'s JSON with the section that launchers/pretrain.py reads: what DeepSpeed has no words for."""
    layout, plain = plan.layout, LayoutConfig()
    own = {name: getattr(layout, name) for name in sorted(OWN_KEYS) if getattr(layout, name) != getattr(plain, name)}
    return emit(plan) | ({OWN_SECTION: own} if own else {})


def shipped_configs() -> dict[str, dict[str, Any]]:
    """Return the shipped files by name; "auto" makes them serve any plan."""
    cpu, nvme = (
        {name: _offload_section(device) for name in ("offload_optimizer", "offload_param")}
        for device in (Offload.CPU, Offload.NVME)
    )
    two_by_two = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
    return {
        "zero1": _template(stage=1),
        "zero2": _template(stage=2),
        "zero3": _template(stage=3),
        "zero3_offload": _template(stage=3, zero=cpu),
        "zero3_nvme": _template(stage=3, zero=nvme) | {"aio": dict(_AIO)},
        "zero3_tp2_pp2": _template(stage=3) | {OWN_SECTION: two_by_two},
    }


def write_shipped(folder: Path | str, /) -> list[Path]:
    """Write the shipped files into `folder` and return their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    written = {Path(folder) / f"{name}.json": ds for name, ds in shipped_configs().items()}
    for path, ds in written.items():
        path.write_text(to_json(ds), encoding="utf-8")
    return list(written)


def to_json(ds: Mapping[str, Any], /) -> str:
    """Return the JSON text, as the shipped files have it."""
    return json.dumps(ds, indent=2) + "\n"


def _template(*, stage: int, zero: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "train_batch_size": AUTO,
        "train_micro_batch_size_per_gpu": AUTO,
        "gradient_accumulation_steps": AUTO,
        "gradient_clipping": AUTO,
        "steps_per_print": NEVER_PRINT,
        "bf16": {"enabled": AUTO},
        "fp16": {"enabled": AUTO},
        "optimizer": copy.deepcopy(_OPTIMIZER),
        ZERO: {"stage": stage, "reduce_bucket_size": AUTO, **(zero or {})},
    }


def _offload_section(device: Offload) -> dict[str, Any]:
    nvme = {"nvme_path": "/local_nvme"} if device is Offload.NVME else {}
    return {"device": device.value, **nvme, "pin_memory": True}


def _normalised(ds: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the JSON with DeepSpeed's old name of bf16 replaced, and a problem if both names are there."""
    plain = dict(ds)
    if "bfloat16" not in plain:
        return plain, []
    old = plain.pop("bfloat16")
    if "bf16" in plain:
        return plain, ["bf16 and bfloat16 are two names of one section; keep bf16"]
    return plain | {"bf16": old}, []


def _refusals(ds: Mapping[str, Any]) -> Iterator[str]:
    for key, reason in _REFUSED.items():
        if key in ds:
            yield f"{key} cannot be set: {reason}"


def _auto_problems(ds: Mapping[str, Any]) -> Iterator[str]:
    """Yield top-level "auto"s for which the plan has no value and DeepSpeed no meaning."""
    owned = {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    for key, value in ds.items():
        if value == AUTO and key in TOP_LEVEL_KEYS - owned:
            yield f'{key} is "auto", but the plan has no value for it; give one, or leave it out'


def _nvme_problems(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    for name in ("offload_optimizer", "offload_param"):
        if getattr(plan.layout, name) is Offload.NVME and find(ds, (ZERO, name, "nvme_path")) is None:
            yield f"{ZERO}.{name}.nvme_path is missing; name a folder on the NVMe drive, such as /local_nvme"


def _contradictions(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[tuple[str, str]]:
    """Yield where, and what, the JSON says otherwise than the plan."""
    for owned in (*owned_values(plan, ds=ds), *compared_values(plan, ds=ds)):
        where = ".".join(owned.path)
        given = Recompute.FULL if where == "activation_checkpointing" else find(ds, owned.path)
        if not is_auto(given) and not same(given, owned.value):
            fix = owned.fix.format(_show(given).strip('"'))
            yield where, f"{where} is {_show(given)}, but the plan says {_show(owned.value)}; {fix}"


def _told(problems: list[str], where: str) -> bool:
    """Return whether a problem about this key has been found already."""
    return any(problem.startswith(f"{where} ") for problem in problems)


def _show(value: Any) -> str:
    """Return a value as the JSON would have it."""
    return "unset" if value is None else json.dumps(value, default=str)


def _put(ds: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        ds = ds.setdefault(key, {})
    ds[path[-1]] = value


def _refuse_doubled_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    doubled = sorted({key for key in keys if keys.count(key) > 1})
    if doubled:
        raise DsConfigError([f"the key {key!r} stands twice in one object; keep one" for key in doubled])
    return dict(pairs)


def _refuse_constant(name: str) -> Any:
    raise DsConfigError(f"{name} is not a JSON number")


def main(arguments: list[str] | None = None, /) -> int:
    """Write the shipped files into the folder that is named."""
    folders = sys.argv[1:] if arguments is None else arguments
    if len(folders) != 1:
        sys.stderr.write("usage: python -m chinchilla_ds.budget.ds_config FOLDER\n")
        return 2
    for path in write_shipped(folders[0]):
        sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
