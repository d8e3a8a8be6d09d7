"""What a line of the table is about."""

from collections.abc import Callable
from typing import NamedTuple

from experiments.references.drawing import Settings
from experiments.references.engine import Versions
from ray_pcasgd.runs.plan.plan import Plan

NOISE = ("noise", "uniform")
"""Attacks that are nothing but noise, drawn as float32."""
MIXED, MIXING = ", nearest-neighbor mixing", "arXiv 2302.01772, algorithm 2"
"""What a screen's name and formula have where mixing comes first."""


class Method(NamedTuple):
    """One method, or one form of it."""

    name: str
    formula: str
    """The file of its reference, and the paper's equation or algorithm."""
    settings: Callable[[int], Settings]
    """Returns a random run of a seed."""
    reference: Callable[[Plan], Versions]
    """Returns every version of a plan's agents, in float64."""
    runs_in_double: bool = True
    """Whether all of its code can run on float64: not where what travels is encoded, or is nothing but noise."""
