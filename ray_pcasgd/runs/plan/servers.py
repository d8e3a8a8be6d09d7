"""What a run with servers needs in addition to a run between peers: checks, and a schedule."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ray_pcasgd.agents.local_momentum_worker import LocalMomentumWorkerSpec
from ray_pcasgd.agents.local_optimizer import LocalOptimizer
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.server import ServerSpec
from ray_pcasgd.agents.server_recipe import ServerRecipe
from ray_pcasgd.agents.snapshot_worker import SnapshotWorkerSpec
from ray_pcasgd.agents.worker import WorkerSpec
from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Read, Row
from ray_pcasgd.rules.fedglomo import FedGLOMO
from ray_pcasgd.rules.gatherer import Position, has_expired
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.rules.shared_memory import Adversarial
from ray_pcasgd.rules.svrg import SVRG
from ray_pcasgd.runs.plan.common import ModelSize, Roster, check_agents, planned_timing, recorded_rows
from ray_pcasgd.runs.plan.local_steps import steps_of_workers
from ray_pcasgd.runs.plan.wire import check_parts
from ray_pcasgd.schedule.adversary import AdversaryPlanner
from ray_pcasgd.schedule.churn_servers import ChurningServerPlanner
from ray_pcasgd.schedule.info import ScheduleInfo
from ray_pcasgd.schedule.membership import away_times
from ray_pcasgd.schedule.plan_servers import ServerPlanner
from ray_pcasgd.schedule.row_log import RowLog
from ray_pcasgd.schedule.scheduler import Schedule


def check_server_settings(config: Config, rule: ServerRule) -> None:
    """Raise ``ValueError`` where a setting has no meaning with a server."""
    if config.barrier is not None and config.barrier.name != "none":
        raise ValueError(
            f"barrier.name = {config.barrier.name!r}: allowed with a server is none; algorithm.gathering says who is "
            "waited for"
        )
    optimizer = config.optimizer
    if not optimizer.elementwise and rule.shards > 1:
        raise ValueError(
            f"algorithm.shards = {rule.shards}: allowed with an optimizer that looks at all parameters at once is 1"
        )
    if isinstance(optimizer, SGD) and optimizer.braking is not None and rule.shards > 1:
        raise ValueError(
            f"optimizer.braking = {optimizer.braking:g}: allowed with algorithm.shards = "
            f"{rule.shards} is null, since it looks at whole tensors"
        )
    if isinstance(rule.gathering, Adversarial):
        _check_adversary(config, rule)
    if optimizer.senses_momentum and (told := _hides_momentum(rule)):
        raise ValueError(
            f"optimizer.closed_loop = true: allowed with {told} is false; the total momentum is measured where each "
            "update is the gradients that came for it, each computed at one version"
        )
    if isinstance(rule, ParameterServer) and rule.nesterov and not _is_plain(optimizer):
        raise ValueError(
            f"optimizer{_told(optimizer)}: allowed with algorithm.nesterov.name = "
            f"{rule.nesterov.name!r} is sgd without momentum, which it has itself"
        )
    if isinstance(rule, SVRG | FedGLOMO):
        _check_differences(config)
    if isinstance(rule, FedGLOMO) and not _is_plain(optimizer):
        raise ValueError(
            f"optimizer{_told(optimizer)}: allowed with algorithm.name = {rule.name!r} is sgd without momentum, since "
            "its local steps have a momentum of their own"
        )
    if config.on_non_finite_loss == "isolate":
        raise ValueError(
            "on_non_finite_loss = 'isolate': allowed with a server is stop; all workers compute at its weights"
        )


def _hides_momentum(rule: ServerRule) -> str | None:
    """Return what makes an update another thing than the gradients that came for it, if anything does."""
    if isinstance(rule, SVRG):
        return f"algorithm.name = {rule.name!r}"
    if isinstance(rule, ParameterServer) and rule.gathering.averages != "gradients":
        return f"gathering.name = {rule.gathering.name!r}"
    if isinstance(rule, ParameterServer) and rule.view is not None:
        return f"view.delay = {rule.view.delay}"
    if isinstance(rule, ParameterServer) and rule.screen is not None:
        return f"screen.name = {rule.screen.name!r}"
    return None


def _is_plain(optimizer: LocalOptimizer) -> bool:
    return isinstance(optimizer, SGD) and optimizer.momentum == 0


def _told(optimizer: LocalOptimizer) -> str:
    """Return which of an optimizer's settings makes it more than plain SGD, behind ``optimizer``."""
    if isinstance(optimizer, SGD):
        return f".momentum = {optimizer.momentum:g}"
    return f".name = {getattr(optimizer, 'name', '')!r}"


