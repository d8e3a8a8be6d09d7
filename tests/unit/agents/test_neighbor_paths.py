"""Prediction by neighbors' displacements, against a slow reference in float64."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from ray_pcasgd.agents.neighbor_paths import NeighborPaths
from ray_pcasgd.runs.plan.variants import why_alone
from ray_pcasgd.runs.settings.loading import load_config
from tests.references.peers import (
    PUBLISHED,
    SIZE,
    Array,
    CombiningReference,
    Reference,
    assert_where_the_reference_is,
    executed,
    gone_on,
    planned,
)

BY_DISPLACEMENT = PUBLISHED | {"prediction": "displacement"}


class Known:
    """What each agent has read of each neighbor, all of it."""

    def __init__(self) -> None:
        self.read: dict[tuple[int, int], set[int]] = {}

    def rolled(self, own: Reference, i: int, read: Any) -> Array:
        """Return a neighbor's weights, moved on by its mean velocity: 0.8 of what it was, from version to version."""
        versions = self.read.setdefault((i, read.neighbor), {0})
        versions.add(read.version)
        x = own.versions[read.neighbor, read.version]
        if len(versions) < 2:
            return x
        mean = None
        for before, newest in pairwise(sorted(versions)):
            step = (own.versions[read.neighbor, newest] - own.versions[read.neighbor, before]) / (newest - before)
            # As if the neighbor had moved by as much in each of the versions between.
            for _ in range(before, newest):
                mean = step if mean is None else 0.8 * mean + 0.2 * step
        return np.array(x + read.staleness * mean)


class ByDisplacement(Reference):
    """Of agents that read at a round's end."""

    def __init__(self, own: Any) -> None:
        super().__init__(own, 0.6)
        self.known = Known()

    def taken(self, i: int, version: int, reads: Any) -> Array:
        x, d = self.versions[i, version], self.displacement[i, version]
        return blended(self, i, x, reads) - d


class ByDisplacementCombining(CombiningReference):
    """Of agents that combine first."""

    def __init__(self, own: Any) -> None:
        super().__init__(own, 0.6)
        self.known = Known()

    def combine(self, i: int, version: int, reads: Any) -> Array:
        return blended(self, i, self.versions[i, version], reads)


def blended(own: Any, i: int, x: Array, reads: Any) -> Array:
    spec = own.own.specs[i]
    weights = dict(zip(spec.neighbors, spec.mixing, strict=True))
    predicted, clipped = spec.own_mixing * x, spec.own_mixing * x
    for read in reads:
        w = weights[read.neighbor]
        rolled = own.known.rolled(own, i, read)
        predicted = predicted + w * rolled
        clipped = clipped + w * (x if read.staleness else rolled)
    return np.array(0.6 * predicted + 0.4 * clipped)


@pytest.mark.parametrize("local_steps", [1, 4, (2, 7, 5)], ids=str)
@pytest.mark.parametrize("overlap", [True, False])
def test_agents_are_where_the_slow_reference_has_them(overlap: bool, local_steps: Any) -> None:
    own = planned(algorithm=BY_DISPLACEMENT, overlap=overlap, local_steps=local_steps)
    agents, reports = executed(own)
    reference = ByDisplacement(own) if overlap else ByDisplacementCombining(own)
    assert_where_the_reference_is(agents, reference.run(), rtol=1e-5, atol=1e-6)
    assert any(read.staleness and read.version for report in reports for read in report.row.reads)
    assert {agent.message_bytes for agent in agents} == {4 * (SIZE + 1)}


@pytest.mark.parametrize("algorithm", [BY_DISPLACEMENT, {"name": "pc-asgd", "prediction": "displacement"}], ids=str)
def test_a_run_goes_on_from_a_state_to_the_bit(algorithm: Any) -> None:
    own = planned(algorithm=algorithm, local_steps=(2, 7, 5), wire="bf16")
    gone_on(own)


def test_a_velocity_is_a_mean_over_the_versions_that_were_read() -> None:
    paths = NeighborPaths([7], torch.zeros(2))
    assert paths.velocity(7) is None
    paths.note(7, 4, torch.tensor([8.0, -4.0]))
    assert paths.velocity(7) is not None
    assert paths.velocity(7).tolist() == [-2.0, 1.0]  # type: ignore[union-attr]
    for version in (4, 2):  # read again, and fallen back to
        paths.note(7, version, torch.full((2,), 99.0))
        assert paths.velocity(7).tolist() == [-2.0, 1.0]  # type: ignore[union-attr]
    paths.note(7, 6, torch.tensor([8.0, 0.0]))
    # Two versions on, 0.64 of the old one are left.
    assert paths.velocity(7).tolist() == pytest.approx([0.64 * -2, 0.64 * 1 + 0.36 * -2])  # type: ignore[union-attr]
    paths.forget()
    paths.note(7, 9, torch.ones(2))
    assert paths.velocity(7) is None


def test_such_runs_are_not_stepped_together() -> None:
    config = load_config({"algorithm": BY_DISPLACEMENT, "engine": "local", "task": {}})
    assert why_alone(config) == "algorithm.prediction = 'displacement': allowed are direction and own-drift"
