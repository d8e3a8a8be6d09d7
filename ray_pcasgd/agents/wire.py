"""Wire formats: what of a version's numbers travels, and what its readers make of it.

A rule sees what was decoded, in every engine, so that a format belongs to a run's arithmetic as its step size does. The
sender goes on from its own numbers, which are never rounded.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ray_pcasgd.agents.dense_wire import BF16, Float32, Format, Int4, Int8
from ray_pcasgd.agents.sparse_wire import RandomK, TopK
from ray_pcasgd.base.settings import Settings, from_name

WireFormat = Annotated[
    Annotated[Float32 | BF16 | Int8 | Int4 | TopK | RandomK, Field(discriminator="name")],
    BeforeValidator(from_name),
]
"""A format by its name; ``{name: int8, block: 128}`` where it has settings."""


class Wire(Settings):
    """The formats of what agents send each other; one name is the format of both."""

    weights: WireFormat = Float32()
    """Of weights: ``float32``, ``bf16``, ``int8`` or ``int4``. With ``choco-sgd`` it is that of differences, and also
    ``top-k`` or ``random-k`` with a ``share``."""
    directions: WireFormat = Float32()
    """Of directions, where a rule predicts with them; of what workers send a server, unless these are weights. Also
    ``top-k`` and ``random-k`` with a ``share``: a part of the numbers, and what is left out comes with later ones."""

    fragments: int = Field(1, ge=1, le=1024)
    """Parts of equal length into which the weights are cut, and directions with them: a version's message holds one of
    them, each once in so many versions, and where it holds nothing its reader goes on by itself. For the algorithms
    between peers that average: d-psgd, d-asgd, c-asgd, p-asgd, pc-asgd and pc-asgd-pv. And with a server for those
    whose workers go on by themselves: diloco (Streaming DiLoCo), fedasync and elastic-averaging, where a worker is
    answered with the part that it has sent. Who comes in or back is sent whole versions."""

    @property
    def is_plain(self) -> bool:
        """Whether nothing is rounded."""
        return self.weights.is_plain and self.directions.is_plain


def both(value: Any) -> Any:
    """Return the settings of a wire whose formats are the same, where one format is given."""
    if isinstance(value, str | Format) or (isinstance(value, Mapping) and "name" in value):
        return {"weights": value, "directions": value}
    return value
