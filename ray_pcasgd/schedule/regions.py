"""Regions: how late and how wide links are between typical cloud regions, as somebody has measured them."""

import itertools
from collections.abc import Mapping

from ray_pcasgd.base.text import one_line
from ray_pcasgd.schedule.delays import LinkDelay
from ray_pcasgd.schedule.laws import ConstantLaw

_MEASURED = """
              Oregon     Virginia   Ohio       Tokyo      Seoul      Singapore  Sydney     London     Frankfurt
    Virginia  67 0.79
    Ohio      49 1.10    11 1.12
    Tokyo     96 0.523   143 0.524  130 0.694
    Seoul     124 0.46   172 0.500  159 0.529  34 1.10
    Singapore 163 0.341  230 0.364  197 0.452  73 1.01    74 1.14
    Sydney    139 0.36   197 0.383  185 0.484  100 0.761  148 0.58   92 0.816
    London    136 0.42   76 1.16    86 1.05    210 0.366  238 0.342  169 0.500  262 0.326
    Frankfurt 143 0.404  90 1.02    99 0.799   223 0.36   235 0.358  155 0.535  265 0.328  14 1.14
    Ireland   124 0.482  67 1.05    77 1.14    199 0.465  228 0.335  179 0.492  254 0.344  12 1.09    24 1.08
"""
"""Round trips in ms, and Gbit/s, between ten regions of AWS.

As measured for, and published with, *Decentralized Training of Foundation Models in Heterogeneous Environments* (Yuan
et al., NeurIPS 2022): github.com/DS3Lab/DT-FM, ``scheduler/generate_sim_com_matrices.py``, MIT license.
"""


def _table() -> dict[frozenset[str], tuple[float, float]]:
    lines = [line.split() for line in _MEASURED.strip().splitlines()]
    columns = lines[0]
    found = {}
    for row, *numbers in lines[1:]:
        for column, trip, rate in zip(columns, numbers[::2], numbers[1::2], strict=False):
            found[frozenset((row, column))] = (float(trip), float(rate))
    return found


BETWEEN = _table()
"""Round trip in ms and Gbit/s, by two regions."""
REGIONS = tuple(sorted(set().union(*BETWEEN)))
"""The names of the regions."""


def links_of(regions: Mapping[str, tuple[int, ...]]) -> tuple[LinkDelay, ...]:
    """Return the links between regions, for each two of them that have agents.

    **Choice**: a message takes half a round trip, and each pair of agents has the bandwidth that was measured between
    two machines. Links within a region have neither delay nor limit; ``links`` may give them one.
    """
    return tuple(
        LinkDelay(
            delay=ConstantLaw(value=BETWEEN[frozenset((one, other))][0] / 2000),
            unit="seconds",
            bandwidth=f"{BETWEEN[frozenset((one, other))][1]:g} Gbit/s",
            between=(regions[one], regions[other]),
        )
        for one, other in itertools.combinations(regions, 2)
    )


def check_regions(regions: Mapping[str, tuple[int, ...]], num_agents: int) -> None:
    """Raise ``ValueError`` where a region is not known, or an agent is in none of the run, or in two regions."""
    place: dict[int, str] = {}
    for name, agents in regions.items():
        if name not in REGIONS:
            raise ValueError(f"regions: {one_line(repr(name), 80)}; allowed are {', '.join(REGIONS)}")
        if not agents:
            raise ValueError(f"regions.{name}: is empty; allowed is one agent or more")
        for agent in agents:
            if not 0 <= agent < num_agents:
                raise ValueError(f"regions.{name}: agent {agent}; allowed are 0 to {num_agents - 1}")
            if agent in place:
                raise ValueError(f"regions.{name}: agent {agent} is in {place[agent]} too; allowed is one region")
            place[agent] = name
