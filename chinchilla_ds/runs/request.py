"""The request of a run, stored in its folder, so that the same command finds it again (`runs.earlier`)."""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.config import RUN_NAME, RunConfig, source_name
from chinchilla_ds.data.feeding.blend_file import read_blend
from chinchilla_ds.errors import CheckpointError, ConfigError
from chinchilla_ds.run_plan import REPORT, RunPlan
from chinchilla_ds.structured import build, parse_json, read_json

REQUEST_NAME = "request.json"
PLAN_NAME = "plan.json"
"""Name of the run's plan in its folder."""
LOCK_NAME = ".lock"
FREE_FIELDS = ("layout", "micro_batch_size", "output", "guards", "checkpoint", "sample_interval_tokens", "run_name")
"""Parts of a config that may change between starts of one run: none decides what the model learns, except
`checkpoint.init_from`."""
_FIRST_FIELDS = (
    "compute_budget_flops",
    "num_params",
    "num_tokens",
    "shape",
    "law",
    "unique_tokens",
    "inference_tokens",
    "seq_length",
    "vocab_size",
    "tied_embeddings",
    "global_batch_size",
    "learning_rate",
    "gradient_clipping",
    "decay",
    "precision",
    "data",
    "document_mask",
    "seed",
    "eval_interval_tokens",
)
"""Parts of a config from which the first keys were computed, in their order."""
_PLACE = ("layout", "device", "cluster", "memory_bytes", "step_time", "step_time_s", "wall_clock_s", "reasons", REPORT)
"""Parts of a plan file about where it runs, and why."""
_SHARE_OF_A_RANK = ("micro_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A command line, except where and on how many ranks it runs."""

    config: RunConfig
    plan: Path | RunPlan | None = None
    """A plan that was given: a file, or the plan itself."""

    def to_json(self) -> str:
        """Return indented JSON with absolute paths and the key: the named files may change later.

        A plan without a file is the one in the run's folder.
        """
        plan = PLAN_NAME if isinstance(self.plan, RunPlan) else None if self.plan is None else _absolute(self.plan)
        values = {"config": plain_config(self.config), "plan": plan, "key": self.key}
        return json.dumps(values, indent=2, allow_nan=False) + "\n"

    @property
    def key(self) -> str:
        """A hash of everything that decides what the model learns."""
        config = plain_config(self.config)
        values = _deciding_values(config)
        blend, law = self.config.data.blend, self.config.law
        content = [
            values,
            config["checkpoint"]["init_from"],
            None if self.plan is None else _plan_content(self.plan),
            None if blend is None else sorted(read_blend(blend).items()),
            None if law is None else _law_content(Path(law)),
        ]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def _deciding_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values that decide what the model learns.

    A field that was added later counts only if it is not at its default, so that the commands of earlier versions keep
    their keys.
    """
    defaults = plain_config(RunConfig())
    later = {
        name: value
        for name, value in config.items()
        if name not in (*FREE_FIELDS, *_FIRST_FIELDS) and value != defaults[name]
    }
    return {**{name: config[name] for name in _FIRST_FIELDS}, **later}


def plain_config(config: RunConfig) -> dict[str, Any]:
    """Return a config as plain JSON data."""
    values: dict[str, Any] = parse_json(json.dumps(dataclasses.asdict(config), default=_absolute), where="the config")
    return values


def _absolute(value: Any) -> str:
    assert isinstance(value, Path), f"{value!r} cannot be written as JSON"
    name = source_name(value)
    return name if name.startswith("hf://") else str(value.resolve())


def _law_content(path: Path) -> str:
    """Return the content of a fitted law's file, or the name of a law; the law's own reader reports problems."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return str(path)


def _plan_content(plan: Path | RunPlan) -> Any:
    """Return the part of a plan that decides learning; problems are reported by the reader of plan files."""
    if isinstance(plan, RunPlan):
        values = parse_json(plan.to_json(), where="the plan")
    else:
        try:
            values = read_json(plan, what="plan")
        except ConfigError:
            return str(plan)
    if not isinstance(values, dict) or not isinstance(values.get("batch"), dict):
        return str(plan)
    batch = {name: value for name, value in values["batch"].items() if name not in _SHARE_OF_A_RANK}
    return {name: value for name, value in values.items() if name not in _PLACE} | {"batch": batch}


def learning_part(plan: RunPlan) -> dict[str, Any]:
    """Return the part of a plan that decides learning, by the names of its fields."""
    values = dataclasses.asdict(plan)
    batch = {name: value for name, value in values["batch"].items() if name not in _SHARE_OF_A_RANK}
    return {name: value for name, value in values.items() if name not in _PLACE} | {"batch": batch}


@dataclass(frozen=True, kw_only=True)
class SavedRequest:
    """A request as stored in a run's folder."""

    config: RunConfig
    plan: Path | None
    key: str
    """The key of the request when the run started."""

    @classmethod
    def load(cls, folder: Path) -> "SavedRequest":
        """Read the request of the run in `folder`.

        Raises:
            CheckpointError: there is none, or it is damaged; the file is named.
        """
        path = folder / REQUEST_NAME
        data = read_json(path, what="the run's request", error=CheckpointError)
        saved: SavedRequest = build(cls, data, where=f"the run's request {path}: request", error=CheckpointError)
        return saved

    @property
    def request(self) -> RunRequest:
        """The request."""
        return RunRequest(config=self.config, plan=self.plan)


class RunLock:
    """Locks a run's folder against other processes; released when this process exits, however it exits."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            CheckpointError: another process has it.
        """
        self._descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise CheckpointError(
                f"the run {folder}, which this command would resume, is being trained by another process; wait for"
                " it, or start another run with `checkpoint.resume=none`"
            ) from None
        except OSError:  # a file system without locks: exclusion is up to the user
            pass

    def release(self) -> None:
        """Release the lock, in a process that continues."""
        os.close(self._descriptor)


def known_problems(config: RunConfig) -> Iterator[str]:
    """Yield the problems of the parts of a config outside the plan: guards and checkpoints."""
    chosen = config.checkpoint
    if chosen.init_from is not None and chosen.resume not in ("latest", "none"):
        yield (
            f"`checkpoint.init_from={chosen.init_from}` starts a new run and "
            f"`checkpoint.resume={chosen.resume}` resumes an old one; give one of them"
        )
    if config.run_name is not None and not RUN_NAME.fullmatch(config.run_name):
        yield f"`run_name` is {config.run_name!r}; it must match {RUN_NAME.pattern}"
    for name in ("guards", "checkpoint"):
        try:
            build(type(getattr(config, name)), plain_config(config)[name], where=name)
        except ConfigError as error:
            yield from map(_about_field, error.problems)


def _about_field(problem: str) -> str:
    """Return a problem that starts with the path of a value, reworded for the config's field, its first part."""
    return re.sub(r"^(\w+\.\w+)(\.?)", lambda place: f"`{place[1]}`{place[2] and ' '}", problem)
