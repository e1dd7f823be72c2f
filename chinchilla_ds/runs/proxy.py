"""One small run of a mixture search, in a separate process."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from chinchilla_ds.config import DataConfig, RunConfig
from chinchilla_ds.distributed.launch import without_launcher
from chinchilla_ds.errors import EXIT_CODE_STOPPED, EXIT_CODE_USER_ERROR, ConfigError, OutputError, reason
from chinchilla_ds.files import whole_folder
from chinchilla_ds.run_plan import RunPlan

if TYPE_CHECKING:
    from chinchilla_ds.runs.command import TrainCommand

PATIENCE_S = 120.0
"""How long an interrupted run may take to finish its step, save and exit."""
PLAN_NAME, BLEND_NAME, LOG_NAME = "plan.json", "blend.yaml", "log.txt"
_SHOWN_LINES = 12


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """A run to train."""

    name: str
    weights: Mapping[str, float]
    """Weights of the corpus's sources; they sum to 1."""
    plan: RunPlan
    corpus: Path
    max_epochs: float
    ds_config: Path
    folder: Path
    """Receives plan, blend, log and the run's own folder. A run with the same plan and blend in it is resumed."""


def train_proxy(proxy: Proxy, /) -> float:
    """Train to the end and return the held-out loss in nats per token.

    Raises:
        ConfigError: the run was refused; its messages are passed on.
        OutputError: the folder cannot be written.
        RuntimeError: the run failed.
    """
    log = proxy.folder / LOG_NAME
    try:
        _lay_out(proxy)
        with log.open("ab") as stream:
            exit_code = _run_to_end(_command(proxy), log=stream.fileno(), environment=_environment(proxy))
    except OSError as error:
        raise OutputError(f"cannot write to {proxy.folder}: {reason(error)}") from None
    if exit_code == EXIT_CODE_STOPPED:  # someone asked the run itself to stop
        raise KeyboardInterrupt
    if exit_code != 0:
        _fail(proxy, exit_code=exit_code, log=log)
    return _held_out_loss(proxy.folder)


def _fail(proxy: Proxy, *, exit_code: int, log: Path) -> NoReturn:
    """Raise the run's own error."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
    problems = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if exit_code == EXIT_CODE_USER_ERROR and problems:
        raise ConfigError([f"run {proxy.name}: {problem}" for problem in problems])
    end = "\n".join(lines)
    raise RuntimeError(f"run {proxy.name} ended with exit code {exit_code}; the end of {log}:\n{end}")


def _lay_out(proxy: Proxy) -> None:
    """Write the run's plan and blend; remains of another run in the folder are removed."""
    from chinchilla_ds.data.mixture.screen import blend_text

    files = {
        PLAN_NAME: proxy.plan.to_json(),
        BLEND_NAME: blend_text(proxy.weights, note=f"run {proxy.name} of a mixture search"),
    }
    folder = proxy.folder
    there = {name: (folder / name).read_text(encoding="utf-8") for name in files if (folder / name).is_file()}
    if there == files:
        return
    if folder.exists():
        if any(folder.iterdir()) and PLAN_NAME not in there:
            raise OutputError(f"{folder} holds other files; name another `output`")
        shutil.rmtree(folder)
    with whole_folder(folder) as aside:
        for name, text in files.items():
            (aside / name).write_text(text, encoding="utf-8")


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
    return [sys.executable, "-m", "chinchilla_ds.runs.proxy", *words]


def _train_command(words: Sequence[str]) -> "TrainCommand":
    """Return the request of `_command`."""
    from chinchilla_ds.runs.command import TrainCommand, set_fields

    values = dict(zip(words[::2], words[1::2], strict=True))
    data = DataConfig(
        paths=(Path(values["--data"]),), blend=Path(values["--blend"]), max_epochs=float(values["--max-epochs"])
    )
    config = RunConfig(data=data, output=Path(values["--output"]))
    return TrainCommand(
        config=config, ds_config=Path(values["--ds_config"]), plan=Path(values["--plan"]), explicit=set_fields(config)
    )


def _environment(proxy: Proxy) -> dict[str, str]:
    """Return this process's environment for a run of one rank, with one MLflow database unless it names another."""
    from chinchilla_ds.tracking.mlflow_database import sqlite_uri

    database = sqlite_uri((proxy.folder.parent / "mlflow.db").absolute())
    return {"MLFLOW_TRACKING_URI": database, **without_launcher(os.environ)}


def _run_to_end(command: list[str], *, log: int, environment: dict[str, str]) -> int:
    """Return the exit code; if the wait for the run is interrupted, the run is asked to stop first.

    It has its own session, so that it receives a Ctrl-C only once, from here.
    """
    with _ended_like_interrupted():
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(PATIENCE_S)
                finally:  # also after a second Ctrl-C
                    process.kill()
                    process.wait()


@contextmanager
def _ended_like_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and a closed terminal too, so that no run is left behind."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _held_out_loss(folder: Path) -> float:
    """Return the last held-out loss of the newest run in `folder`; a run that saved nothing was restarted."""
    from chinchilla_ds.tracking.metrics_file import METRICS_FILE, read_metrics

    metrics = max(folder.glob(f"*/{METRICS_FILE}"), key=lambda path: path.stat().st_mtime_ns)
    losses = [record.metrics["held_out/loss"] for record in read_metrics(metrics) if "held_out/loss" in record.metrics]
    return losses[-1]


if __name__ == "__main__":
    from chinchilla_ds.processes.endings import exit_process
    from chinchilla_ds.runs.train import train_and_end

    exit_process(lambda: train_and_end(lambda: _train_command(sys.argv[1:])))
