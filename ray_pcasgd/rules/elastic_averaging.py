"""Elastic averaging: workers train on their own, tied to the server's center by springs."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ray_pcasgd.rules.correction import State
from ray_pcasgd.rules.server import Delivered, ServerRule


class ElasticAveraging(ServerRule):
    """EASGD: workers train on their own, tied to a center variable by springs (Zhang, Choromanska, LeCun 2015).

    Every ``period`` steps a worker and the center move towards each other by ``e = alpha (x_i - c)``: with gathering
    ``asgd`` one worker after another (asynchronous EASGD), with ``sync`` all at once. The worker's ``c`` is the one
    before the update that takes its ``x_i``, so both sides use the same ``e``. With momentum it is EAMSGD.
    """

    name: Literal["elastic-averaging"] = "elastic-averaging"
    alpha: float = Field(0.1, gt=0, lt=1)
    """Strength of the spring, in (0, 1); the authors suggest 0.9 over the number of workers."""
    period: int = Field(4, ge=1, le=10_000)
    """Steps of a worker between exchanges."""

    workers_step: ClassVar[bool] = True
    takes_fragments: ClassVar[bool] = True
    reads_before: ClassVar[int] = 1

    @property
    def local_steps(self) -> int:
        """The period."""
        return self.period

    def check(self, num_workers: int) -> None:
        """Raise ``ValueError`` where the settings do not fit each other, or ``num_workers`` workers."""
        super().check(num_workers)
        gathering = self.gathering
        is_plain = gathering.expires is None and gathering.adapts_every is None and not gathering.grace
        if not is_plain or not gathering.waits:
            raise ValueError(
                f"gathering.name = {gathering.name!r}: allowed with elastic averaging are sync, k-async, asgd; "
                "each exchange is waited for, and none is given up"
            )
        if gathering.num_gradients(num_workers) * self.alpha > 1:
            raise ValueError(
                f"alpha = {self.alpha:g}: allowed are values up to {1 / gathering.num_gradients(num_workers):g}, one "
                "over the number of workers that move the center at once"
            )

    def begin(self, own: Tensor, center: Tensor) -> Tensor:
        """Return ``x_i - alpha (x_i - c)``."""
        return own - self.alpha * (own - center)

    def gather(self, state: State, center: Tensor, delivered: Sequence[Delivered]) -> tuple[State, Tensor]:
        """Return ``c + alpha sum_i (x_i - c)``, summed in the order of the workers."""
        moved = center
        for one in delivered:
            moved = moved + self.alpha * (one.late.gradient - center)
        return state, moved
