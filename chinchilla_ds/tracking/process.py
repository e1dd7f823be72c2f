"""ProcessBackend: a tracking backend in a process of its own, spoken to in lines of JSON.

A thread is not enough for a backend written in Python: while it imports (seconds) or writes (a millisecond for each
step's metrics in MLflow's SQLite store), it holds the interpreter lock, which the training thread needs between any two
kernels. The process also outlives a training process that was killed, and then marks the run as failed.

Requests are `[method, argument]`, one per line; each is answered by one line, null or the text of an error.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from chinchilla_ds.tracking.tracker import MetricRecord, RunStatus, TrackingBackend

_IMPORT_ROOT = Path(__file__).resolve().parents[2]
_EXIT_TIMEOUT_S = 10.0


class BackendProcessError(Exception):
    """The backend in the other process failed, or the process ended."""


class ProcessBackend:
    """Passes everything on to `python -m module`, which calls `serve_backend`. Blocks until it is answered."""

    def __init__(self, *, module: str, settings: Mapping[str, object], environment: Mapping[str, str]) -> None:
        """Start the process and open the backend in it.

        Args:
            module: name of the module to run.
            settings: what its backend is opened with; it travels by pipe, for it may hold a password.
            environment: variables for the process, where the user has not set them.
        """
        search_path = os.pathsep.join(filter(None, [str(_IMPORT_ROOT), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment, **os.environ, "PYTHONPATH": search_path},
        )
        try:
            self._ask("open", dict(settings))
        except BackendProcessError:
            self._end()
            raise

    def write(self, records: Sequence[MetricRecord]) -> None:
        """Have a batch of metrics written."""
        self._ask("write", [dataclasses.asdict(record) for record in records])

    def log_params(self, params: Mapping[str, object]) -> None:
        """Have settings written, as text."""
        self._ask("log_params", {name: str(value) for name, value in params.items()})

    def log_artifact(self, path: Path) -> None:
        """Have a file or folder copied."""
        self._ask("log_artifact", str(path.absolute()))

    def close(self, status: RunStatus) -> None:
        """End the run and the process."""
        try:
            self._ask("close", status.value)
        finally:
            self._end()

    def _ask(self, method: str, argument: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([method, argument]) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise BackendProcessError("its process has ended")
        error = json.loads(answer)
        if error is not None:
            raise BackendProcessError(error)

    def _end(self) -> None:
        """Close the pipes, by which the process ends; kill it where it does not."""
        try:
            self._process.communicate(timeout=_EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def serve_backend(open_backend: Callable[[dict[str, Any]], TrackingBackend]) -> None:
    """Serve standard input until it ends. Signals to the training processes are not for us: we end when they have."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be read as an answer
    answer_requests(open_backend, requests=sys.stdin, answers=answers)
    sys.stderr.flush()
    os._exit(0)  # everything is written and answered; taking MLflow's modules down would cost the user a second


def answer_requests(
    open_backend: Callable[[dict[str, Any]], TrackingBackend], *, requests: Iterable[str], answers: TextIO
) -> None:
    """Carry out requests until there are no more; a run that nobody closed has failed."""
    backend: TrackingBackend | None = None
    for line in requests:
        method, argument = json.loads(line)
        error = None
        try:
            if method == "open":
                backend = open_backend(argument)
            elif backend is not None:
                _carry_out(backend, method, argument)
            if method == "close":
                backend = None
        except Exception as failure:  # the other side raises it again
            error = f"{type(failure).__name__}: {failure}"
        try:
            print(json.dumps(error), file=answers, flush=True)
        except BrokenPipeError:  # the training process was killed while we worked
            break
    if backend is not None:
        backend.close(RunStatus.FAILED)


def _carry_out(backend: TrackingBackend, method: str, argument: Any) -> None:
    match method:
        case "write":
            backend.write([MetricRecord(**record) for record in argument])
        case "log_params":
            backend.log_params(argument)
        case "log_artifact":
            backend.log_artifact(Path(argument))
        case "close":
            backend.close(RunStatus(argument))
        case _:
            raise ValueError(f"unknown request {method!r}")
