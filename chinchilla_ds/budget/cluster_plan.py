"""The plan for a named cluster: the model first, then the fastest layout that fits, then the rest."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chinchilla_ds.budget.batching import cluster_batch_size
from chinchilla_ds.budget.checks import config_problems
from chinchilla_ds.budget.hyperparameter_rules import step_law_batch_tokens
from chinchilla_ds.budget.hyperparameters import choose_batch_tokens
from chinchilla_ds.budget.layout.search import LayoutRequest, LayoutSearch, search_layouts
from chinchilla_ds.budget.objective_cost import (
    objective_bytes,
    pay_for_objective,
    with_objective_bytes,
    with_objective_time,
)
from chinchilla_ds.budget.planner import assemble, precision_of
from chinchilla_ds.budget.report import duration_remark
from chinchilla_ds.budget.shape.choice import ModelChoice, choose_model
from chinchilla_ds.budget.shape.flops import decoder_flops_per_token
from chinchilla_ds.budget.shape.parameters import count_parameters
from chinchilla_ds.budget.speed.devices import Device, get_device
from chinchilla_ds.config import RunConfig
from chinchilla_ds.errors import ConfigError
from chinchilla_ds.objective import Objective, make_objective
from chinchilla_ds.optimizers import find_optimizer
from chinchilla_ds.run_plan import Cluster, RunPlan

HOURS_TOLERANCE = 0.005
IDLE_FACTOR = 1.25
"""How many times as long a run must take with the usual batch before a cluster takes Step Law's larger one. Ours: the
batch may change by a quarter in rounding as well."""
_MOST_ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class ClusterRequest:
    """The machines, and the constraints on the layout."""

    device: Device
    world_size: int
    devices_per_node: int
    fixed: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Values of ParallelLayout's fields and of micro_batch_size that are fixed and not searched."""


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """A plan, and the search that chose its layout."""

    plan: RunPlan
    search: LayoutSearch


def plan_on_cluster(config: RunConfig, *, request: ClusterRequest) -> ClusterPlan:
    """Return the plan whose layout is the fastest that fits the cluster.

    Raises:
        ConfigError: invalid values, an unknown law or shape.
        LayoutError: no layout fits.
        PlanError: no model for the budget.
    """
    kind = request.device.kind
    if problems := list(config_problems(config, world_size=request.world_size, device=kind)):
        raise ConfigError(problems)
    objective = make_objective(config.objective)
    choice = pay_for_objective(choose_model(config), objective=objective, config=config)
    search, objective_memory, remarks = _search_batches(config, choice=choice, request=request, objective=objective)
    best = search.best
    time = None
    if best.step_time is not None:
        time = with_objective_time(
            best.step_time,
            decoder_flops=decoder_flops_per_token(shape=choice.shape),
            objective_flops=choice.objective_flops_per_token,
        )
    made = assemble(config, choice=choice, layout=best.layout, batch=best.batch, device=kind)
    assert request.device.memory_bytes is not None, "search_layouts refuses devices without memory"
    cluster = Cluster(
        device=request.device.name,
        world_size=request.world_size,
        devices_per_node=request.devices_per_node,
        device_memory_bytes=request.device.memory_bytes,
    )
    memory = with_objective_bytes(best.memory, objective_memory)
    plan = dataclasses.replace(made, cluster=cluster, memory_bytes=memory, step_time=time)
    plan = dataclasses.replace(plan, reasons=(*plan.reasons, *remarks, *duration_remark(plan)))
    return ClusterPlan(plan=plan, search=search)


def _search_batches(
    config: RunConfig, *, choice: ModelChoice, request: ClusterRequest, objective: Objective
) -> tuple[LayoutSearch, int, tuple[str, ...]]:
    """Return the search, the objective's bytes in its layout, and what to say of the batch.

    Where the batch leaves fewer micro-batches than pipeline stages, and Step Law's is larger, a cluster that would
    otherwise idle takes that.
    """

    def searched(batch_size: int) -> tuple[LayoutSearch, int]:
        return _search(
            LayoutRequest(
                shape=choice.shape,
                precision=precision_of(config, device=request.device.kind),
                global_batch_size=batch_size,
                device=request.device,
                world_size=request.world_size,
                devices_per_node=request.devices_per_node,
                fixed=request.fixed,
                optimizer=find_optimizer(config.optimizer),
                train_iters=max(1, round(choice.wanted_tokens / (batch_size * choice.shape.seq_length))),
            ),
            objective=objective,
        )

    if config.global_batch_size is not None:
        return *searched(config.global_batch_size), ()
    num_params = count_parameters(shape=choice.shape).total
    chosen = choose_batch_tokens(num_params=num_params, num_tokens=choice.wanted_tokens)
    usual, larger = (
        cluster_batch_size(
            batch_tokens=tokens,
            wanted_tokens=choice.wanted_tokens,
            seq_length=choice.shape.seq_length,
            world_size=request.world_size,
        )
        for tokens in (chosen, step_law_batch_tokens(num_tokens=choice.wanted_tokens))
    )
    search, needed = searched(usual)
    best = search.best
    if larger <= usual or best.batch.gradient_accumulation_steps >= best.layout.pipeline_model_parallel_size:
        return search, needed, ()
    other, other_needed = searched(larger)
    slower = _seconds_per_sequence(search) / _seconds_per_sequence(other)
    if slower < IDLE_FACTOR:
        return search, needed, ()
    remark = (
        f"The batch is Step Law's, {larger} sequences: with {usual}, most of {request.world_size} devices would wait "
        f"for other pipeline stages, and the run would take {slower:.2g} times as long."
    )
    return other, other_needed, (remark,)


