"""A2CiD2, the continuous momentum of pairs that average (Nabli, Belilovsky, Oyallon, NeurIPS 2023)."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field

from ray_pcasgd.base.settings import Settings

if TYPE_CHECKING:  # plans of pairs need no tensor
    from torch import Tensor


class ACiD(Settings):
    """A2CiD2: each agent has a second vector, its twin, towards which its weights flow all the time, and back.

    Between two events of an agent ``dx = eta (x~ - x) dt`` and ``dx~ = eta (x - x~) dt``; when i and k average,
    ``x_i <- x_i - (x_i - x_k) / 2`` and ``x~_i <- x~_i - alpha~ (x_i - x_k)``; both lose the same ``gamma u_i`` at a
    step (arXiv 2306.08289, eq. 4 and algorithm 1). Messages hold ``x`` alone. With ``mixing_rate: 0`` it is AD-PSGD.

    **Choice**: each gradient of an agent that asks is followed by one averaging, as at the rate of 1 that the paper's
    experiments have unless they say another, where the number is drawn; other rates are no setting. The half of an
    averaging that is its asker's counts from the moment at which this asks, the other from the moment at which the
    request comes; what flows meanwhile on the way is so left out. A lost agent that comes back takes the mean of its
    neighbors' weights, and that of their twins.
    """

    name: Literal["acid"] = "acid"
    mixing_rate: float | None = Field(None, ge=0)
    """eta, in units of 1 over a mean gradient's time. Not given: ``1 / (2 sqrt(chi1 chi2))``, of the graph and of how
    often its edges average."""
    twin_step: float | None = Field(None, ge=0)
    """alpha~, the twin's part of a difference. Not given: ``sqrt(chi1 / chi2) / 2``."""
    gradient_seconds: float | None = Field(None, gt=0)
    """Seconds that are one unit of time. Not given: in planned runs the mean of what ``compute`` says of the agents; in
    live runs, and replays of a schedule, each agent's own mean, in which its newest gradient counts half. Only where
    it is the same for all agents the sums of all weights, and of all twins, change by the agents' steps alone; their
    sum does so always."""


class Connectivity(NamedTuple):
    """How well the averaging of pairs connects a graph (section 3.2 of the paper)."""

    chi1: float
    """Units of time in which averaging as a whole brings all agents together: ``1 / lambda_2`` of the Laplacian."""
    chi2: float
    """Half the largest effective resistance of an edge, in units of time; at most ``chi1``."""

    @property
    def mixing_rate(self) -> float:
        """Return eta."""
        return 1 / (2 * math.sqrt(self.chi1 * self.chi2))

    @property
    def twin_step(self) -> float:
        """Return alpha~."""
        return math.sqrt(self.chi1 / self.chi2) / 2


def connectivity(num_agents: int, rates: Mapping[tuple[int, int], float]) -> Connectivity:
    """Return the two constants of a connected graph of two or more agents.

    Args:
        num_agents: N.
        rates: How often the two agents of each edge average in a unit of time, above 0.

    """
    laplacian = np.zeros((num_agents, num_agents))
    for (i, k), rate in rates.items():
        laplacian[[i, k], [i, k]] += rate
        laplacian[[i, k], [k, i]] -= rate
    inverse = np.linalg.pinv(laplacian, hermitian=True)
    resistances = [inverse[i, i] + inverse[k, k] - 2 * inverse[i, k] for i, k in rates]
    return Connectivity(1 / float(np.linalg.eigvalsh(laplacian)[1]), float(max(resistances)) / 2)


def flowed(weights: "Tensor", twin: "Tensor", mixing_rate: float, units: float) -> "tuple[Tensor, Tensor]":
    """Return weights and twin, each of shape (D,), after the flow of some units of time.

    That is ``exp(t [[-eta, eta], [eta, -eta]])`` applied to them, so that their sum stays.
    """
    share = -math.expm1(-2 * mixing_rate * units) / 2
    if share == 0:
        return weights, twin
    moved = share * (twin - weights)
    return weights + moved, twin - moved
