"""AD-PSGD: its settings, and who asks whom (Lian et al., ICML 2018)."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.rules.acid import ACiD


class ADPSGD(Settings):
    """AD-PSGD: once its gradient is ready, an agent averages with one random neighbor, then takes its own step.

    ``x_i, x_k <- (x_i + x_k) / 2`` as one act, then ``x_i <- x_i - eta u_i``, with ``u_i`` at the weights that i had
    when it began to compute. Only active agents ask, only passive ones are asked, at any moment: no agent that waits
    is itself waited for, so there is no deadlock (section 4 of the paper).
    """

    name: Literal["ad-psgd"] = "ad-psgd"
    acceleration: Annotated[ACiD | None, BeforeValidator(from_name)] = None
    """``acid`` adds A2CiD2's continuous momentum, for graphs of few edges; not given: none."""


def draw_partner(seed: int, agent: int, step: int, partners: tuple[int, ...]) -> int | None:
    """Return which agent another one asks at its own step of that number; ``None`` where there is no agent to ask."""
    if not partners:
        return None
    return partners[int(generator(seed, "partner", agent, step).integers(len(partners)))]
