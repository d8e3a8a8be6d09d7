"""A rule of one's own: the staler a neighbor's version is, the less it counts."""

from typing import Any, Literal

import torch
from pydantic import Field

from ray_pcasgd.records import Own, Reads, Update
from ray_pcasgd.rules.base import Probe, Rule, mix


class Fading(Rule):
    """The mixing weight of a neighbor fades with its staleness; the agent itself gets the difference."""

    name: Literal["fading"] = "fading"
    half_life: float = Field(4.0, gt=0)
    """Steps of staleness after which a neighbor counts half."""

    def step(self, state: Any, own: Own, reads: Reads, probe: Probe | None = None) -> tuple[Any, Update]:
        """Return ``w'_ii x_i + sum_k w_ik 2**(-tau/half_life) x_k - eta u_i``."""
        kept = reads.mixing * torch.exp2(-reads.staleness / self.half_life)
        own_mixing = own.mixing
        for k in range(kept.shape[0]):
            own_mixing = own_mixing + (reads.mixing[k] - kept[k])
        mixed = mix(own_mixing, own.weights, kept, reads.weights)
        return state, Update(mixed - own.step_size * own.direction, {"kept": kept.sum()})
