"""Whether a run's agents fit into this machine's memory, asked before any of them is made."""

import os
from pathlib import Path

import torch

from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.server import ServerRule

_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""Of the container that the process is in, where it is in one."""

_MEMINFO = Path("/proc/meminfo")


def require_memory(config: Config, num_parameters: int) -> None:
    """Raise ``ValueError`` where all of this machine's memory is less than a run on it keeps in any case.

    Of the local engine's GPU it is that one's memory. Nothing is said of GPUs that this process does not have, and of
    clusters that the run does not start itself.
    """
    engine = config.engine
    if isinstance(engine, LocalSettings) and engine.device != "cpu":
        if not torch.cuda.is_available():
            return
        of_gpu = torch.cuda.get_device_properties(engine.device).total_memory
        check_memory(config, num_parameters, of_gpu, "this GPU")
    elif _is_on_this_machine(config) and (total := machine_bytes()) is not None:
        check_memory(config, num_parameters, total)


def check_memory(config: Config, num_parameters: int, total_bytes: int, where: str = "this machine") -> None:
    """Raise ``ValueError`` where a run of models with so many trained parameters keeps more than ``total_bytes``."""
    each = 4 * num_parameters * least_vectors(config)
    servers = 4 * num_parameters * _vectors_of_servers(config)
    need = config.num_agents * each + servers
    if need <= total_bytes:
        return
    fitting = int(max(0, total_bytes - servers) // each)
    allowed = f"num_agents up to {fitting}, or a smaller task.model" if fitting else "a smaller task.model"
    algorithm = config.algorithm
    # Prediction by own drift has no other form of it.
    keeps_path = isinstance(algorithm, Rule) and algorithm.needs_drift and algorithm.drift_form == "exact"
    if keeps_path and isinstance(algorithm, Rule) and algorithm.drift_kind == "mean":
        allowed += "; algorithm.drift = 'velocity' takes less"
    raise ValueError(
        f"num_agents = {config.num_agents}: agents of {num_parameters:,} parameters each keep at least "
        f"{each / 1e9:.3g} GB, {4 * least_vectors(config):g} bytes a parameter, in all {need / 1e9:.3g} GB; "
        f"{where} has {total_bytes / 1e9:.3g} GB; allowed is {allowed}"
    )


def least_vectors(config: Config) -> int:
    """Return how many float32 numbers a parameter an agent keeps in any case from step to step.

    What comes on top is not here: gradients while they are computed, the next version, old versions, what is received.
    So this is less than any run takes; docs/memory.md has what was measured.
    """
    algorithm, optimizer = config.algorithm, config.optimizer
    # Momentum that is not Nesterov's has the direction itself for its velocity.
    is_direction = isinstance(optimizer, SGD) and not optimizer.nesterov
    state = 0 if is_direction else optimizer.state_vectors
    if isinstance(algorithm, ServerRule):
        # The replica and the gradient; the weights may be those that the server has published.
        return 2 + (state if algorithm.workers_step else 0) + algorithm.vectors_of_workers
    # The replica, the present version and the direction; and what a sparse format has left out of the latter.
    sends = isinstance(algorithm, Rule) and algorithm.needs_directions and not algorithm.reads_displacements
    sparse = sends and config.wire.directions.is_sparse
    # Those of neighbors lie on the local engine with these, and come on top on actors.
    public_copy = isinstance(algorithm, Rule) and algorithm.sends_differences
    found = 3 + state + sparse + public_copy
    if not isinstance(algorithm, Rule) or not algorithm.needs_drift or config.num_agents == 1:
        return found
    if algorithm.drift_form == "velocity":
        return found + 1
    # Two sums in float64 for the mean; old versions are counted by nobody.
    return found + (4 if algorithm.drift_kind == "mean" else 0)


def _vectors_of_servers(config: Config) -> int:
    """Return how many numbers a parameter all servers keep together."""
    algorithm, optimizer = config.algorithm, config.optimizer
    if not isinstance(algorithm, ServerRule):
        return 0
    table = 0 if algorithm.gathering.averages == "gradients" else config.num_agents
    own = algorithm.state_vectors if algorithm.workers_step else optimizer.state_vectors
    return 1 + table + algorithm.takes_epochs + own


def machine_bytes() -> int | None:
    """Return this machine's memory with its swap space, or what its container may take; ``None``: it is not known."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _swap_bytes()
    try:
        return min(total, int(_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # there is no container, or it may take all
        return total


def _swap_bytes() -> int:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal:"))


def _is_on_this_machine(config: Config) -> bool:
    engine = config.engine
    if isinstance(engine, LocalSettings):
        return True
    from ray_pcasgd.engines.ray.cluster import RayCluster

    return engine.gpus_per_agent == 0 and RayCluster(engine).is_started_here
