"""Topologies that change from step to step: their matrices, who reads whom, and runs against a slow reference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, read_yaml
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.barrier import AllBarrier
from ray_pcasgd.schedule.changing import Hierarchical, OnePeerExponential
from ray_pcasgd.schedule.network import build_network
from ray_pcasgd.schedule.topology import Metropolis
from tests.comparing import assert_same_to_the_bit
from tests.references.averaging import Matrix, hierarchical, one_peer

GROUPS = ((0, 1, 2), (3, 4), (5, 6, 7))
SMALL: dict[str, Any] = {
    "num_agents": 8,
    "num_steps": 9,
    "evaluate_every": 9,
    "algorithm": "d-psgd",
    "links": [],
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "task": {"model": {"hidden": [4]}},
    "engine": "local",
}
TOPOLOGIES = ["one-peer-exponential", "hierarchical", {"name": "hierarchical", "groups": GROUPS, "inside": 2}]


def plan(**changes: Any) -> Plan:
    return make_plan(load_config(SMALL | changes))


def test_one_peer_a_step_is_an_all_reduce_in_as_many_steps_as_there_are_powers_of_two() -> None:
    """Ying et al. 2021; of other numbers of agents, averages are never exact."""
    for number, steps in ((2, 1), (4, 2), (8, 3), (16, 4)):
        phases = OnePeerExponential().phases(number)
        assert len(phases) == steps
        product = np.eye(number)
        for matrix in phases:
            product = matrix @ product
        np.testing.assert_array_equal(product, np.full((number, number), 1 / number))
    assert build_network(OnePeerExponential(), Metropolis(), 6, 0).spectral_gap < 0.9
    assert OnePeerExponential().phases(1) == ()


def test_the_spectral_gap_of_thousands_of_steps_is_that_of_their_product() -> None:
    """The best order to multiply so many matrices in, which nobody needs, would take hours to find."""
    for inside in (1, 3, 5000):
        network = build_network(Hierarchical(groups=((0,), (1, 2, 3)), inside=inside), Metropolis(), 4, 0)
        first, *_, last = network.phases
        left = np.sort(np.abs(np.linalg.eigvals(last @ first)))[-2]  # the groups' means are taken once or often
        assert network.spectral_gap == pytest.approx(1 - left ** (1 / (inside + 1)))


def test_of_equal_groups_one_step_inside_and_one_between_make_all_equal() -> None:
    inside, between = Hierarchical(groups=((0, 3, 4), (1, 2, 5))).phases(6)
    np.testing.assert_allclose(between @ inside, np.full((6, 6), 1 / 6), atol=1e-15)
    assert [tuple(np.flatnonzero(row)) for row in inside[:2]] == [(0, 3, 4), (1, 2, 5)]
    assert [tuple(np.flatnonzero(row)) for row in between[[0, 3, 5]]] == [(0, 1), (2, 3), (4, 5)]
    phases = Hierarchical(groups=GROUPS, inside=3).phases(8)
    assert [tuple(np.flatnonzero(matrix[2])) for matrix in phases] == [(0, 1, 2)] * 3 + [(2, 7)]


@given(st.integers(1, 20), st.integers(0, 40))
def test_at_each_step_who_reads_and_who_sends_is_one_and_the_same(number: int, step: int) -> None:
    network = build_network(OnePeerExponential(), Metropolis(), number, 0)
    assert (network.exchange is None) == (number == 1)
    for i in range(number if network.exchange else 0):
        assert network.exchange
        distance = 2 ** (step % (number - 1).bit_length())
        assert network.exchange.partners(0, i, step, network.neighbors[i]) == ((i + distance) % number,)
        assert network.exchange.receivers(0, i, step, network.readers(i)) == ((i - distance) % number,)
    for matrix in network.phases:
        np.testing.assert_array_equal(matrix.sum(0), 1)
        np.testing.assert_array_equal(matrix.sum(1), 1)


@pytest.mark.parametrize("topology", TOPOLOGIES, ids=str)
def test_runs_equal_the_slow_reference(topology: Any) -> None:
    """``x(t+1) = W(t) x(t) - eta u(t)`` in float64, with W(t) written down anew."""
    own = plan(topology=topology)
    agents = [spec.build(own.data) for spec in own.specs]
    execution = Execution(own.schedule, agents)
    x = {(i, 0): agent.weights.double().numpy() for i, agent in enumerate(agents)}
    for row in own.schedule:
        assert row is not None
        execution.prepare()
        i, step = row.agent, row.step
        moved = 0.1 * agents[i].direction.double().numpy()
        weights = matrix_of(topology)(step)[i]
        x[i, step + 1] = sum(weights[k] * x[k, step] for k in np.flatnonzero(weights)) - moved
        list(execution.execute([row]))
        np.testing.assert_allclose(agents[i].weights.double().numpy(), x[i, step + 1], atol=1e-5)
    last = np.stack([x[i, 9] for i in range(8)])
    assert np.abs(last - last.mean(0)).max() > 1e-3


def matrix_of(topology: Any) -> Matrix:
    """Return W(t), written down anew."""
    if topology == "one-peer-exponential":
        return one_peer(8)
    groups, inside = (GROUPS, 2) if isinstance(topology, dict) else (((0, 1, 2, 3), (4, 5, 6, 7)), 1)
    return hierarchical(groups, inside)


@pytest.mark.parametrize("algorithm", ["d-asgd", "c-asgd", "slowmo", "gasloc"])
@pytest.mark.parametrize("links", [[{"delay": "3 steps"}], [{"delay": "1.5s"}]], ids=["steps", "seconds"])
def test_late_messages_are_read_from_who_is_asked_alone(algorithm: str, links: Any) -> None:
    own = plan(topology="one-peer-exponential", algorithm=algorithm, links=links)
    rows = [row for row in own.schedule if row is not None]
    assert {len(row.reads) for row in rows} == {1}
    for row in rows:
        assert row.reads[0].neighbor == (row.agent + (1, 2, 4)[row.step % 3]) % 8
        # Versions but the first were sent at a step at which this reader asks.
        assert row.reads[0].version % 3 == row.step % 3 or row.reads[0].version in (0, 9)
    if own.config.barrier != AllBarrier() or own.config.links[0].unit == "steps":
        assert max(read.staleness for row in rows for read in row.reads) >= 1


def test_a_run_replays_and_says_its_groups_and_a_recorded_one_of_another_graph_replays_too(tmp_path: Path) -> None:
    settings = SMALL | {"storage_path": str(tmp_path), "topology": "hierarchical"}
    result = Trainer(settings, name="own").fit()
    written = read_yaml(Path(result.path) / "config.yaml")["topology"]
    assert written["groups"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    schedule = str(Path(result.path) / "schedule.parquet")
    replayed = Trainer(settings | {"topology": written, "clusters": 4, "schedule": schedule}, name="again").fit()
    assert_same_to_the_bit(replayed, result)
    edges = [list(edge) for edge in Hierarchical(groups=((0, 1, 2, 3), (4, 5, 6, 7))).graph(8, 0).edges]
    still = Trainer(settings | {"topology": {"name": "edges", "edges": edges}}, name="still").fit()
    schedule = str(Path(still.path) / "schedule.parquet")
    # Who is read without being asked at a step counts nothing.
    replayed = Trainer(settings | {"schedule": schedule}, name="of-still").fit()
    assert replayed.checkpoint
    assert result.checkpoint
    weights = result.checkpoint.state_dict()
    for name, value in replayed.checkpoint.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"algorithm": "pc-asgd"},
            "topology.name = 'hierarchical': allowed with algorithm.name = 'pc-asgd' is a graph",
        ),
        ({"algorithm": "ad-psgd"}, "topology.name = 'hierarchical': allowed with ad-psgd is a graph that stays as it"),
        ({"algorithm": "sgp"}, "topology.name = 'hierarchical': allowed with algorithm.name = 'sgp' is a graph"),
        (
            {"algorithm": "gossip-pull"},
            "topology.name = 'hierarchical': allowed with algorithm.name = 'gossip-pull' is",
        ),
        (
            {"mixing": {"name": "matrix", "rows": [[1]]}},
            "mixing.name = 'matrix': allowed with topology.name = 'hierarch",
        ),
        ({"topology": {"name": "hierarchical", "groups": [[0, 1]]}}, r"topology.groups = \[\[0, 1\]\]: allowed are"),
        (
            {"topology": {"name": "hierarchical", "groups": [[0], [1], [2, 3, 4, 5, 6, 7, 7]]}},
            r"topology.groups = .*: allowed are groups that hold each agent 0 to 7 once",
        ),
        ({"topology": {"name": "hierarchical", "inside": 0}}, "topology.inside = 0: allowed are"),
        (
            {"algorithm": "d-asgd", "membership": [{"agent": 1, "leaves": 3}]},
            "topology.name = 'hierarchical': allowed with membership is a graph that stays as it is",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(**{"topology": "hierarchical"} | changes)
