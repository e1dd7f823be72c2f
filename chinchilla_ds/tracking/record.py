"""tracking.json: a run's identity, settings and files, for every store of runs.

It lies beside metrics.jsonl, and the two together are all that such a store should hold.
"""

import dataclasses
import json
import logging
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from chinchilla_ds.errors import TrackingError
from chinchilla_ds.files import write_durably
from chinchilla_ds.ranges import Ge, Le, MinLen
from chinchilla_ds.run_plan import RunPlan
from chinchilla_ds.structured import build, read_json

RECORD_FILE = "tracking.json"
MAX_TIME_S = 1e11
"""Seconds since the epoch, year 5138: anything beyond is not a time."""
MAX_PARAM_CHARACTERS = 6000
"""MLflow's limit on the length of a parameter."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """Everything that a run has recorded except its metrics."""

    id: Annotated[str, MinLen(1)]
    """Id by which its MLflow run is found on any server."""
    started_s: Annotated[float, Ge(0), Le(MAX_TIME_S)]
    """Seconds since the epoch."""
    tracking_uri: str = ""
    """The tracking server or database that the user named, without secrets; empty for the one beside the run."""
    experiment: str = ""
    params: dict[str, str] = dataclasses.field(default_factory=dict)
    """Settings by name, with the first value that each had."""
    continued: dict[str, str] = dataclasses.field(default_factory=dict)
    """The last value of settings that changed when the run resumed."""
    artifacts: tuple[str, ...] = ()
    """Files and folders to copy; relative ones are in the run's folder."""

    @classmethod
    def new(cls, *, started_s: float | None = None) -> "RunRecord":
        """Return the record of a run that starts now, or started at `started_s`."""
        return cls(id=uuid.uuid4().hex, started_s=time.time() if started_s is None else started_s)

    @classmethod
    def load(cls, run_folder: Path) -> "RunRecord | None":
        """Read the record of a run; None if there is none.

        Raises:
            TrackingError: it cannot be read, or is not one.
        """
        path = run_folder / RECORD_FILE
        if not path.exists():
            return None
        record: RunRecord = build(
            cls, read_json(path, what="record", error=TrackingError), where=str(path), error=TrackingError
        )
        return record

    def save(self, run_folder: Path) -> None:
        """Write the record atomically and flush it to the disk."""
        write_durably(run_folder / RECORD_FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def with_params(self, params: Mapping[str, object]) -> "RunRecord":
        """Return the record with these settings: the first value of each is kept, a later one is stored beside it."""
        texts = {name: str(value)[:MAX_PARAM_CHARACTERS] for name, value in params.items()}
        first = {**texts, **self.params}
        changed = {name: text for name, text in texts.items() if text != self.continued.get(name, first[name])}
        return dataclasses.replace(self, params=first, continued={**self.continued, **changed})

    def with_artifact(self, path: Path, *, run_folder: Path) -> "RunRecord":
        """Return the record with another file or folder, once."""
        place, root = path.absolute(), run_folder.absolute()
        name = str(place.relative_to(root) if place.is_relative_to(root) else place)
        return self if name in self.artifacts else dataclasses.replace(self, artifacts=(*self.artifacts, name))


def load_or_begin(run_folder: Path) -> RunRecord:
    """Return the record in a run's folder, or write a new one; an unreadable one is moved aside, and named."""
    try:
        record = RunRecord.load(run_folder)
    except TrackingError as error:
        damaged = (run_folder / RECORD_FILE).replace(run_folder / f"{RECORD_FILE}.damaged")
        _logger.warning("%s; it is now %s, and a new one is started", error.problems[0], damaged.name)
        record = None
    if record is None:
        record = RunRecord.new()
        record.save(run_folder)
    return record


def plan_params(plan: RunPlan) -> dict[str, object]:
    """Return the plan's numbers under dotted names such as `shape.num_layers`; its sentences are left to the JSON."""
    fields = dataclasses.asdict(plan)
    del fields["reasons"]
    del fields["callbacks"]
    if plan.callbacks:
        fields["callbacks"] = " ".join(str(spec) for spec in plan.callbacks)
    return dict(_flatten(fields, prefix=""))


def _flatten(fields: Mapping[str, Any], *, prefix: str) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, prefix=f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
