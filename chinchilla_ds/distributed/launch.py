"""The rank of this process and the number of ranks: the one module that reads launchers' variables.

Every launcher sets its own variables. `read_place` reads them all, follows the innermost launcher, and
refuses incomplete or contradictory ones; `settle` then writes RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE,
MASTER_ADDR and MASTER_PORT, which torch and DeepSpeed read.

Innermost first:

- `deepspeed` and torchrun set RANK and related variables, and marks of their own. A launcher around them, such as an
  srun that starts one torchrun per machine, counts machines.
- RANK and related variables without such marks were set by hand, and must agree with the launchers below.
- Open MPI, MVAPICH and the Hydra of MPICH and Intel MPI. They may have used srun to start a daemon per machine.
- srun. SLURM_STEP_NUM_TASKS and SLURM_PROCID together prove a task: a batch script or a shell of salloc also has
  SLURM_NTASKS and even SLURM_PROCID, and is one process.
"""

import os
import re
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass

from chinchilla_ds.errors import ConfigError

LOOPBACK = "127.0.0.1"
_FIELDS = ("rank", "world_size", "local_rank", "local_size")
_OWN = {
    "rank": ("RANK",),
    "world_size": ("WORLD_SIZE",),
    "local_rank": ("LOCAL_RANK",),
    "local_size": ("LOCAL_SIZE", "LOCAL_WORLD_SIZE"),
}
"""Variables set by `deepspeed` and torchrun, or by hand."""
_MARKS = {"deepspeed": ("CROSS_RANK", "CROSS_SIZE"), "torchrun": ("TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE")}
"""Variables that only a process started by one of these has; the second is the number of machines."""


class LaunchError(ConfigError):
    """The launcher's variables are incomplete; every rank has the same problem, so only one reports it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a process among all ranks."""

    rank: int = 0
    """Index among all ranks."""
    world_size: int = 1
    """All ranks."""
    local_rank: int = 0
    """Index among the ranks of its machine."""
    local_size: int = 1
    """Number of ranks on its machine."""
    launcher: str = ""
    """The launcher, for messages; empty for a process without one."""

    @property
    def on_one_machine(self) -> bool:
        """Whether every rank is on this machine."""
        return self.local_size == self.world_size


@dataclass(frozen=True, kw_only=True)
class _Launcher:
    """A launcher of tasks: the variables of each field, and how to pass a variable to every task."""

    name: str
    variables: Mapping[str, tuple[str, ...]]
    export: str


_LAUNCHERS = (
    _Launcher(
        name="mpirun",
        variables={
            "rank": ("OMPI_COMM_WORLD_RANK",),
            "world_size": ("OMPI_COMM_WORLD_SIZE",),
            "local_rank": ("OMPI_COMM_WORLD_LOCAL_RANK",),
            "local_size": ("OMPI_COMM_WORLD_LOCAL_SIZE",),
        },
        export="mpirun -x MASTER_ADDR={host} -x MASTER_PORT=29500 ...",
    ),
    _Launcher(
        name="mpirun",
        variables={
            "rank": ("MV2_COMM_WORLD_RANK",),
            "world_size": ("MV2_COMM_WORLD_SIZE",),
            "local_rank": ("MV2_COMM_WORLD_LOCAL_RANK",),
            "local_size": ("MV2_COMM_WORLD_LOCAL_SIZE",),
        },
        export="mpirun -env MASTER_ADDR {host} -env MASTER_PORT 29500 ...",
    ),
    _Launcher(
        name="mpiexec",
        variables={
            "rank": ("PMI_RANK",),
            "world_size": ("PMI_SIZE",),
            "local_rank": ("MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"),
            "local_size": ("MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"),
        },
        export="mpiexec -genv MASTER_ADDR {host} -genv MASTER_PORT 29500 ...",
    ),
    _Launcher(
        name="srun",
        variables={
            "rank": ("SLURM_PROCID",),
            "world_size": ("SLURM_STEP_NUM_TASKS",),
            "local_rank": ("SLURM_LOCALID",),
            "local_size": ("SLURM_STEP_TASKS_PER_NODE",),
        },
        export="export MASTER_ADDR={host} MASTER_PORT=29500 before srun",
    ),
)
_Claims = dict[str, tuple[str, int]]
"""The variable of each field, and its value."""


