"""D-ASGD with importance sampling: fast agents count for what they should, not for how often they come."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe, Rule, Taken, averaged_step


class DASGDImportance(Rule):
    """D-ASGD whose direction is weighted by ``q / p`` (Du, You, Mo 2020).

    ``q`` is the agent's share of the samples among itself and its neighbors, ``p`` its share of the steps among them,
    as far as it knows theirs. **Choice**: one step is added to every agent's count, so that all start alike.
    """

    name: Literal["d-asgd-importance"] = "d-asgd-importance"
    cap: float = Field(10.0, ge=1)
    """The largest weight, 1 or more."""

    def coefficients(self, agent: int, step: int) -> dict[str, float]:
        """Return the weight before any message of the neighbors has come."""
        return {"importance": 1.0}

    def observed_coefficients(self, own: Taken, neighbors: Sequence[Taken]) -> dict[str, float]:
        """Return ``q / p``, at most ``cap``."""
        steps = sum(each.steps + 1 for each in (own, *neighbors))
        samples = sum(each.samples for each in (own, *neighbors))
        return {"importance": min(self.cap, own.samples * steps / (samples * (own.steps + 1)))}

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``w_ii x_i + sum_k w_ik x_k - eta (q / p) u_i``."""
        weight = own.coefficients["importance"]
        weighted = own._replace(direction=weight * own.direction)
        return state, Update(averaged_step(own.mixing, reads.mixing, weighted, reads), {"importance": weight})
