"""A2CiD2 in an agent that averages in pairs: its twin, and how much time has passed for it."""

from torch import Tensor

from ray_pcasgd.records import Row
from ray_pcasgd.rules.acid import ACiD, flowed


class Twin:
    """The second vector of one agent, and its clock, of which all follows from the rows that it has taken.

    Args:
        settings: A2CiD2's, with all but ``gradient_seconds`` filled in.
        weights: The agent's weights, shape (D,), where twin and weights are one.
        moment: The second of the run at which they are.

    """

    def __init__(self, settings: ACiD, weights: Tensor, moment: float = 0.0) -> None:
        assert settings.mixing_rate is not None
        assert settings.twin_step is not None
        self.settings = settings
        self.rate, self.step = settings.mixing_rate, settings.twin_step
        self.weights = weights
        """x~, shape (D,), as it was at ``moment``."""
        self.moment = moment
        """When twin and weights have last flowed into each other."""
        self.unit = settings.gradient_seconds
        """Seconds of a unit of time; ``None`` as long as the agent has computed no gradient."""

    def unit_at(self, row: Row) -> float | None:
        """Return the seconds of a unit of time once a row's gradient, if it has one, is there.

        **Choice**: the first gradient counts alone; before it, no time passes.
        """
        if self.settings.gradient_seconds is not None or row.kind != "step":
            return self.unit
        newest = max(0.0, row.ready - row.start)  # a wall clock may be set back
        return newest if self.unit is None else (self.unit + newest) / 2

    def flowed(self, weights: Tensor, row: Row, moment: float) -> tuple[Tensor, Tensor]:
        """Return weights and twin as they are at a moment of a row; nothing is changed."""
        unit = self.unit_at(row)
        units = max(0.0, moment - self.moment) / unit if unit else 0.0
        return flowed(weights, self.weights, self.rate, units)

    def flow(self, weights: Tensor, row: Row, moment: float) -> Tensor:
        """Let weights and twin flow into each other until a moment of a row; return the weights."""
        weights, self.weights = self.flowed(weights, row, moment)
        self.moment = max(self.moment, moment)
        return weights

    def average(self, weights: Tensor, partner: Tensor) -> None:
        """Take the twin's part of an averaging with a partner's weights; the agent's are those before it."""
        self.weights = self.weights - self.step * (weights - partner)


def meeting_of(row: Row) -> float:
    """Return the moment of a row at which its agent averages: who asks does so once its gradient is ready."""
    return row.end if row.kind == "passive" else row.ready
