"""Run one function on several ranks of this machine, from a test, and get every rank's result back.

Ranks are forks of the test's process: a fork starts in a fraction of a second, a fresh Python that imports torch and
DeepSpeed takes ten. The price is that the parent must stay clean: no CUDA context and no process group of its own.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

TERMINATION_GRACE_S = 2.0
"""Between SIGTERM and SIGKILL."""

_PR_SET_PDEATHSIG = 1


class RankError(RuntimeError):
    """A rank raised, or died; `__cause__` is what it raised, where that could be sent."""

    def __init__(self, *, rank: int, report: str, exception: BaseException | None = None) -> None:
        """Describe a failure.

        Args:
            rank: the rank that failed.
            report: its traceback, or how it died.
            exception: what it raised, if that could be sent.
        """
        self.rank = rank
        self.exception = exception
        super().__init__(f"rank {rank} failed:\n{report}")
        self.__cause__ = exception


class RankTimeoutError(RuntimeError):
    """Some ranks had no result when the time was over."""

    def __init__(self, *, ranks: Sequence[int], timeout_s: float) -> None:
        self.ranks = tuple(ranks)
        super().__init__(f"ranks {list(ranks)} had not finished after {timeout_s:g} s and were killed")


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """What one rank sends home."""

    failed: bool
    at_s: float
    """Monotonic clock of the machine: the rank that failed first is the one to blame, the others lost their peer."""
    result: Any = None
    exception: BaseException | None = None
    report: str = ""


@dataclass(frozen=True, kw_only=True)
class _Child:
    """A started rank; its process id is also its process group's."""

    rank: int
    pid: int
    outcome: Connection


def run_on_ranks(
    fn: Callable[..., T],
    world_size: int,
    *args: Any,
    timeout_s: float = 60.0,
    env: Mapping[str, str] | None = None,
    preload: Sequence[str] = ("deepspeed", "megatron.core.models.gpt"),
    **kwargs: Any,
) -> list[T]:
    """Return `[fn(*args, **kwargs) on rank 0, on rank 1, ...]`, each on its own process with torchrun's environment.

    `fn` starts its own process group (say with `deepspeed.init_distributed(dist_backend="gloo")`); one that is left
    open is closed after the last rank has finished. `fn` may be a closure, its result must pickle. No process
    outlives the call, nor a parent that is killed.

    Args:
        fn: what every rank runs; it finds its rank in `RANK`, or in torch.distributed once that is initialised.
        world_size: number of ranks.
        *args: passed to `fn`.
        timeout_s: after this long all ranks are killed.
        env: environment variables for the ranks, besides `RANK` and its like.
        preload: modules that the parent imports, once, before it forks.
        **kwargs: passed to `fn`.

    Raises:
        RankError: the first failure of a rank, with that rank's traceback; every other rank is killed.
        RankTimeoutError: not every rank finished in time.
    """
    if world_size < 1:
        raise ValueError(f"world_size ({world_size}) must be at least 1")
    for name in preload:
        importlib.import_module(name)
    _check_parent()
    release_reader, release_writer = Pipe(duplex=False)
    children: list[_Child] = []
    with _reserved_port() as port:
        gc.freeze()  # so that collections in a rank, which DeepSpeed asks for, leave out what it shares with the parent
        try:
            for rank in range(world_size):
                rank_env = {**(env or {}), **_rank_env(rank=rank, world_size=world_size, port=port)}
                children.append(_fork(lambda: fn(*args, **kwargs), rank, rank_env, release_reader, release_writer))
            outcomes = _collect(children, timeout_s=timeout_s)
            release_writer.close()
            _wait_for_exit(children, grace_s=TERMINATION_GRACE_S)
            return [outcomes[rank].result for rank in range(world_size)]
        finally:
            gc.unfreeze()
            release_writer.close()
            release_reader.close()
            _kill(children)
            _remove_shared_memory(port)


def _remove_shared_memory(port: int) -> None:
    """Remove what DeepSpeed's all-reduce of one machine leaves of ranks that were killed: 66 MiB each."""
    for buffer in Path("/dev/shm").glob(f"deepspeed_allreduce_buffer_*_{port}_*"):
        buffer.unlink(missing_ok=True)


def _check_parent() -> None:
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        raise RuntimeError("run_on_ranks forks, and a fork cannot use CUDA once this process has: run it earlier")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        raise RuntimeError("run_on_ranks was called inside a process group: destroy it first")


