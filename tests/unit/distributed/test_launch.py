"""Places from environments as the tools set them: SLURM 22.05, Open MPI 4.1, MPICH 4.0 and torchrun 2.13, recorded."""

import pytest

from chinchilla_ds.distributed.launch import LaunchError, Place, rank_of, read_place, settle, without_launcher
from chinchilla_ds.errors import ConfigError

ADDRESS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
BATCH = {  # a batch script of two tasks; it is one process
    "SLURM_JOB_ID": "3", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "2",
    "SLURM_NPROCS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_GTIDS": "0", "SLURM_JOB_NODELIST": "vm",
}  # fmt: skip
SALLOC = {"SLURM_JOB_ID": "4", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_JOB_NODELIST": "vm"}


def srun(rank: int, tasks: int = 2, *, per_node: str = "", node: int = 0, local: int | None = None) -> dict[str, str]:
    return BATCH | {
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank if local is None else local), "SLURM_NODEID": str(node),
        "SLURM_NTASKS": str(tasks), "SLURM_NPROCS": str(tasks), "SLURM_STEP_ID": "0", "SLURM_STEPID": "0",
        "SLURM_STEP_NUM_TASKS": str(tasks), "SLURM_STEP_TASKS_PER_NODE": per_node or str(tasks),
        "SLURM_STEP_NODELIST": "vm",
    }  # fmt: skip


def open_mpi(rank: int) -> dict[str, str]:
    return {
        "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_NODE_RANK": str(rank), "PMIX_RANK": str(rank),
    }  # fmt: skip


def hydra(rank: int) -> dict[str, str]:
    """MPICH's and Intel MPI's mpiexec."""
    return {"PMI_RANK": str(rank), "PMI_SIZE": "2", "PMI_FD": "8", "MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": "2"}


def torchrun(rank: int, *, machines: int = 1) -> dict[str, str]:
    return ADDRESS | {
        "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": str(2 * machines), "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": str(rank // 2), "GROUP_WORLD_SIZE": str(machines), "ROLE_RANK": str(rank),
        "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


def deepspeed(rank: int, *, machines: int = 1) -> dict[str, str]:
    return ADDRESS | {
        "RANK": str(rank), "LOCAL_RANK": str(rank % 2), "WORLD_SIZE": str(2 * machines), "LOCAL_SIZE": "2",
        "CROSS_RANK": str(rank // 2), "CROSS_SIZE": str(machines),
    }  # fmt: skip


def place(rank: int, launcher: str) -> Place:
    return Place(rank=rank, world_size=2, local_rank=rank, local_size=2, launcher=launcher)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        (srun, "srun"),
        (lambda rank: srun(rank) | {"PMI_RANK": str(rank), "PMI_SIZE": "2", "PMI_JOBID": "5.0"}, "mpiexec"),  # pmi2
        (open_mpi, "mpirun"),
        (lambda rank: BATCH | open_mpi(rank), "mpirun"),
        (hydra, "mpiexec"),
        (lambda rank: srun(0, 1) | {"SLURM_NTASKS": "2"} | hydra(rank), "mpiexec"),  # whose proxies came by srun
        (torchrun, "torchrun"),
        (deepspeed, "deepspeed"),
        (lambda rank: BATCH | deepspeed(rank), "deepspeed"),
        (lambda rank: srun(0, 1) | torchrun(rank), "torchrun"),
        # deepspeed --launcher mpich and impi: the sizes are given, and the ranks, to helpers or directly
        (lambda rank: hydra(rank) | {"WORLD_SIZE": "2", "LOCAL_SIZE": "2"}, "mpiexec"),
        (lambda rank: hydra(rank) | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}, "mpiexec"),
        (lambda rank: srun(rank) | {"RANK": str(rank), "WORLD_SIZE": "2"}, "srun"),  # a wrapper that says the same
    ],
)
def test_the_place_of_a_task(variables, launcher: str, rank: int) -> None:
    environ = variables(rank) | ADDRESS
    assert read_place(environ) == place(rank, launcher)
    assert rank_of(environ) == rank
    assert settle(environ) == place(rank, launcher)
    settled = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_SIZE": "2"} | ADDRESS
    assert settled.items() <= environ.items()
    assert "OMPI_COMM_WORLD_LOCAL_RANK" not in environ, "DeepSpeed asserts that it equals LOCAL_RANK"
    assert read_place(environ).rank == rank


@pytest.mark.parametrize(
    "variables",
    [{}, BATCH, SALLOC, srun(0, 1), ADDRESS, {"WORLD_SIZE": "1"}, {"RANK": "0", "WORLD_SIZE": "1"}, BATCH | ADDRESS],
    ids=["alone", "sbatch", "salloc", "srun-pty", "address", "size", "rank", "sbatch-address"],
)
def test_one_process_of_its_own(variables: dict[str, str]) -> None:
    environ = dict(variables)
    found = settle(environ)
    assert (found.rank, found.world_size, found.local_rank, found.local_size) == (0, 1, 0, 1)
    assert environ["RANK"] == "0"
    assert environ["WORLD_SIZE"] == "1"