def settle(environ: MutableMapping[str, str] = os.environ) -> Place:
    """Return this process's place, and set the variables that torch and DeepSpeed read; alone, it is rank 0 of 1.

    The variables of MPI and SLURM tasks are then removed: processes started by this one (a tracker, another run) are
    not tasks of that launcher.

    Raises:
        LaunchError: several tasks do not know where to meet, or a variable is missing or invalid.
        ConfigError: variables contradict each other.
    """
    place = read_place(environ)
    for launcher in _LAUNCHERS:
        for name in (name for names in launcher.variables.values() for name in names):
            environ.pop(name, None)
    if place.world_size == 1:  # no rendezvous: no port is opened
        environ.setdefault("MASTER_ADDR", LOOPBACK)
        environ.setdefault("MASTER_PORT", "29500")
    settled = {
        "RANK": place.rank,
        "WORLD_SIZE": place.world_size,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_SIZE": place.local_size,
    }
    environ.update({name: str(value) for name, value in settled.items()})
    return place


def read_place(environ: Mapping[str, str] = os.environ) -> Place:
    """Return the place of a process with these variables.

    Raises:
        LaunchError: several tasks do not know where to meet, or a variable is missing or invalid.
        ConfigError: variables contradict each other.
    """
    own = _claims(_OWN, environ)
    launcher, tasks = _task_launcher(environ)
    marked = next((name for name, marks in _MARKS.items() if all(mark in environ for mark in marks)), None)
    if marked is not None and "rank" in own:
        _check_one_world(marked, environ, launcher=launcher, tasks=tasks)
        launcher, tasks = None, {}
    if own and tasks.get("world_size", ("", 1))[1] == 1:  # a single task may start its own ranks by hand
        launcher, tasks = None, {}
    _check_agreement(own, tasks, launcher=launcher)
    claims = tasks | own
    if not launcher and not _says_several(own):
        return Place()
    place = _complete(claims, launcher=launcher, started_by=marked or "")
    if place.world_size > 1:
        _check_address(environ, place=place, launcher=launcher)
    return place


