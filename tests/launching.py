"""Real runs under the deepspeed launcher, each in a session of its own, of which no process may be left."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ROOT / "launchers/pretrain.py"
TIMEOUT_S = 200.0
GONE_S = 30.0
"""For the last process to leave, once the command has; a second on an idle machine."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over."""

    exit_code: int
    text: str
    """Standard output and error."""
    seconds: float = 0.0
    """From the signal to the last process's end."""


def write_corpus(path: Path) -> Path:
    """Write 1.5 MB of text, and return where."""
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    path.write_bytes(b"".join(module.read_bytes() for module in modules))
    return path


def launch(
    *flags: object, folder: Path, ranks: int | None, script: Path = LAUNCHER, ds: str = "zero3", **env: str
) -> "subprocess.Popen[str]":
    """Start a run in a session of its own; `ranks` None starts it without the launcher."""
    command = [sys.executable, str(script)]
    if ranks is not None:
        deepspeed = Path(sys.executable).with_name("deepspeed")
        command = [str(deepspeed), "--num_gpus", str(ranks), "--master_port", str(free_port()), str(script)]
    command += ["--ds_config", str(ROOT / "ds_configs" / f"{ds}.json"), *map(str, flags)]
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_SIZE")}
    return subprocess.Popen(
        command,
        cwd=folder,
        env=clean | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}", "PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(run: "subprocess.Popen[str]") -> Ended:
    """Wait for a run and check that no process of its session is left; whatever happens, none stays."""
    with nobody_stays(run):
        text, _ = run.communicate(timeout=TIMEOUT_S)
        wait_until_gone(run)
    return Ended(exit_code=run.returncode, text=text)


def interrupt(
    run: "subprocess.Popen[str]", number: signal.Signals, *, after: str, group: bool = False, rank: int | None = None
) -> Ended:
    """Send a signal, once a line with `after` has been printed: to the command, to all as Ctrl-C does, or to a rank."""
    with nobody_stays(run):
        assert run.stdout is not None
        lines: list[str] = []
        for line in run.stdout:
            lines.append(line)
            if after in line:
                break
        assert any(after in line for line in lines), "".join(lines)
        sent_s = time.monotonic()
        (os.killpg if group else os.kill)(run.pid if rank is None else _process_of(run, rank), number)
        rest, _ = run.communicate(timeout=TIMEOUT_S)
        wait_until_gone(run)
        seconds = time.monotonic() - sent_s
    return Ended(exit_code=run.returncode, text=rest, seconds=seconds)


def _process_of(run: "subprocess.Popen[str]", rank: int) -> int:
    for process in session_of(run.pid):
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{process}/cmdline").read_bytes()
            if f"RANK={rank}".encode() in environment and b"--local_rank" in command:
                return process
    raise AssertionError(f"rank {rank} is not there")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def session_of(leader: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(ProcessLookupError, ValueError):
            if os.getsid(int(entry)) == leader:
                found.append(int(entry))
    return found


def wait_until_gone(run: "subprocess.Popen[str]") -> None:
    deadline_s = time.monotonic() + GONE_S
    while left := session_of(run.pid):
        assert time.monotonic() < deadline_s, f"processes {left} were left behind"
        time.sleep(0.1)
    buffers = [name for name in os.listdir("/dev/shm") if f"_{_port_of(run)}_" in name]
    assert not buffers, f"{buffers} were left in shared memory"


def _port_of(run: "subprocess.Popen[str]") -> str | None:
    """Return the port that the launcher was given, which DeepSpeed names its shared memory by."""
    command = run.args
    assert isinstance(command, list)
    return command[command.index("--master_port") + 1] if "--master_port" in command else None


@contextlib.contextmanager
def nobody_stays(run: "subprocess.Popen[str]") -> Iterator[None]:
    try:
        yield
    finally:
        for process in session_of(run.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        run.wait()