def _check_differences(config: Config) -> None:
    """Raise ``ValueError`` where a setting would spoil differences of gradients, or there is no whole shard."""
    rule = config.algorithm
    allowed = f"allowed with algorithm.name = {rule.name!r} is"
    if (clipping := config.gradient_clipping) is not None:
        kind, most = ("value", clipping.value) if clipping.norm is None else ("norm", clipping.norm)
        raise ValueError(
            f"gradient_clipping.{kind} = {most:g}: {allowed} gradient_clipping = null, since it takes differences of "
            "gradients"
        )
    if config.precision == "fp16":
        raise ValueError(f"precision = 'fp16': {allowed} float32 or bf16")
    if isinstance(rule, FedGLOMO) and rule.first == "batch":
        return
    if getattr(config.task.data, "streamed", False):
        instead = ", or algorithm.first = 'batch'" if isinstance(rule, FedGLOMO) else ""
        raise ValueError(f"task.data.streamed = true: {allowed} false{instead}; full gradients need whole shards")


def _check_adversary(config: Config, rule: ServerRule) -> None:
    """Raise ``ValueError`` where a setting has no meaning with the adversary, which plans all by itself."""
    allowed = "allowed with gathering.name = 'adversarial' is"
    if not isinstance(rule, ParameterServer):
        raise ValueError(f"algorithm.name = {config.algorithm.name!r}: {allowed} server")
    if rule.shards > 1:
        raise ValueError(f"algorithm.shards = {rule.shards}: {allowed} 1")
    if config.engine.name == "ray" and config.engine.mode == "live":
        raise ValueError(f"engine.mode = 'live': {allowed} planned")
    if config.schedule is not None:
        return
    for setting, given in (("links", config.links), ("hosts", config.hosts), ("membership", config.membership)):
        if given:
            raise ValueError(f"{setting}: {allowed} an empty list; nobody is late but whom it holds back")
    if config.regions:
        raise ValueError(f"regions: {allowed} an empty mapping; nobody is late but whom it holds back")


def check_membership_of_workers(config: Config, rule: ServerRule) -> None:
    """Raise ``ValueError`` where it cannot be planned who of the workers leaves and comes back."""
    gathering = rule.gathering
    named = f"gathering.name = {gathering.name!r}"
    if gathering.adapts_every is not None:
        raise ValueError(
            f"membership: allowed with {named} is an empty list; who leaves is planned before any loss is known"
        )
    # One that is back begins anew at all servers, which may be at different updates: then each could wait for a worker
    # that waits for another server.
    if rule.shards > 1 and gathering.waits and gathering.num_gradients(config.num_agents) > 1:
        raise ValueError(
            f"membership: allowed with {named} and shards = {rule.shards} is an empty list; with one server, or where "
            "workers do not wait for others, as with asgd or k-batch-async, they may leave and come back"
        )


