"""What a live run adds to the real network and the real machines."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ray_pcasgd.engines.live.commands import LinkChanges
from ray_pcasgd.schedule.barrier import Barrier
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay, LinkTimes


@dataclass(frozen=True)
class InjectedDelays:
    """What a live run adds to the real network and the real machines."""

    seed: int
    compute: ComputeTimes
    """Of which only ``stragglers`` count."""
    links: tuple[LinkDelay, ...]
    clusters: tuple[int, ...]
    barrier: Barrier
    changes: LinkChanges = field(default_factory=LinkChanges)
    """What an operator has changed about links."""

    def changed(self, changes: LinkChanges) -> "InjectedDelays":
        """Return the same with other changes."""
        return replace(self, changes=changes)

    def links_from(self, agent: int, others: Sequence[int]) -> dict[int, LinkTimes]:
        """Return the delays of what an agent sends, by who it is sent to."""
        links = (*self.links, *self.changes.entries)
        return {k: LinkTimes(links, self.clusters, self.seed, agent, k) for k in others}
