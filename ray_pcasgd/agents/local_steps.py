"""How many mini-batches agents take from one exchange to the next: local SGD."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ray_pcasgd.base.settings import Settings, from_name

_Number = Annotated[int, Field(ge=1)]


class EqualTime(Settings):
    """Rounds that take equal time: the fastest agents take ``most`` mini-batches, slower ones as many as they come to.

    By the means of ``compute``, in live runs too: H_i = max(1, floor(most * t_min / t_i)) for t_i the seconds of agent
    i's mini-batch (dynamic local updates, Liu et al. 2024, arXiv 2401.09135).
    """

    name: Literal["equal-time"] = "equal-time"
    most: _Number
    """Mini-batches of the fastest agents' rounds."""

    def of(self, seconds: tuple[float, ...]) -> tuple[int, ...]:
        """Return H of each agent, by the mean seconds of its mini-batches.

        Raises:
            ValueError: an agent has no finite mean.

        """
        for agent, mean in enumerate(seconds):
            if not mean < float("inf"):
                raise ValueError(
                    f"local_steps.name = 'equal-time': allowed are compute times with a mean; that of agent {agent} "
                    "is infinite"
                )
        fastest = min(seconds)
        # A little more than the quotient, lest one that is a whole number be rounded to less than that.
        ratios = [fastest / mean * (1 + 1e-9) if mean else 1.0 for mean in seconds]
        return tuple(min(self.most, max(1, int(self.most * ratio))) for ratio in ratios)


def _kind(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "agents"
    named = isinstance(value, Mapping | EqualTime) or value == "equal-time"
    return "equal-time" if named else "number"


LocalSteps = Annotated[
    Annotated[EqualTime, BeforeValidator(from_name), Tag("equal-time")]
    | Annotated[tuple[_Number, ...], Tag("agents")]
    | Annotated[_Number, Tag("number")],
    Discriminator(_kind),
]
"""One number for all agents, one for each, or by their speeds."""


def longest_round(given: EqualTime | tuple[int, ...] | int) -> int:
    """Return the most mini-batches from one version of any agent to the next."""
    if isinstance(given, EqualTime):
        return given.most
    return max(given) if isinstance(given, tuple) else given
