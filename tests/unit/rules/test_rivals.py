"""Ringmaster, Rennala, Malenia, Ringleader and IA2SGD on quadratics, against simulations written from the papers.

Worker i of n has ``f_i(x) = |x - c_i|^2 / 2``, and takes a fixed time for a gradient.
"""

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.rules.balance import MOST
from ray_pcasgd.rules.correction import Late
from ray_pcasgd.rules.gatherer import Arrival, Gatherer
from ray_pcasgd.rules.parameter_server import ParameterServer
from ray_pcasgd.rules.server import Delivered
from ray_pcasgd.schedule.delays import ComputeTimes
from tests.references.rivals import Workers, ia2sgd, malenia, rennala, ringleader, ringmaster
from tests.unit.rules.test_gathering import gathering
from tests.unit.schedule.test_plan_servers import law, planner, rows_of

Array = npt.NDArray[np.float64]

STEP = 0.02
CENTERS = np.array([[3.0, -1.0], [-2.0, 4.0], [0.5, 0.5], [-6.0, 1.0]])
SECONDS = (1.0, 1.7123457, 3.1234568, 7.3456789)
"""No two workers finish at the same moment."""


def planned(value: Any, num_steps: int = 40, step: float = STEP) -> list[Array]:
    """Return all points of the package's planner and rule, in float64."""
    own = gathering(value)
    rule = ParameterServer(gathering=own)
    compute = ComputeTimes(agents={k: law(seconds) for k, seconds in enumerate(SECONDS)})
    points = [torch.zeros(2, dtype=torch.float64)]
    state = rule.init(points[0], len(SECONDS))
    computed_at: dict[tuple[int, int], int] = {}
    for row in rows_of(planner(own, len(SECONDS), num_steps=num_steps, compute=compute)):
        if row.agent < len(SECONDS):
            computed_at[row.agent, row.step + 1] = row.reads[0].version
            continue
        delivered = []
        for read in row.reads:
            gradient = points[computed_at[read.neighbor, read.version]] - torch.tensor(CENTERS[read.neighbor])
            late = Late(gradient, points[0][:0], torch.tensor(float(read.staleness)), *[torch.tensor(1.0)] * 2)
            delivered.append(Delivered(read.neighbor, late))
        state, direction = rule.gather(state, points[-1], delivered)
        points.append(points[-1] - step * direction)
    return [point.numpy() for point in points]


PAIRS: dict[str, tuple[Any, Any]] = {
    "ringmaster 1": ({"name": "ringmaster", "delay_threshold": 1}, partial(ringmaster, threshold=1, stops=False)),
    "ringmaster 5": ({"name": "ringmaster", "delay_threshold": 5}, partial(ringmaster, threshold=5, stops=False)),
    "ringmaster 5, stopping": (
        {"name": "ringmaster", "delay_threshold": 5, "stops": True},
        partial(ringmaster, threshold=5, stops=True),
    ),
    "rennala": ({"name": "rennala", "k": 5}, partial(rennala, size=5)),
    "malenia": ("malenia", partial(malenia, target=1)),
    "malenia 1.6": ({"name": "malenia", "target": 1.6}, partial(malenia, target=1.6)),
    "ringleader": ("ringleader", ringleader),
    "ia2sgd": ("ia2sgd", ia2sgd),
}


@pytest.mark.parametrize("name", PAIRS)
def test_every_point_is_that_of_the_paper_s_algorithm(name: str) -> None:
    value, reference = PAIRS[name]
    points = planned(value)
    own = Workers(SECONDS, np.zeros(2), lambda worker, x: x - CENTERS[worker], STEP)
    expected = reference(own, len(points) - 1)[: len(points)]
    assert len(points) > 10
    np.testing.assert_allclose(points, expected, rtol=1e-12, atol=1e-12)


