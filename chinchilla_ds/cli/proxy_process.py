"""One small run of a mixture search, in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from chinchilla_ds.errors import EXIT_CODE_USER_ERROR, ConfigError, OutputError, reason
from chinchilla_ds.plan import RunPlan

PATIENCE_S = 20.0
"""How long an interrupted run may take to leave; it ends itself well before."""
PLAN_NAME, BLEND_NAME, LOG_NAME = "plan.json", "blend.yaml", "log.txt"
_SHOWN_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A run that is to be made."""

    name: str
    weights: Mapping[str, float]
    """Of the corpus's sources; sum to 1."""
    plan: RunPlan
    corpus: Path
    max_epochs: float
    ds_config: Path
    folder: Path
    """Receives plan, blend, log and the run's own folder; what an interrupted run left there is removed."""


def train_proxy(proxy: Proxy, /) -> float:
    """Train to the end and return the held-out loss in nats per token.

    Raises:
        ConfigError: the run was refused; its own words are given.
        OutputError: the folder cannot be written.
        RuntimeError: the run failed.
    """
    log = proxy.folder / LOG_NAME
    try:
        _lay_out(proxy)
        with log.open("wb") as stream:
            exit_code = _run_to_end(_command(proxy), log=stream.fileno(), environment=_environment(proxy))
    except OSError as error:
        raise OutputError(f"cannot write to {proxy.folder}: {reason(error)}") from None
    text = log.read_text(encoding="utf-8", errors="replace")
    if exit_code == EXIT_CODE_USER_ERROR:
        said = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
        raise ConfigError([f"run {proxy.name}: {problem}" for problem in said] or f"run {proxy.name} failed: see {log}")
    if exit_code != 0:
        tail = "\n".join(text.splitlines()[-_SHOWN_LINES:])
        raise RuntimeError(f"run {proxy.name} ended with exit code {exit_code}; the end of {log}:\n{tail}")
    return _held_out_loss(proxy.folder)


def _lay_out(proxy: Proxy) -> None:
    """Write the run's plan and blend into a new folder."""
    from chinchilla_ds.data.mixture.text import blend_text

    if proxy.folder.exists():
        if any(proxy.folder.iterdir()) and not (proxy.folder / PLAN_NAME).is_file():
            raise OutputError(f"{proxy.folder} holds other files; name another --output")
        shutil.rmtree(proxy.folder)
    proxy.folder.mkdir(parents=True)
    (proxy.folder / PLAN_NAME).write_text(proxy.plan.to_json(), encoding="utf-8")
    blend = blend_text(proxy.weights, note=f"run {proxy.name} of a mixture search")
    (proxy.folder / BLEND_NAME).write_text(blend, encoding="utf-8")


def _command(proxy: Proxy) -> list[str]:
    flags = {
        "--ds_config": proxy.ds_config,
        "--plan": proxy.folder / PLAN_NAME,
        "--data": proxy.corpus,
        "--blend": proxy.folder / BLEND_NAME,
        "--max-epochs": proxy.max_epochs,
        "--output": proxy.folder,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    return [sys.executable, "-m", "chinchilla_ds.cli.pretrain", *words]


def _environment(proxy: Proxy) -> dict[str, str]:
    """Return this process's environment, with one MLflow database for all runs unless it names another."""
    database = f"sqlite:///{(proxy.folder.parent / 'mlflow.db').absolute()}"
    return {"MLFLOW_TRACKING_URI": database, **os.environ}


def _run_to_end(command: list[str], *, log: int, environment: dict[str, str]) -> int:
    """Return the exit code; whatever ends this process's wait ends the run too."""
    with _terminated_like_interrupted(), subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM too, so that no run is left behind."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _held_out_loss(folder: Path) -> float:
    """Return the last held-out loss that the run in `folder` has written."""
    from chinchilla_ds.tracking.jsonl import METRICS_FILE

    (metrics,) = folder.glob(f"*/{METRICS_FILE}")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return float([row["held_out/loss"] for row in rows if "held_out/loss" in row][-1])
