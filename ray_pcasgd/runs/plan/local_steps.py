"""The rounds of a run: its local steps, agent by agent."""

from ray_pcasgd.agents.local_steps import EqualTime
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.config import Config
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.rules.elastic_averaging import ElasticAveraging
from ray_pcasgd.rules.server import ServerRule


def check_local_steps(config: Config) -> None:
    """Raise ``ValueError`` where local steps have no meaning with the run's algorithm, or not for its agents."""
    given, name = config.local_steps, config.algorithm.name
    if given == 1:
        return
    value = list(given) if isinstance(given, tuple) else given if isinstance(given, int) else given.name
    setting = f"local_steps = {value!r}: allowed with algorithm.name = {name!r} is 1"
    if isinstance(config.algorithm, ElasticAveraging):
        raise ValueError(f"{setting}; its local steps are algorithm.period")
    takes_rounds = isinstance(config.algorithm, ServerRule) and config.algorithm.takes_rounds
    if not isinstance(config.algorithm, Rule) and not takes_rounds:
        kind = "pairs meet after each step" if isinstance(config.algorithm, ADPSGD) else "workers send every gradient"
        raise ValueError(f"{setting}; {kind}")
    if isinstance(config.algorithm, Rule) and config.algorithm.corrects_gradients:
        raise ValueError(f"{setting}; it corrects every gradient by what was read")
    if isinstance(given, tuple) and len(given) != config.num_agents:
        raise ValueError(f"local_steps = {value}: allowed is one number for each of the {config.num_agents} agents")


def check_overlap(config: Config) -> None:
    """Raise ``ValueError`` where agents would combine first, or would not, and the algorithm is defined otherwise."""
    algorithm, overlap = config.algorithm, config.overlap
    setting = f"overlap = {str(overlap).lower()}: allowed with algorithm.name = {algorithm.name!r} is"
    if not isinstance(algorithm, Rule):
        if overlap is not None:
            raise ValueError(f"{setting} null; it is for rules between peers")
        return
    if overlap and algorithm.combines_first:
        raise ValueError(f"{setting} false, or null for its own")
    if overlap is False and algorithm.corrects_gradients:
        raise ValueError(f"{setting} true; it corrects gradients by what comes while they are computed")
    if overlap is False and algorithm.reading == "every":
        raise ValueError(f"{setting} true; shares of mass are taken in at a round's end")


def check_pairs(config: Config) -> None:
    """Raise ``ValueError`` where agents that meet in random pairs cannot all meet, or wait for what is held back."""
    if not (isinstance(config.algorithm, Rule) and config.algorithm.meets_in_pairs):
        return
    allowed = f"allowed with algorithm.name = {config.algorithm.name!r} is"
    if config.topology.name != "complete":
        raise ValueError(f"topology.name = {config.topology.name!r}: {allowed} complete; any two agents may meet")
    for place, link in enumerate(config.links):
        if link.unit == "steps" and config.schedule is None:
            raise ValueError(
                f"links.{place}.unit = 'steps': {allowed} seconds, or a delay such as 10s; partners change every round"
            )


def rounds_of(config: Config) -> Rounds:
    """Return which mini-batches lie between the agents' versions.

    Raises:
        ValueError: a round is longer than the run, or agents have no mean speed by which to set their rounds.

    """
    given, agents = config.local_steps, range(config.num_agents)
    if isinstance(given, EqualTime):
        steps = given.of(tuple(config.compute.mean(agent) for agent in agents))
    else:
        steps = given if isinstance(given, tuple) else (given,) * config.num_agents
    # A list of ones is the run without local steps, and its agents are stacked as those are.
    rounds = Rounds(config.num_steps, steps if max(steps) > 1 else ())
    if not rounds.are_single and rounds.longest > config.num_steps:
        setting = "local_steps.most" if isinstance(given, EqualTime) else "local_steps"
        raise ValueError(f"{setting} = {rounds.longest}: allowed are 1 to num_steps = {config.num_steps}")
    return rounds


def steps_of_workers(config: Config, rule: ServerRule) -> tuple[int, ...]:
    """Return the mini-batches of each worker's message: the run's local steps, or the rule's own.

    Raises:
        ValueError: as ``rounds_of`` says.

    """
    if rule.takes_rounds:
        return rounds_of(config).local_steps or (1,) * config.num_agents
    return (rule.local_steps,) * config.num_agents
