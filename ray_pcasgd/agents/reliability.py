"""Which neighbors are reliable for an agent at one step, and which are not: the sets R_i and U_i."""

from typing import Annotated, Literal

from pydantic import Field

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.records import Read


class ByStaleness(Settings):
    """A neighbor is unreliable at a step when the version that is read of it is more than ``staleness`` steps old."""

    name: Literal["measured"] = "measured"
    staleness: int | None = Field(None, ge=0)
    """Largest staleness, in steps, of a reliable neighbor. Not given: 0 in planned runs, and 1 in live ones, where
    agents of equal speed are never quite in step."""

    def reliable(self, agent: int, read: Read, clusters: tuple[int, ...]) -> bool:
        """Return whether the neighbor is reliable for this read."""
        assert self.staleness is not None
        return read.staleness <= self.staleness


class ByCluster(Settings):
    """Neighbors of the agent's own cluster are reliable, all others are not, however fresh their versions are."""

    name: Literal["declared"] = "declared"

    def reliable(self, agent: int, read: Read, clusters: tuple[int, ...]) -> bool:
        """Return whether the neighbor is reliable for this read."""
        return clusters[agent] == clusters[read.neighbor]


Reliability = Annotated[ByStaleness | ByCluster, Field(discriminator="name")]
