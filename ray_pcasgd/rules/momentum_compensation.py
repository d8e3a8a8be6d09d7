"""Nesterov's acceleration at a server whose gradients come late: momentum compensation.

Fang, Huang, Lin, 'Accelerating Asynchronous Algorithms for Convex Optimization by Momentum Compensation' (2018, arXiv
1802.09747).
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ray_pcasgd.base.settings import Settings

if TYPE_CHECKING:  # settings need no tensor
    from torch import Tensor


class MomentumCompensation(Settings):
    """Nesterov's momentum, whose known part workers are sent ahead of time.

    ``y^k = x^k + a^k (x^k - x^{k-1})`` and ``x^{k+1} = y^k - gamma g``, with a gradient g that was computed at
    ``w^j = y^j + B(j+1, j+tau) (y^j - x^j)``, ``B(l, k) = sum_{i=l..k} prod_{q=l..i} a^q``: by then momentum alone
    takes ``y^j`` there, whatever steps others take meanwhile (arXiv 1802.09747). With tau = 0 it is Nesterov's method.

    **Choice**: tau is the delay that is to be expected, not that of each gradient, which nobody knows beforehand; and
    ``a^k = (k - 1) / (k + 2)`` for convex losses, from ``theta^k = 2 / (k + 2)``.
    """

    name: Literal["momentum-compensation"] = "momentum-compensation"
    momentum: float | None = Field(None, ge=0, lt=1)
    """a, constant, in [0, 1): ``(1 - sqrt q) / (1 + sqrt q)`` where the loss's curvatures are at least q times the
    largest. Not given: ``(k - 1) / (k + 2)`` at update k, which rises towards 1."""
    delay: int | None = Field(None, ge=0, le=10_000)
    """tau, in updates. Not given: P - 1 with ``asgd``, whose mean it is, and 0 with ``sync``."""
    compensate: bool = True
    """Whether workers are sent ``w``; else ``y``, which is Nesterov's method under delay."""

    def factor(self, update: int) -> float:
        """Return a^k, 0 at the first update."""
        if update == 0:
            return 0.0
        return (update - 1) / (update + 2) if self.momentum is None else self.momentum

    def ahead(self, update: int, delay: int) -> float:
        """Return ``B(j+1, j+tau)`` of an update j."""
        total, product = 0.0, 1.0
        for later in range(update + 1, update + delay + 1):
            product *= self.factor(later)
            total += product
        return total

    def extrapolated(self, weights: "Tensor", before: "Tensor", update: int) -> "Tensor":
        """Return ``y^k`` of ``x^k`` and ``x^{k-1}``, each of shape (D,)."""
        return weights + self.factor(update) * (weights - before)

    def sent(self, weights: "Tensor", before: "Tensor", update: int, delay: int) -> "Tensor":
        """Return where a worker computes that reads version k, shape (D,)."""
        y = self.extrapolated(weights, before, update)
        return y + self.ahead(update, delay) * (y - weights) if self.compensate and delay else y