@pytest.mark.parametrize(
    ("per_node", "node", "size"),
    [("2(x3),1", 0, 2), ("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("4,3(x2)", 1, 3), ("8", 0, 8)],
)
def test_how_many_tasks_srun_has_put_on_this_machine(per_node: str, node: int, size: int) -> None:
    environ = srun(1, 16, per_node=per_node, node=node, local=0) | ADDRESS
    assert read_place(environ).local_size == size


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (srun, "srun started 2 tasks, and MASTER_ADDR and MASTER_PORT, where they meet, are not set: "
               "export MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 before srun"),
        (open_mpi, "mpirun -x MASTER_ADDR=127.0.0.1 -x MASTER_PORT=29500 ..."),
        (hydra, "mpiexec -genv MASTER_ADDR 127.0.0.1 -genv MASTER_PORT 29500 ..."),
        (lambda rank: srun(rank) | {"MASTER_ADDR": "node1"}, "MASTER_PORT, where they meet, is not set"),
    ],
)  # fmt: skip
def test_several_tasks_without_a_place_to_meet_are_refused_in_one_line(variables, line: str, rank: int) -> None:
    with pytest.raises(LaunchError) as refused:
        read_place(variables(rank))
    (problem,) = refused.value.problems
    assert line in problem
    assert rank_of(variables(rank)) == rank, "so that one of them says it"


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("node[01-04]", "node01"), ("a,b", "a"), ("gpu-7.x", "gpu-7.x"), ("r[1-2]n[3,5]", "$(scontrol show hostnames")],
)
def test_the_first_machine_of_a_node_list(nodes: str, host: str) -> None:
    environ = srun(1, 8, per_node="4(x2)") | {"SLURM_STEP_NODELIST": nodes}
    with pytest.raises(LaunchError) as refused:
        read_place(environ)
    assert f"export MASTER_ADDR={host}" in str(refused.value)


@pytest.mark.parametrize(
    ("variables", "parts"),
    [
        (srun(1) | {"RANK": "0", "WORLD_SIZE": "2"}, ["RANK is 0 and SLURM_PROCID is 1", "unset RANK"]),
        (srun(0) | {"RANK": "0", "WORLD_SIZE": "1"}, ["WORLD_SIZE is 1 and SLURM_STEP_NUM_TASKS is 2"]),
        (open_mpi(1) | {"LOCAL_RANK": "0"}, ["LOCAL_RANK is 0 and OMPI_COMM_WORLD_LOCAL_RANK is 1"]),
        (torchrun(0) | {"LOCAL_SIZE": "4"}, ["LOCAL_SIZE is 4 and LOCAL_WORLD_SIZE is 2"]),
        (srun(0) | torchrun(0), ["srun started 2 tasks, and each of them runs torchrun for one", "2 independent"]),
        (srun(1) | deepspeed(0), ["each of them runs deepspeed for one machine"]),
        ({"RANK": "0"} | ADDRESS, ["RANK is set and WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE not"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE is set and RANK"]),
        ({"RANK": "1", "WORLD_SIZE": "2"} | ADDRESS, ["LOCAL_RANK=0 LOCAL_SIZE=1"]),
        (deepspeed(0) | {"RANK": "2"}, ["RANK is 2 and WORLD_SIZE is 2", "counted from 0"]),
        (deepspeed(0) | {"LOCAL_SIZE": "3"}, ["LOCAL_SIZE is 3 and WORLD_SIZE is 2"]),
        (deepspeed(0) | {"MASTER_PORT": "http"}, ["MASTER_PORT is 'http', which is not a whole number"]),
        (deepspeed(0) | {"MASTER_PORT": "70000"}, ["MASTER_PORT is 70000; a port lies in 1 to 65535"]),
        (deepspeed(0) | {"WORLD_SIZE": "two"}, ["WORLD_SIZE is 'two', which is not a whole number"]),
        (deepspeed(0) | {"RANK": "-1"}, ["RANK is '-1'"]),
        (srun(0) | {"SLURM_STEP_TASKS_PER_NODE": "many"}, ["SLURM_STEP_TASKS_PER_NODE is 'many'"]),
    ],
)  # fmt: skip
def test_what_contradicts_itself_or_is_incomplete_is_refused(variables: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        read_place(variables if "MASTER_PORT" in variables else variables | ADDRESS)
    for part in parts:
        assert part in str(refused.value)


def test_one_torchrun_or_deepspeed_per_machine_below_srun_is_one_run() -> None:
    for launcher in (torchrun, deepspeed):
        found = read_place(srun(1, 2, per_node="1(x2)", node=1, local=0) | launcher(3, machines=2))
        assert (found.rank, found.world_size, found.local_rank, found.local_size) == (3, 4, 1, 2)
        assert not found.on_one_machine


@pytest.mark.parametrize("variables", [srun(1), open_mpi(1), hydra(1), torchrun(1), deepspeed(1)])
def test_a_run_of_its_own_below_a_task(variables: dict[str, str]) -> None:
    cleaned = without_launcher(variables | {"PATH": "/bin"})
    assert read_place(cleaned) == Place()
    assert cleaned["PATH"] == "/bin"


def test_a_rank_that_contradicts_itself_speaks() -> None:
    assert rank_of(srun(1) | {"RANK": "0", "WORLD_SIZE": "2"} | ADDRESS) == 0
    assert rank_of({"RANK": "1"}) == 1
    assert rank_of({"RANK": "x"}) == 0
