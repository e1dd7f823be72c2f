"""What a run was asked for, kept in its folder, so that the same command finds it again and goes on."""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chinchilla_ds.checkpoint import folder as folders
from chinchilla_ds.checkpoint.state import CheckpointState
from chinchilla_ds.cli.arguments import flag_of
from chinchilla_ds.config import RunConfig
from chinchilla_ds.data.blend_file import read_blend
from chinchilla_ds.errors import CheckpointError, ChinchillaError, ConfigError, reason
from chinchilla_ds.plan import REPORT, RunPlan
from chinchilla_ds.structured import build

REQUEST_NAME = "request.json"
LOCK_NAME = ".lock"
FREE_FIELDS = ("layout", "micro_batch_size", "output", "guards", "checkpoint", "sample_interval_tokens")
"""Parts of a config that may change from start to start of one run: none decides what the model learns, but for
`checkpoint.init_from`."""
_PLACE = ("layout", "device", "cluster", "memory_bytes", "step_time", "step_time_s", "wall_clock_s", "reasons", REPORT)
"""Parts of a plan file that say where it runs, and why."""
_SHARE_OF_A_RANK = ("micro_batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A command line, but for where and on how many ranks it runs."""

    config: RunConfig
    plan: Path | None = None
    """`--plan`."""

    def to_json(self) -> str:
        """Return indented JSON, paths absolute, with the key: the files that were named may change later."""
        plan = None if self.plan is None else _absolute(self.plan)
        return json.dumps({"config": _plain(self.config), "plan": plan, "key": self.key}, indent=2) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "RunRequest":
        """Read the request of the run in `folder`.

        Raises:
            CheckpointError: there is none, or not one of this version.
        """
        path = folder / REQUEST_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            plan = values["plan"]
            return cls(
                config=build(RunConfig, values["config"], where="config"), plan=None if plan is None else Path(plan)
            )
        except OSError as error:
            raise CheckpointError(f"{folder} is no run that can be continued: {path}: {reason(error)}") from None
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{path} was not written by this version: {error}") from None

    @property
    def key(self) -> str:
        """A hash of everything that decides what the model learns."""
        config = _plain(self.config)
        values = {name: value for name, value in config.items() if name not in FREE_FIELDS}
        blend, law = self.config.data.blend, self.config.law
        content = [
            values,
            config["checkpoint"]["init_from"],
            None if self.plan is None else _plan_content(self.plan),
            None if blend is None else sorted(read_blend(blend).items()),
            None if law is None else _law_content(Path(law)),
        ]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def _plain(config: RunConfig) -> dict[str, Any]:
    """Return a config as JSON has it."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=_absolute))
    return values


def _absolute(value: Any) -> str:
    assert isinstance(value, Path), f"{value!r} cannot be written as JSON"
    return str(value.resolve())


def _law_content(path: Path) -> str:
    """Return the content of a fitted law's file, or the name of a law; the law's own reader says what is wrong."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return str(path)


def _plan_content(path: Path) -> Any:
    """Return what a plan file says of learning; the plan's own reader says what is wrong with one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        batch = {name: value for name, value in values["batch"].items() if name not in _SHARE_OF_A_RANK}
        return {name: value for name, value in values.items() if name not in _PLACE} | {"batch": batch}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return str(path)


@dataclass(frozen=True, kw_only=True)
class Continued:
    """A run to go on with."""

    folder: Path
    checkpoint: Path
    """Its newest whose plan and state are whole; tensors may turn out to be damaged. Or the one that was asked for."""
    request: RunRequest
    plan: RunPlan
    """Of the checkpoint, with the layout that it was saved under."""
    all_checkpoints: bool = True
    """Whether an older checkpoint may be taken where the newest is damaged."""


def find_run(request: RunRequest) -> Continued | None:
    """Return the newest run of the same command below its output folder that has a checkpoint and no end, if any.

    Raises:
        CheckpointError: it has checkpoints, and all are damaged.
    """
    runs = request.config.output
    if not runs.is_dir():
        return None
    candidates = [path.parent for path in runs.glob(f"*/{REQUEST_NAME}")]
    for folder in sorted(candidates, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        begun = _key_of(folder) == request.key and folders.list_checkpoints(folder / folders.CHECKPOINTS_NAME)
        if begun and not _is_complete(folder):
            return continued(folder)
    return None


def _key_of(folder: Path) -> str | None:
    """Return the key of a run when it began; None for another version's."""
    try:
        key = json.loads((folder / REQUEST_NAME).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return key if isinstance(key, str) else None


def _is_complete(folder: Path) -> bool:
    """Return whether a run has reached its end, by its newest checkpoint whose state is as it was written."""
    checkpoint = next((path for path in folders.find_checkpoints(folder) if not _small_problems(path)), None)
    return checkpoint is not None and state_of(checkpoint).complete


def state_of(checkpoint: Path, /) -> CheckpointState:
    """Read where a run stood.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    path = checkpoint / folders.STATE_NAME
    with folders.reported_as(checkpoint):
        return CheckpointState.from_json(path.read_text(encoding="utf-8"), where=str(path))


def _small_problems(checkpoint: Path) -> list[str]:
    """Return what is wrong with the sizes of a checkpoint's files, and with the content of plan and state."""
    try:
        return list(folders.damage(checkpoint, names=frozenset({folders.PLAN_NAME, folders.STATE_NAME})))
    except CheckpointError as error:
        return list(error.problems)


def continued(path: Path, /) -> Continued:
    """Return the run that `path` means: its folder, or one checkpoint of it.

    Raises:
        CheckpointError: it is no run, or has no checkpoint whose plan can be read.
    """
    found = folders.find_checkpoints(path)
    folder = found[0].parent.parent
    problems: list[str] = []
    for checkpoint in found:
        if damaged := _small_problems(checkpoint):
            problems += damaged
            continue
        try:
            with folders.reported_as(checkpoint):
                plan = RunPlan.from_json((checkpoint / folders.PLAN_NAME).read_text(encoding="utf-8"))
            return Continued(
                folder=folder,
                checkpoint=checkpoint,
                request=RunRequest.load(folder),
                plan=plan,
                all_checkpoints=checkpoint != path,
            )
        except ChinchillaError as error:
            problems += [f"{checkpoint}: {problem}" for problem in error.problems]
    raise CheckpointError([*problems, f"no checkpoint of {folder} is whole; --resume none begins another run"])


def check_same(config: RunConfig, run: Continued, *, explicit: frozenset[str]) -> None:
    """Check that the flags that were given say what the run was asked for.

    Raises:
        CheckpointError: some differ; each is named with both values.
    """
    here, there = _flat(config), _flat(run.request.config)
    problems = [
        f"{flag_of(name)} is {_shown(here[name])} here and {_shown(there.get(name))} in the run {run.folder}; leave it "
        "out to go on with that run, or begin another with --resume none"
        for name in sorted(explicit & here.keys())
        if here[name] != there.get(name)
    ]
    if problems:
        raise CheckpointError(problems)


def _flat(config: RunConfig) -> Mapping[str, Any]:
    values = _plain(config)
    flat: dict[str, Any] = values["data"]
    return {name: value for name, value in values.items() if name not in (*FREE_FIELDS, "data")} | flat


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


class RunLock:
    """Holds a run's folder against other processes; it ends with this process, however that ends."""

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
                f"the run {folder}, which this command would continue, is being trained by another process; wait for"
                " it, or begin another run with --resume none"
            ) from None
        except OSError:  # a file system without locks: the user's care
            pass


def known_problems(config: RunConfig) -> Iterator[str]:
    """Yield what contradicts itself in the flags about checkpoints."""
    chosen = config.checkpoint
    if chosen.init_from is not None and chosen.resume not in ("latest", "none"):
        yield (
            f"--init-from {chosen.init_from} begins a new run and --resume {chosen.resume} goes on with an old one;"
            " give one of them"
        )
