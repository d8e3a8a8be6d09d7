"""Which runs may have attackers, and which attacks."""

from ray_pcasgd.config import Config
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.bridge import Bridge
from ray_pcasgd.rules.kardam import Kardam
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.schedule.network import Network
from ray_pcasgd.tasks.ray_stream import StreamedImages
from ray_pcasgd.tasks.samples import TaskData


def check_faults(config: Config) -> None:
    """Raise ``ValueError`` where a run cannot have the attackers that it is given."""
    faults, algorithm = config.faults, config.algorithm
    if faults is None:
        return
    absent = set(faults.agents) - set(range(config.num_agents))
    if absent or len(faults.agents) == config.num_agents:
        raise ValueError(
            f"faults.agents = {list(faults.agents)}: allowed are some of the agents 0 to {config.num_agents - 1}, not "
            "all"
        )
    named, attack = f"algorithm.name = {algorithm.name!r}", faults.attack.name
    if isinstance(algorithm, ServerRule):
        if faults.attack.reads_others and algorithm.takes_epochs:
            raise ValueError(
                f"faults.attack.name = {attack!r}: allowed with {named}, whose messages are full gradients and "
                "differences of others, are sign-flip, noise, label-flip and stale-replay"
            )
    elif not isinstance(algorithm, Rule) or algorithm.reading == "every" or algorithm.sends_differences:
        raise ValueError(
            f"faults: allowed with {named} is null; attackers are planned for servers' workers, and for peers that "
            "send whole versions of their weights, as those of bridge and d-asgd do"
        )
    if config.wire.fragments > 1:
        raise ValueError(f"wire.fragments = {config.wire.fragments}: allowed with faults is 1")


def too_many_attackers(config: Config, network: Network | None) -> tuple[str, ...]:
    """Return a line where more agents attack than the screen, or Kardam, is told to stand."""
    algorithm, faults = config.algorithm, config.faults
    if faults is None:
        return ()
    stands, number, where = None, len(faults.agents), ""
    if isinstance(algorithm, Bridge) and network is not None:
        stands = "algorithm.attackers", algorithm.attackers
        honest = sorted(set(range(config.num_agents)) - set(faults.agents))
        worst = max(honest, key=lambda agent: len(set(network.neighbors[agent]) & set(faults.agents)))
        number, where = (
            len(set(network.neighbors[worst]) & set(faults.agents)),
            f" among the neighbors of agent {worst}",
        )
    elif isinstance(algorithm, ParameterServer) and algorithm.screen is not None:
        stands = "algorithm.attackers", algorithm.num_attackers
    elif isinstance(algorithm, ParameterServer) and isinstance(algorithm.correction, Kardam):
        stands = "algorithm.correction.attackers", algorithm.correction.attackers
    if stands is None or number <= stands[1]:
        return ()
    return (f"faults.agents = {list(faults.agents)}: {number} attack{where}; {stands[0]} = {stands[1]} are stood",)


def check_labels(config: Config, data: TaskData) -> None:
    """Raise ``ValueError`` where labels are to be flipped, and there are none."""
    if config.faults is None or not config.faults.attack.flips_labels:
        return
    if data.num_classes is None or not data.are_pairs or isinstance(data.train, StreamedImages):
        raise ValueError(
            f"faults.attack.name = {config.faults.attack.name!r}: allowed are data of inputs and their classes, which "
            "are not streamed"
        )