def server_roster(
    config: Config,
    rule: ServerRule,
    training: Mapping[str, Any],
    clusters: tuple[int, ...],
    shards: Sequence[np.ndarray],
    size: ModelSize,
) -> Roster:
    """Return a run's workers and servers.

    Raises:
        ValueError: timing or a recorded schedule does not fit the run.

    """
    clusters = (*clusters, *[clusters[0]] * rule.shards)
    batches = tuple(-(-len(shard) // config.batch_size) for shard in shards)
    rule = rule.fitted(sum(batches))
    check_agents(config, len(clusters))
    _check_length(config, rule)
    shares = rule.shares([len(shard) for shard in shards])
    recipe = ServerRecipe(
        **training, rule=rule, local_steps=steps_of_workers(config, rule), shares=shares, wire=config.wire
    )
    check_parts(config.wire.fragments, min(recipe.sizes(size.parameters)), "the parameters that a server has")
    schedule = _schedule(config, rule, clusters, batches, _message_bytes(recipe, size))
    engine = config.engine
    on_cpu = isinstance(engine, RaySettings) and engine.gpus_per_server == 0
    of_servers = replace(recipe, device="cpu") if on_cpu else recipe
    workers, servers = (tuple(range(config.num_agents)), tuple(range(config.num_agents, len(clusters))))
    worker = _kind_of_workers(rule)
    specs = (
        *(worker(agent=k, recipe=recipe, neighbors=servers, shard=shards[k]) for k in workers),
        *(ServerSpec(agent=s, recipe=of_servers, neighbors=workers, shard=shards[0][:0]) for s in servers),
    )
    return Roster(None, clusters, specs, schedule)


def _check_length(config: Config, rule: ServerRule) -> None:
    """Raise ``ValueError`` where one update would take more than the run has."""
    if config.schedule is not None:
        return  # which says what each update takes
    gathering, workers = rule.gathering, config.num_agents
    allowed = f"allowed with num_steps = {config.num_steps} and num_agents = {workers} are"
    mini_batches = config.num_steps * workers
    if isinstance(gathering, Adversarial):
        if gathering.delay >= mini_batches:
            raise ValueError(f"algorithm.gathering.delay = {gathering.delay}: {allowed} 1 to {mini_batches - 1}")
        return
    most = max(workers, -(-mini_batches // min(steps_of_workers(config, rule))))
    number = max(gathering.num_gradients(workers), math.ceil(gathering.harmonic * workers))
    if number > most:
        raise ValueError(
            f"algorithm.gathering.name = {gathering.name!r}: takes {number} gradients for one update; {allowed} up to "
            f"{most}, which are the whole run"
        )


def _kind_of_workers(rule: ServerRule) -> type[WorkerSpec]:
    if isinstance(rule, FedGLOMO):
        return LocalMomentumWorkerSpec
    return WorkerSpec if rule.gathering.epoch is None else SnapshotWorkerSpec


def _message_bytes(recipe: ServerRecipe, size: ModelSize) -> dict[str, tuple[int, ...]]:
    """Return the bytes of a worker's message to each server, and of each server's message to a worker."""
    sizes = [recipe.fragments.length(n) for n in recipe.sizes(size.parameters)]
    weights, sent = ([form.num_bytes(n) for n in sizes] for form in (recipe.wire.weights, recipe.format_of_workers))
    sent = [recipe.rule.message_vectors * one for one in sent]
    # Buffers and workers' own tensors are the first server's.
    weights[0] += 4 * size.buffers
    sent[0] += 4 * size.buffers + size.own_bytes
    return {"weights_bytes": tuple(weights), "gradient_bytes": tuple(sent)}


def _schedule(
    config: Config,
    rule: ServerRule,
    clusters: tuple[int, ...],
    shard_batches: tuple[int, ...],
    message_bytes: Mapping[str, Any],
) -> Schedule:
    if config.schedule is not None:
        return recorded_rows(config, partial(_fitted, config, rule))
    if isinstance(rule.gathering, Adversarial):
        own = planned_timing(config, clusters)
        return AdversaryPlanner(**own, num_workers=config.num_agents, delay=rule.gathering.delay)
    timing = {**planned_timing(config, clusters), **message_bytes}
    timing |= {
        "num_workers": config.num_agents,
        "num_servers": rule.shards,
        "gathering": rule.gathering,
        "local_steps": steps_of_workers(config, rule),
        "reads_before": rule.reads_before,
        "gradients": tuple(map(rule.num_gradients, steps_of_workers(config, rule), shard_batches)),
        "shard_batches": shard_batches if rule.gathering.epoch else (),
    }
    away = away_times(config.membership, config.num_agents, rule.shards)
    return ChurningServerPlanner(**timing, away=away) if away else ServerPlanner(**timing)


def _fitted(config: Config, rule: ServerRule, rows: RowLog, info: ScheduleInfo) -> Iterator[Row]:
    """Yield the rows that the run executes: until each server has taken all steps.

    Raises:
        ValueError: the schedule has other workers, is too short, or a row reads what a run with servers does not.

    """
    if info.num_agents != config.num_agents:
        raise ValueError(f"num_agents = {config.num_agents}: allowed with the schedule is {info.num_agents}")
    first, steps = config.num_agents, steps_of_workers(config, rule)
    everybody = range(first + rule.shards)
    last: dict[int, int] = {}
    for server in range(first, first + rule.shards):
        position = Position(steps)
        for row in rows:
            if row.agent == server and position.steps < config.num_steps:
                position.advance(read.neighbor for read in row.reads)
                last[server] = row.step
        if position.steps < config.num_steps:
            raise ValueError(
                f"num_steps = {config.num_steps}: allowed with the schedule is up to {position.steps}, what "
                "its server takes"
            )
    for row in rows:
        strangers = [agent for agent in (row.agent, *(read.neighbor for read in row.reads)) if agent not in everybody]
        if strangers:
            raise ValueError(
                f"schedule = {config.schedule!r}: has the agent {strangers[0]} at step {row.step}, neither worker nor "
                f"server; allowed are 0 to {len(everybody) - 1}"
            )
        if row.agent < first and row.reads and len({read.neighbor for read in row.reads}) < rule.shards:
            raise ValueError(
                f"schedule = {config.schedule!r}: agent {row.agent} at step {row.step} reads "
                f"{len(row.reads)} server(s); allowed are all {rule.shards}"
            )
        if any((read.neighbor < first) == (row.agent < first) for read in row.reads):
            raise ValueError(
                f"schedule = {config.schedule!r}: agent {row.agent} at step {row.step} reads an agent of its own kind; "
                "allowed are servers that read workers, and workers that read servers"
            )
        if row.agent >= first:
            if row.step <= last[row.agent]:
                if rule.gathering.epoch is not None:
                    _check_epochs(config, rule, row)
                yield row
        elif any(read.version <= last[read.neighbor] + 1 for read in row.reads):
            yield row._replace(reads=tuple(_up_to(read, last[read.neighbor] + 1) for read in row.reads))


def _check_epochs(config: Config, rule: ServerRule, row: Row) -> None:
    """Raise ``ValueError`` where an update takes what was computed before its epoch, or before its snapshot."""
    gathering = rule.gathering
    if any(has_expired(gathering, row.step - read.staleness, row.step) for read in row.reads):
        raise ValueError(
            f"schedule = {config.schedule!r}: update {row.step} takes what was computed before its epoch; allowed "
            f"with algorithm.name = {config.algorithm.name!r} are schedules of runs with as many updates an epoch, "
            f"{gathering.epoch}, the first of which waits for all workers"
        )


def _up_to(read: Read, final: int) -> Read:
    """Return what a worker reads of a server whose last version is ``final``: others may go on longer."""
    version = min(read.version, final)
    return read._replace(version=version, staleness=min(read.version + read.staleness, final) - version)