@contextlib.contextmanager
def _reserved_port() -> Iterator[int]:
    """Hold a free port, bound but not listening: no other process is given it, and rank 0's store may still bind it."""
    with socket.socket(socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _rank_env(*, rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "LOCAL_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",  # the machine's own name need not resolve
        "OMP_NUM_THREADS": "1",
    }


def _fork(
    call: Callable[[], Any],
    rank: int,
    env: Mapping[str, str],
    release_reader: Connection,
    release_writer: Connection,
) -> _Child:
    outcome_reader, outcome_writer = Pipe(duplex=False)
    sys.stdout.flush()
    sys.stderr.flush()
    parent_pid = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads: torch's pool may exist, and the ranks never touch it.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        release_writer.close()
        outcome_reader.close()
        _live_and_exit(call, env, parent_pid, outcome_writer, release_reader)
    outcome_writer.close()
    with contextlib.suppress(OSError):  # the child does it too; either may be first
        os.setpgid(pid, pid)
    return _Child(rank=rank, pid=pid, outcome=outcome_reader)


# ---- in the child ---------------------------------------------------------------------------------------------------


def _live_and_exit(
    call: Callable[[], Any], env: Mapping[str, str], parent_pid: int, outcome: Connection, release: Connection
) -> NoReturn:
    """Run `call` and report; leave by os._exit, so that nothing of the parent's (pytest's) clean-up runs here."""
    exit_code = 1
    try:
        _detach_from_parent(parent_pid)
        os.environ.update(env)
        exit_code = _run_and_report(call, outcome)
        outcome.close()
        if exit_code == 0:
            with contextlib.suppress(EOFError):
                release.recv_bytes()  # until every rank has its result: rank 0 holds the store that the others use
            _destroy_process_group()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)


def _detach_from_parent(parent_pid: int) -> None:
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):  # pytest-timeout and pytest own the parent's
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)  # the parent's thread pool did not survive the fork: waiting for it would never end


def _run_and_report(call: Callable[[], Any], outcome: Connection) -> int:
    """Send what `call` returned or raised; return the exit code."""
    try:
        message = pickle.dumps(_Outcome(failed=False, at_s=time.monotonic(), result=call()))
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures of a rank too
        at_s, report = time.monotonic(), "".join(traceback.format_exception(error))
        outcome.send_bytes(_pickle_failure(error, at_s, report))
        return 1
    outcome.send_bytes(message)
    return 0


def _pickle_failure(error: BaseException, at_s: float, report: str) -> bytes:
    try:
        message = pickle.dumps(_Outcome(failed=True, at_s=at_s, exception=error, report=report))
        pickle.loads(message)  # many exceptions can be written but not read back
    except Exception:
        return pickle.dumps(_Outcome(failed=True, at_s=at_s, report=report))
    return message


def _destroy_process_group() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# ---- in the parent --------------------------------------------------------------------------------------------------


def _collect(children: Sequence[_Child], *, timeout_s: float) -> dict[int, _Outcome]:
    """Receive every rank's outcome; raise at the first failure or when the time is over."""
    deadline_s = time.monotonic() + timeout_s
    outcomes: dict[int, _Outcome] = {}
    pending = {child.outcome: child for child in children}
    while pending:
        ready = wait(list(pending), timeout=max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise RankTimeoutError(ranks=sorted(child.rank for child in pending.values()), timeout_s=timeout_s)
        for connection in ready:
            assert isinstance(connection, Connection)
            child = pending.pop(connection)
            outcomes[child.rank] = _receive(child)
        failures = [(outcome.at_s, rank, outcome) for rank, outcome in outcomes.items() if outcome.failed]
        if failures:
            _, rank, first = min(failures, key=lambda failure: failure[0])
            raise RankError(rank=rank, report=first.report, exception=first.exception)
    return outcomes


def _receive(child: _Child) -> _Outcome:
    try:
        outcome = pickle.loads(child.outcome.recv_bytes())
    except (EOFError, OSError):  # OSError: it was killed while it sent
        # WNOWAIT leaves it a zombie, so that its id is still its own when the process group is killed.
        status = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        return _Outcome(failed=True, at_s=time.monotonic(), report=f"it died without a word: {_death(status)}")
    assert isinstance(outcome, _Outcome)
    return outcome


def _death(status: os.waitid_result | None) -> str:
    if status is None:
        return "unknown"
    if status.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
        return f"killed by {signal.Signals(status.si_status).name}"
    return f"exit code {status.si_status}"


def _wait_for_exit(children: Sequence[_Child], *, grace_s: float) -> None:
    """Wait until every child is a zombie, or the grace is over."""
    deadline_s = time.monotonic() + grace_s
    for child in children:
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if time.monotonic() > deadline_s:
                return
            time.sleep(0.005)


def _kill(children: Sequence[_Child]) -> None:
    """End every child and what it started, politely first, and reap them all."""
    alive = [c for c in children if os.waitid(os.P_PID, c.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None]
    for child in alive:
        _signal_group(child, signal.SIGTERM)
    _wait_for_exit(alive, grace_s=TERMINATION_GRACE_S)
    for child in children:
        _signal_group(child, signal.SIGKILL)
        os.waitpid(child.pid, 0)
        child.outcome.close()


def _signal_group(child: _Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)
