"""The environment of a run: enough to rebuild it."""

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from chinchilla_ds.files import write_json
from chinchilla_ds.tracking.redaction import redacted

ENVIRONMENT_FILE = "environment.json"

_NAMED_PACKAGES = ("chinchilla-ds", "torch", "deepspeed", "megatron-core", "mlflow")


def describe_environment() -> dict[str, object]:
    """Return Python, platform, git commit and every installed package, from metadata only: nothing is imported."""
    installed = {dist.metadata["Name"]: dist.version for dist in metadata.distributions()}
    packages = dict(sorted(installed.items(), key=lambda item: item[0].lower()))
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "command": [redacted(word) for word in sys.argv],
        "git_commit": git_commit(Path(__file__).parent),
        "versions": {name: packages.get(name) for name in _NAMED_PACKAGES},
        "packages": packages,
    }


def write_environment(run_folder: Path) -> Path:
    """Write `environment.json` into the run's folder and return its path."""
    path = run_folder / ENVIRONMENT_FILE
    write_json(path, describe_environment())
    return path


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out around `folder`, with `-dirty` if files differ; None without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
