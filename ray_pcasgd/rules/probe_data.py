"""Where a rule that probes candidates on mini-batches gets those from."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ray_pcasgd.base.imports import ObjectOrPath
from ray_pcasgd.base.settings import Settings, from_name


class OwnProbes(Settings):
    """The agent's own shard, by a stream of its own."""

    name: Literal["own"] = "own"


class SharedProbes(Settings):
    """A few samples of each agent's shard, which all agents then hold: they leave their shard."""

    name: Literal["shared"] = "shared"
    samples_per_agent: int = Field(16, ge=1)
    """Samples from each shard, or all of one that has fewer."""


class CustomProbes(Settings):
    """The user's own samples, the same for all agents; normalized as training samples are, and not augmented."""

    name: Literal["custom"] = "custom"
    dataset: ObjectOrPath
    """A map-style data set, a function that returns one, or the import path ``module:attribute`` of either."""


ProbeData = Annotated[
    Annotated[OwnProbes | SharedProbes | CustomProbes, Field(discriminator="name")],
    BeforeValidator(from_name),
]
"""One of them, by its ``name``."""
