"""The DeepSpeed JSON: read it, let it choose the layout, fill its "auto"s from the plan, refuse what contradicts it.

    python -m chinchilla_ds.budget.deepspeed_json.resolve ds_configs/     rewrites the shipped files

A key that is missing means the same as "auto": the plan's value. DeepSpeed's names are used only in the modules of
this package.
"""

import copy
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chinchilla_ds.budget.deepspeed_json.conflicts import own_conflicts, plan_conflicts
from chinchilla_ds.budget.deepspeed_json.fields import (
    ZERO,
    compared_values,
    current_value,
    is_of_run,
    named_fields,
    owned_values,
    suggested_values,
)
from chinchilla_ds.budget.deepspeed_json.keys import checked, find, optimizer_problem, table_key
from chinchilla_ds.budget.deepspeed_json.table import OWN_SECTION, SECTIONS
from chinchilla_ds.budget.deepspeed_json.values import AUTO, is_auto, is_number, same, show
from chinchilla_ds.config import LayoutConfig, RunConfig, field_path
from chinchilla_ds.errors import ConfigError, DsConfigError, did_you_mean
from chinchilla_ds.optimizers import OptimizerSpec, adamw, find_optimizer, optimizer_of
from chinchilla_ds.run_plan import Offload, Recompute, RunPlan
from chinchilla_ds.structured import read_json

NEVER_PRINT = 1_000_000_000
"""A steps_per_print that is never reached, because the progress bar reports instead of DeepSpeed."""

_AIO = {
    "block_size": 1048576,
    "queue_depth": 8,
    "intra_op_parallelism": 1,
    "single_submit": False,
    "overlap_events": True,
}
"""DeepSpeed's own defaults, written out because they are tuned for each drive (`ds_nvme_tune`)."""

_OPTIMIZER = {"type": AUTO, "params": {"lr": AUTO, "betas": AUTO, "eps": AUTO, "weight_decay": AUTO}}


SHIPPED_FOLDER = Path(__file__).parents[2] / "ds_configs"
"""A folder in an installed package; in a checkout, a link to the folder of the same name beside the package."""


def load_ds_config(path: Path | str, /) -> dict[str, Any]:
    """Return the JSON object in a file, or in a shipped file named by, for example, `zero3`.

    Raises:
        DsConfigError: missing or unreadable file, not UTF-8, not JSON (line and column named), duplicate keys, not an
        object.
    """
    data = read_json(_named_file(Path(path)), what="ds_config", error=DsConfigError)
    if not isinstance(data, dict):
        raise DsConfigError(f"ds_config {path} must hold a JSON object, not {show(data)}")
    return data


def _named_file(path: Path) -> Path:
    """Return the shipped file of a bare name, otherwise the path.

    Raises:
        DsConfigError: a bare name that is neither a shipped file nor an existing one.
    """
    name, names = str(path), tuple(shipped_configs())
    if name in names:
        return SHIPPED_FOLDER / f"{name}.json"
    if path.parent == Path() and not path.suffix and not path.exists():
        guess = did_you_mean(name, names)
        raise DsConfigError(f"ds_config {name!r} is neither a file nor one of {', '.join(names)}{guess}")
    return path


def apply_to_config(config: RunConfig, ds: Mapping[str, Any], *, explicit: frozenset[str] = frozenset()) -> RunConfig:
    """Return `config` with the layout, precision and settings of the optimizer that the JSON names.

    Args:
        config: defaults and flags.
        ds: the JSON; "auto" and missing keys leave the config alone.
        explicit: names of the config fields that a flag has set, such as `zero_stage` or `precision`.

    Raises:
        DsConfigError: all unknown keys, values of the wrong type, and values that contradict a flag.
    """
    optimizer = _optimizer_or_none(config)
    another = optimizer_problem(ds, optimizer or adamw())
    if (
        another
    ):  # not a problem yet: a supplied plan or a resumed run may have the same optimizer, which `resolve` checks
        ds = {name: value for name, value in ds.items() if name != "optimizer"}
    ds, problems = checked(ds, optimizer=optimizer)
    problems += own_conflicts(ds)
    layout: dict[str, Any] = {}
    named: dict[str, Any] = {}
    for item in named_fields(ds):
        if isinstance(item, str):
            problems += [] if _is_reported(problems, item) else [item]
            continue
        current = current_value(config, field=item.field)
        if item.field in explicit and current != item.value:
            problems.append(
                f"`{field_path(item.field)}` is {show(current)}, but the ds_config's {item.where} means "
                f'{show(item.value)}; drop that, or set {item.where} to "auto" or leave it out'
            )
        else:
            (named if is_of_run(item.field) else layout)[item.field] = item.value
    if problems:
        raise DsConfigError([*problems, another] if another else problems)
    return dataclasses.replace(config, layout=dataclasses.replace(config.layout, **layout), **named)


