"""Whether settings fit together, each told in a line that names one of them, its value and what is allowed."""

import torch

from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.plan.faults import check_faults
from ray_pcasgd.runs.plan.fitting import fitting_optimizer
from ray_pcasgd.runs.plan.local_steps import (
    check_local_steps,
    check_overlap,
    check_pairs,
)
from ray_pcasgd.runs.plan.own import check_algorithm, try_out_own
from ray_pcasgd.runs.plan.pairs import check_pair_settings
from ray_pcasgd.runs.plan.servers import check_membership_of_workers, check_server_settings
from ray_pcasgd.runs.plan.wire import check_wire
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.schedule.membership import away_times


def check_settings(config: Config) -> None:
    """Raise ``ValueError`` where settings have no meaning, or none together."""
    if isinstance(config.algorithm, ServerRule):
        check_server_settings(config, config.algorithm)
    if isinstance(config.algorithm, ADPSGD):
        check_pair_settings(config)
    else:
        check_algorithm(config.algorithm, config.num_agents)
    check_local_steps(config)
    check_overlap(config)
    check_pairs(config)
    check_wire(config)
    try_out_own(config)
    step_size = fitting_optimizer(config).step_size
    if step_size is not None and (lowest := min(step_size.extremes())) < 0:
        raise ValueError(f"step_size = {lowest:g}: allowed are values from 0 on")
    _check_precision(config)
    _check_servers_gpus(config)
    check_faults(config)
    if config.accumulate > config.batch_size:
        raise ValueError(f"accumulate = {config.accumulate}: allowed are 1 to batch_size = {config.batch_size}")
    kept = config.checkpoint
    metrics = ["loss", *(metric.key for metric in config.task.measured)]
    # What a function of the user's measures is known once it was tried out.
    if kept.score is not None and kept.score not in metrics and not config.task.has_own_figures:
        raise ValueError(f"checkpoint.score = {kept.score!r}: allowed are {', '.join(metrics)}")
    for setting, value in (("score", kept.score), ("num_to_keep", kept.num_to_keep)):
        if value is not None and kept.every_evaluations is None:
            raise ValueError(f"checkpoint.{setting} = {value!r}: allowed with checkpoint.every_evaluations only")


def _check_precision(config: Config) -> None:
    """Raise ``ValueError`` where agents would compute with fp16 on a CPU."""
    if config.precision != "fp16":
        return
    engine = config.engine
    place, value, allowed = (
        ("engine.device", engine.device, "cuda")
        if isinstance(engine, LocalSettings)
        else ("engine.gpus_per_agent", f"{engine.gpus_per_agent:g}", "a number above 0")
    )
    if value in ("cpu", "0"):
        raise ValueError(
            f"precision = 'fp16': allowed on CPUs, as with {place} = {value}, are float32 and bf16; on GPUs, with "
            f"{place} = {allowed}, also fp16"
        )


def _check_servers_gpus(config: Config) -> None:
    """Raise ``ValueError`` where GPUs are asked for servers that an algorithm does not have."""
    engine, algorithm = config.engine, config.algorithm
    if isinstance(engine, RaySettings) and engine.gpus_per_server is not None and not isinstance(algorithm, ServerRule):
        raise ValueError(
            f"engine.gpus_per_server = {engine.gpus_per_server:g}: allowed with algorithm.name = {algorithm.name!r}, "
            "which has no servers, is null"
        )


def check_device(device: str) -> None:
    """Raise ``SettingsError`` where this machine does not have such a GPU."""
    if device == "cpu":
        return
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not number:
        raise SettingsError(f"engine.device = {device!r}: allowed on this machine is 'cpu'; it has no GPU")
    if (torch.device(device).index or 0) >= number:
        there = "'cuda:0', its only GPU" if number == 1 else f"'cuda:0' to 'cuda:{number - 1}', its GPUs"
        raise SettingsError(f"engine.device = {device!r}: allowed on this machine are 'cpu', 'cuda' and {there}")


def check_live_network(config: Config) -> None:
    """Raise ``SettingsError`` where a live run is given bandwidths."""
    given: list[tuple[str, object]] = [
        (f"links.{place}.bandwidth", link.bandwidth) for place, link in enumerate(config.links) if link.bandwidth
    ]
    for place, host in enumerate(config.hosts):
        given += [(f"hosts.{place}.{name}", value) for name, value in (("up", host.up), ("down", host.down)) if value]
    given += [(f"regions.{name}", list(agents)) for name, agents in config.regions.items()]
    for setting, value in given[:1]:
        raise SettingsError(f"{setting} = {value!r}: allowed in planned runs; a live run's network has its own")


def check_membership(config: Config) -> None:
    """Raise ``SettingsError`` where agents cannot leave and come back as the settings say."""
    if not config.membership or config.schedule is not None:
        return
    if isinstance(config.algorithm, ServerRule) and config.algorithm.gathering.averages == "latest":
        raise SettingsError(
            f"membership: allowed with gathering.name = {config.algorithm.gathering.name!r} is an empty list; the last "
            "gradient of who leaves would stay in the table, and count in every update"
        )
    if isinstance(config.engine, RaySettings) and config.engine.mode == "live":
        _check_live_membership(config, config.engine)
        return
    algorithm = config.algorithm
    if isinstance(algorithm, ServerRule):
        try:
            check_membership_of_workers(config, algorithm)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return
    exchange = algorithm.exchange if isinstance(algorithm, Rule) else None
    sends_differences = isinstance(algorithm, Rule) and algorithm.sends_differences
    if exchange is None or exchange.reading != "newest" or exchange.waits_for_partners or sends_differences:
        raise SettingsError(
            f"membership: allowed with algorithm.name = {algorithm.name!r} is an empty list; who leaves and comes back "
            "is planned for workers of a server, and for peers that send each version to all of their neighbors, "
            "as those of pc-asgd do"
        )


def _check_live_membership(config: Config, engine: RaySettings) -> None:
    """Raise ``SettingsError`` where agents cannot leave a live run and come back as the settings say."""
    algorithm = config.algorithm
    num_servers = algorithm.shards if isinstance(algorithm, ServerRule) else 0
    try:
        away = away_times(config.membership, config.num_agents, num_servers)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if {one.agent for one in away if one.leaves == 0} == set(range(config.num_agents)):
        raise SettingsError("membership: allowed with engine.mode = 'live' is that an agent is there at the start")
    if both := sorted({one.agent for one in away} & set(engine.join_later)):
        raise SettingsError(
            f"engine.join_later = {list(engine.join_later)}: allowed are agents of which membership does not say when "
            f"they are there, as it does of {both[0]}"
        )


def check_join_later(config: Config, engine: RaySettings) -> None:
    """Raise ``SettingsError`` where the run is not live, or does not have the agents that join later."""
    setting = f"engine.join_later = {list(engine.join_later)}"
    if engine.mode != "live":
        raise SettingsError(f"{setting}: allowed in live runs alone")
    absent = set(engine.join_later)
    if not absent < set(range(config.num_agents)):
        raise SettingsError(f"{setting}: allowed are some of the agents 0 to {config.num_agents - 1}, not all")