def _seconds_per_sequence(search: LayoutSearch) -> float:
    """Return the expected time per sequence of the best layout; 1 where the device's rates are unknown."""
    time = search.best.step_time
    return 1.0 if time is None else time.total_s / search.best.batch.global_batch_size


def _search(request: LayoutRequest, *, objective: Objective) -> tuple[LayoutSearch, int]:
    """Return the search whose best layout leaves room for the objective, and the bytes that the objective needs in it.

    They depend on the layout, so the search is repeated with the bytes for the best layout reserved, until they fit.
    """
    reserved = 0
    while True:
        search = search_layouts(dataclasses.replace(request, reserved_bytes=reserved))
        best = search.best
        needed = objective_bytes(objective, shape=request.shape, batch=best.batch, layout=best.layout)
        if needed <= reserved:
            return search, needed
        reserved = needed


def plan_on_devices(
    config: RunConfig,
    *,
    gpu: str,
    world_size: int,
    devices_per_node: int | None = None,
    hardware: Path | None = None,
    gpu_hours: float | None = None,
    mfu: float | None = None,
    explicit: frozenset[str] = frozenset(),
) -> ClusterPlan:
    """Return the plan for `world_size` devices of a named kind and a budget in FLOPs or in GPU-hours.

    Args:
        config: The user's configuration.
        gpu: The device's name; its memory must be known.
        world_size: Number of devices.
        devices_per_node: Devices per node; None: the usual number for the device.
        hardware: JSON file of devices to add.
        gpu_hours: Budget as time; None: the config's budget.
        mfu: Share of the peak at which `gpu_hours` are counted; None: the MFU of the plan's own layout.
        explicit: Names of the config fields that the user has set; those of the layout are not searched.

    Raises:
        ConfigError: invalid values, an unknown device, law or shape, or a device whose rates are unknown.
        LayoutError: no layout fits.
        PlanError: no model for the budget.
    """
    device = get_device(gpu, hardware=hardware)
    fixed: dict[str, object] = {name: getattr(config.layout, name) for name in explicit if hasattr(config.layout, name)}
    if config.micro_batch_size is not None:
        fixed["micro_batch_size"] = config.micro_batch_size
    request = ClusterRequest(
        device=device,
        world_size=world_size,
        devices_per_node=min(world_size, devices_per_node or device.devices_per_node),
        fixed=fixed,
    )
    if gpu_hours is None:
        return plan_on_cluster(config, request=request)
    if problems := list(config_problems(config, world_size=world_size, device=device.kind)):
        raise ConfigError(problems)
    if mfu is None:
        return plan_for_gpu_hours(config, request=request, gpu_hours=gpu_hours)
    budget = gpu_hour_flops(device, config=config, gpu_hours=gpu_hours, mfu=mfu)
    return plan_on_cluster(dataclasses.replace(config, compute_budget_flops=budget), request=request)


def plan_for_gpu_hours(config: RunConfig, *, request: ClusterRequest, gpu_hours: float) -> ClusterPlan:
    """Return the plan whose expected GPU-hours are `gpu_hours`: its MFU is that of its own layout.

    The budget is gpu_hours x 3600 x peak x MFU, and the MFU depends on the model for that budget: both are found by
    iteration. If the layout changes right at this budget, the nearest plan may miss the hours by a few per cent.

    Args:
        config: the user's configuration, without a budget.
        request: the cluster, and the constraints on the layout.
        gpu_hours: device-hours of all optimizer steps together.

    Raises:
        ConfigError: the device's rates are unknown.
    """
    low, high, budget = 0.0, math.inf, gpu_hour_flops(request.device, config=config, gpu_hours=gpu_hours, mfu=0.4)
    nearest: tuple[float, ClusterPlan] | None = None
    for _ in range(_MOST_ROUNDS):
        candidate = plan_on_cluster(dataclasses.replace(config, compute_budget_flops=budget), request=request)
        assert candidate.plan.wall_clock_s is not None, "gpu_hour_flops refuses devices without rates"
        factor = gpu_hours * 3600 / (candidate.plan.wall_clock_s * request.world_size)
        if nearest is None or abs(math.log(factor)) < nearest[0]:
            nearest = abs(math.log(factor)), candidate
        if nearest[0] <= HOURS_TOLERANCE:
            break
        low, high = (max(low, budget), high) if factor > 1 else (low, min(high, budget))
        budget *= factor
        if not low < budget < high:  # another layout with another speed: bisect between the nearest on either side
            budget = math.sqrt(low * high)
    assert nearest is not None
    return nearest[1]


def gpu_hour_flops(device: Device, /, *, config: RunConfig, gpu_hours: float, mfu: float) -> float:
    """Return the model FLOPs of `gpu_hours` at `mfu` of the device's dense peak.

    Args:
        device: one accelerator.
        config: gives the precision whose peak counts.
        gpu_hours: device-hours.
        mfu: model FLOPs utilisation, a share of the dense peak from 0 to 1.

    Raises:
        ConfigError: the device has no peak.
    """
    precision = precision_of(config, device=device.kind)
    peak = device.peak_flops_per_s(precision=precision)
    if peak is None:
        raise ConfigError(
            f"`gpu_hours` needs the peak {precision} rate of `gpu={device.name}`, which is not known; give "
            "`compute_budget_flops`, or a device with its rates in a `hardware` file"
        )
    return gpu_hours * 3600 * peak * mfu
