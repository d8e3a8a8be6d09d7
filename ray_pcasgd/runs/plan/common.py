"""Who takes part in a run, and by which schedule: what each family of algorithms makes of the settings."""

from typing import NamedTuple

from ray_pcasgd.agents.participant import LearnerSpec
from ray_pcasgd.schedule.scheduler import Schedule
from ray_pcasgd.schedule.topology import Network


class Roster(NamedTuple):
    """Who takes part in a run, and by which schedule."""

    network: Network | None
    """Between peers; ``None`` with a server."""
    clusters: tuple[int, ...]
    """The cluster of each agent, servers included."""
    specs: tuple[LearnerSpec, ...]
    """Of all agents; servers come last."""
    schedule: Schedule