def rank_of(environ: Mapping[str, str] = os.environ) -> int:
    """Return the rank for messages: this process's own, or 0 if its variables contradict each other."""
    try:
        return read_place(environ).rank
    except ConfigError:
        names = ("RANK", *(launcher.variables["rank"][0] for launcher in _LAUNCHERS))
        ranks = {environ[name] for name in names if environ.get(name, "").isdecimal()}
        return int(ranks.pop()) if len(ranks) == 1 else 0


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a process that is a separate run, whatever started this one."""
    launched = [names for launcher in _LAUNCHERS for names in launcher.variables.values()]
    lists = [*_OWN.values(), *_MARKS.values(), *launched, ("MASTER_ADDR", "MASTER_PORT")]
    set_by_launchers = {name for names in lists for name in names}
    return {name: value for name, value in environ.items() if name not in set_by_launchers}


# ---- reading ---------------------------------------------------------------------------------------------------------


def _claims(variables: Mapping[str, tuple[str, ...]], environ: Mapping[str, str]) -> _Claims:
    """Return the fields set by the variables; those of one field must agree.

    Raises:
        LaunchError: one is not a whole number.
        ConfigError: two for the same field differ.
    """
    claims: _Claims = {}
    for field, names in variables.items():
        for name in names:
            if not environ.get(name):
                continue
            claim = name, _number(name, environ)
            if claims.setdefault(field, claim)[1] != claim[1]:
                raise ConfigError(_contradiction(claims[field], claim))
    return claims


def _number(name: str, environ: Mapping[str, str]) -> int:
    text = environ[name]
    if name == "SLURM_STEP_TASKS_PER_NODE":  # 2(x3),1: three machines of two tasks, one of one
        counts = [
            int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text) for _ in range(int(times or 1))
        ]
        text = str(dict(enumerate(counts)).get(int(environ.get("SLURM_NODEID", "0")), text))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise LaunchError(f"environment variable {name} is {text!r}, which is not a whole number")
    return int(text)


def _task_launcher(environ: Mapping[str, str]) -> tuple[_Launcher | None, _Claims]:
    """Return the innermost launcher of tasks; an outer one that agrees with it may supply missing fields."""
    innermost: _Launcher | None = None
    combined: _Claims = {}
    for launcher in _LAUNCHERS:
        if not all(environ.get(launcher.variables[field][0]) for field in ("rank", "world_size")):
            continue
        claims = _claims(launcher.variables, environ)
        if innermost is None:
            innermost, combined = launcher, claims
        elif all(claims[field][1] == combined[field][1] for field in ("rank", "world_size")):
            combined = claims | combined
    return innermost, combined


# ---- refusing --------------------------------------------------------------------------------------------------------


def _contradiction(first: tuple[str, int], other: tuple[str, int]) -> str:
    return f"environment variables contradict each other: {first[0]} is {first[1]} and {other[0]} is {other[1]}"


def _check_agreement(own: _Claims, tasks: _Claims, *, launcher: _Launcher | None) -> None:
    if launcher is None:
        return
    problems = [
        f"{_contradiction(own[field], tasks[field])}; {launcher.name} started this process, so unset {own[field][0]}, "
        "or set it for each task"
        for field in _FIELDS
        if field in own and field in tasks and own[field][1] != tasks[field][1]
    ]
    if problems:
        raise ConfigError(problems)


def _check_one_world(marked: str, environ: Mapping[str, str], *, launcher: _Launcher | None, tasks: _Claims) -> None:
    """Refuse a single-machine `deepspeed` or torchrun in each of several tasks: these would be separate runs."""
    machines, started = environ[_MARKS[marked][1]], tasks.get("world_size", ("", 1))[1]
    if launcher is not None and started > 1 and machines == "1":
        raise LaunchError(
            f"{launcher.name} started {started} tasks, and each of them runs {marked} for one machine: that would be "
            f"{started} independent runs; start {marked} once per machine and pass it all machines, or, for "
            f"separate runs, start it with `env -u {launcher.variables['rank'][0]} {marked} ...`"
        )


def _says_several(own: _Claims) -> bool:
    """Return whether variables set by hand describe more than a single process."""
    alone = {"world_size": 1, "local_rank": 0, "local_size": 1}
    return "rank" in own or any(own[field][1] != value for field, value in alone.items() if field in own)


def _complete(claims: _Claims, *, launcher: _Launcher | None, started_by: str) -> Place:
    """Return the place described by the variables.

    Raises:
        LaunchError: a field is missing, or out of its range.
    """
    values = {field: value for field, (_, value) in claims.items()}
    if values.get("world_size") == 1:
        values = {"rank": 0, "local_rank": 0, "local_size": 1} | values
    missing = [_OWN[field][0] for field in _FIELDS if field not in values]
    if missing:
        there = ", ".join(name for name, _ in claims.values())
        raise LaunchError(
            f"{there} {'is' if len(claims) == 1 else 'are'} set and {', '.join(missing)} not: start with `deepspeed "
            "launchers/pretrain.py ...` or torchrun, which set all of them, or unset them for a run of one rank"
            + (" (with one process per machine, LOCAL_RANK=0 LOCAL_SIZE=1)" if "LOCAL_SIZE" in missing else "")
        )
    problems = list(_range_problems(values, names={field: claims[field][0] for field in claims}))
    if problems:
        raise LaunchError(problems)
    return Place(**values, launcher=launcher.name if launcher else started_by)


def _range_problems(values: Mapping[str, int], *, names: Mapping[str, str]) -> Iterator[str]:
    for lower, upper in (("rank", "world_size"), ("local_rank", "local_size")):
        if values[lower] >= values[upper]:
            yield (
                f"environment variable {names.get(lower, lower)} is {values[lower]} and {names.get(upper, upper)} is "
                f"{values[upper]}: ranks are counted from 0, so the last of {values[upper]} is {values[upper] - 1}"
            )
    if values["local_size"] > values["world_size"]:
        yield (
            f"environment variable {names.get('local_size')} is {values['local_size']} and {names.get('world_size')} "
            f"is {values['world_size']}: a machine cannot hold more ranks than there are"
        )


def _check_address(environ: Mapping[str, str], *, place: Place, launcher: _Launcher | None) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environ.get(name)]
    if missing and launcher is not None:
        given = launcher.export.format(host=_first_host(environ, place=place, launcher=launcher))
        raise LaunchError(
            f"{launcher.name} started {place.world_size} tasks, and {' and '.join(missing)}, where they meet, "
            f"{'is' if len(missing) == 1 else 'are'} not set: {given}; for {place.world_size} separate runs, start "
            f"each with `env -u {launcher.variables['rank'][0]} python launchers/pretrain.py ...`"
        )
    if missing:
        raise LaunchError(
            f"RANK is set and {', '.join(missing)} not: start with `deepspeed launchers/pretrain.py ...`, which sets "
            "all of them, or unset RANK for a run of one rank"
        )
    if not 0 < _number("MASTER_PORT", environ) < 1 << 16:
        raise LaunchError(f"environment variable MASTER_PORT is {environ['MASTER_PORT']}; a port lies in 1 to 65535")


def _first_host(environ: Mapping[str, str], *, place: Place, launcher: _Launcher) -> str:
    """Return rank 0's machine if known, or a command that prints it."""
    if place.on_one_machine:
        return LOOPBACK
    if launcher.name != "srun":
        return "HOST_OF_RANK_0"
    matched = re.match(r"([\w.-]+?)(?:\[(\d+)[^\]]*\])?(?:,|$)", environ.get("SLURM_STEP_NODELIST", ""))
    if matched is None:
        return '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
    return matched[1] + (matched[2] or "")