def settled(value: Any) -> Array:
    """Return the mean of the last third of all points."""
    points = planned(value, num_steps=300, step=0.1)
    return np.asarray(np.mean(points[-len(points) // 3 :], axis=0))


def test_asgd_settles_where_fast_workers_want_it_and_those_that_count_all_alike_at_the_minimum() -> None:
    paces = 1 / np.array(SECONDS)
    of_all, of_the_fast = CENTERS.mean(axis=0), paces @ CENTERS / paces.sum()
    assert np.linalg.norm(of_all - of_the_fast) > 1
    assert np.linalg.norm(settled("asgd") - of_the_fast) < 0.1
    for value in ("malenia", "ringleader", "ia2sgd"):
        assert np.linalg.norm(settled(value) - of_all) < 0.02, value
    # With a threshold, those that are always too late do not count at all.
    assert np.linalg.norm(settled({"name": "ringmaster", "delay_threshold": 1}) - CENTERS[0]) < 1e-6


def arrivals(own: Gatherer, worker: int, count: int, version: int = 0) -> None:
    for number in range(count):
        assert own.arrive(Arrival(worker, version + number + 1, 0, 0))
        assert own.take() == ()


def test_malenia_waits_for_a_harmonic_mean_and_not_for_a_number_of_gradients() -> None:
    """A public implementation takes S gradients of anybody instead, and divides by the workers that it has."""
    own = Gatherer(gathering({"name": "malenia", "target": 2}), 3)
    arrivals(own, 0, 50)
    arrivals(own, 1, 1)
    arrivals(own, 2, 1)
    arrivals(own, 1, 1, version=1)
    # 3 / (1/50 + 1/2 + 1/2) = 2.94 with one more of worker 2, and 3 / (1/50 + 1/2 + 1) = 1.97 before it.
    assert own.arrive(Arrival(2, 2, 0, 0))
    assert len(own.take()) == 54


def test_a_worker_that_is_thousands_of_times_as_fast_ends_the_run_in_one_line() -> None:
    own = Gatherer(gathering("ringleader"), 2)
    arrivals(own, 0, MOST)
    own.arrive(Arrival(0, MOST + 1, 0, 0))
    with pytest.raises(RunError, match=r"^algorithm.gathering.name = 'ringleader': worker 0 has sent 1001 gradients "):
        own.take()


@pytest.mark.parametrize("name", ["malenia", "ringleader", "ia2sgd"])
def test_a_worker_that_is_gone_is_waited_for_no_more(name: str) -> None:
    own = Gatherer(gathering(name), 3)
    arrivals(own, 0, 2)
    arrivals(own, 1, 1)
    own.lose(2)
    assert [one[:2] for one in own.take()] == [(0, 1), (0, 2), (1, 1)]
    # In Ringleader's round nobody has new weights yet: it is everybody's turn.
    later = [Arrival(0, 3, 0, 1), Arrival(0, 4, 0, 1), Arrival(1, 2, 0, 1), Arrival(1, 3, 1, 2)]
    taken = []
    for one in later:
        assert own.arrive(one)
        taken.append(len(own.take()))
    assert taken == {"malenia": [0, 0, 2 + 1, 0], "ringleader": [1, 0, 1, 2], "ia2sgd": [1, 1, 1, 1]}[name]


def test_ringleader_s_server_knows_a_round_s_first_update_from_the_others() -> None:
    """Even with one worker left of two: what was computed at new weights begins a table, the rest is added to one."""
    rule = ParameterServer(gathering=gathering("ringleader"))
    draw = generator(0, "gradients")
    g = [torch.from_numpy(draw.standard_normal(3)) for _ in range(6)]

    def given(worker: int, gradient: torch.Tensor, staleness: float) -> Delivered:
        return Delivered(worker, Late(gradient, g[0][:0], torch.tensor(staleness), *[torch.tensor(1.0)] * 2))

    state = rule.init(g[0], 2)
    state, first = rule.gather(state, g[0], [given(0, g[0], 0), given(0, g[1], 0), given(1, g[2], 0)])
    torch.testing.assert_close(first, ((g[0] + g[1]) / 2 + g[2]) / 2)
    state, second = rule.gather(state, g[0], [given(0, g[3], 1)])
    torch.testing.assert_close(second, ((g[0] + g[1] + g[3]) / 3 + g[2]) / 2)
    state, third = rule.gather(state, g[0], [given(0, g[4], 0)])
    torch.testing.assert_close(third, g[4])
    state, fourth = rule.gather(state, g[0], [given(1, g[5], 3)])
    torch.testing.assert_close(fourth, (g[4] + g[5]) / 2)