def _optimizer_or_none(config: RunConfig) -> OptimizerSpec | None:
    """Return the requested optimizer; None if it cannot be found, which `config_problems` reports."""
    try:
        return find_optimizer(config.optimizer)
    except ConfigError:
        return None


def resolve(ds: Mapping[str, Any], plan: RunPlan) -> dict[str, Any]:
    """Return the JSON for DeepSpeed: every "auto" filled from the plan, `chinchilla_ds` removed, the rest unchanged.

    Raises:
        DsConfigError: unknown keys, sections that the plan owns, and every concrete value that contradicts the plan.
    """
    optimizer = optimizer_of(plan.optimizer)
    ds, problems = checked(ds, optimizer=optimizer)
    problems += [item for item in named_fields(ds) if isinstance(item, str) and not _is_reported(problems, item)]
    problems += [*own_conflicts(ds), *plan_conflicts(ds, plan)]
    problems += [text for text in _contradictions(ds, plan) if not _is_reported(problems, text)]
    if problems:
        raise DsConfigError(problems)
    ds.pop(OWN_SECTION, None)
    for owned in owned_values(plan, ds=ds):
        _put(ds, owned.path, owned.value)
    if optimizer.deepspeed_type is None:
        ds.pop("optimizer", None)  # DeepSpeed does not know it
    for suggested in suggested_values(plan):
        if find(ds, suggested.path) == AUTO:
            _put(ds, suggested.path, suggested.value)
    return _as_deepspeed_reads(ds, ())


def emit(plan: RunPlan, /) -> dict[str, Any]:
    """Return the complete JSON for a plan, without any "auto" and with DeepSpeed's keys only."""
    layout = plan.layout
    offload = {"offload_optimizer": layout.offload_optimizer, "offload_param": layout.offload_param}
    zero = {name: _offload_section(device) for name, device in offload.items() if device is not Offload.NONE}
    ds = _template(stage=layout.zero_stage, zero=zero)
    if Offload.NVME in offload.values():
        ds["aio"] = dict(_AIO)
    if layout.recompute is not Recompute.NONE:
        ds |= {OWN_SECTION: {"recompute": layout.recompute.value}}
    if layout.recompute in (Recompute.SELECTIVE, Recompute.FULL):  # the section governs these two
        ds |= {"activation_checkpointing": {}}
    return resolve(ds, plan)


def emit_for_pretrain(plan: RunPlan, /) -> dict[str, Any]:
    """Return `emit`'s JSON with the section that launchers/pretrain.py reads, for values without DeepSpeed keys."""
    layout, plain = plan.layout, LayoutConfig()
    own = {
        name: getattr(layout, name)
        for name in sorted(SECTIONS[OWN_SECTION,])
        if getattr(layout, name) != getattr(plain, name)
    }
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
    """Return the JSON text, formatted like the shipped files."""
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
        ZERO: {
            "stage": stage,
            "reduce_bucket_size": AUTO,
            **({"overlap_comm": AUTO} if stage in (1, 2) else {}),
            **(zero or {}),
        },
    }


def _offload_section(device: Offload) -> dict[str, Any]:
    nvme = {"nvme_path": "/local_nvme"} if device is Offload.NVME else {}
    return {"device": device.value, **nvme, "pin_memory": True}


def _contradictions(ds: Mapping[str, Any], plan: RunPlan) -> Iterator[str]:
    """Yield every value of the JSON that contradicts the plan."""
    for owned in (*owned_values(plan, ds=ds), *compared_values(plan, ds=ds)):
        where = ".".join(owned.path)
        given = Recompute.FULL if where == "activation_checkpointing" else find(ds, owned.path)
        if not is_auto(given) and not same(given, owned.value):
            fix = owned.fix.format(show(given).strip('"'))
            yield f"{where} is {show(given)}, but the plan says {show(owned.value)}; {fix}"


def _is_reported(problems: list[str], text: str) -> bool:
    """Return whether a problem with the key at the start of this text has already been reported."""
    return any(problem.startswith(f"{text.split(' ', 1)[0]} ") for problem in problems)


def _as_deepspeed_reads(section: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """Return a section with 5e8 as an integer where one is required, and without "auto", DeepSpeed's default."""
    read: dict[str, Any] = {}
    for name, value in section.items():
        here = (*path, name)
        key = table_key(here)
        if here in SECTIONS and isinstance(value, dict):
            read[name] = _as_deepspeed_reads(value, here)
        elif value != AUTO:
            read[name] = int(value) if key is not None and key.kind.is_whole and is_number(value) else value
    return read


def _put(ds: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        ds = ds.setdefault(key, {})
    ds[path[-1]] = value


def main(arguments: list[str] | None = None, /) -> int:
    """Write the shipped files into the folder named on the command line."""
    folders = sys.argv[1:] if arguments is None else arguments
    if len(folders) != 1:
        sys.stderr.write("usage: python -m chinchilla_ds.budget.deepspeed_json.resolve FOLDER\n")
        return 2
    for path in write_shipped(folders[0]):
        sys.stdout.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
