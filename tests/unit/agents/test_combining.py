"""Peers that combine first, and the outer optimizers between them, against slow references in float64."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_pcasgd import Trainer
from ray_pcasgd.rules.outer_peers import disagreement_factor
from ray_pcasgd.runs.plan.plan import Plan
from tests.comparing import assert_same_to_the_bit
from tests.references.peers import (
    PUBLISHED,
    SIZE,
    SMALL,
    CombiningReference,
    GASLoCReference,
    SlowMoReference,
    assert_refused,
    assert_where_the_reference_is,
    executed,
    gone_on,
    planned,
    regression,
)

FIRST = {"overlap": False}
METHODS: dict[str, tuple[dict[str, Any], Callable[[Plan], CombiningReference]]] = {
    "d-psgd": ({"algorithm": "d-psgd", **FIRST}, lambda own: CombiningReference(own, None)),
    "d-asgd": ({"algorithm": "d-asgd", **FIRST}, lambda own: CombiningReference(own, None)),
    "pc-asgd": ({"algorithm": PUBLISHED, **FIRST}, lambda own: CombiningReference(own, 0.6)),
    "slowmo": (
        {"algorithm": {"name": "slowmo", "outer_momentum": 0.6, "outer_step_size": 0.8}},
        lambda own: SlowMoReference(own, 0.6, 0.8),
    ),
    "slowmo, no barrier": (
        {"algorithm": {"name": "slowmo", "outer_momentum": 0.6}, "barrier": "none"},
        lambda own: SlowMoReference(own, 0.6, 1.0),
    ),
    "noloco": (
        {"algorithm": "noloco", "links": [{"delay": "1.5s"}]},
        lambda own: SlowMoReference(own, 0.5, 0.7, in_pairs=True),
    ),
    "gasloc": (
        {"algorithm": {"name": "gasloc", "gossip": 0.6, "outer_momentum": 0.3, "outer_step_size": 0.9}},
        lambda own: GASLoCReference(own, 0.6, 0.3, 0.9),
    ),
    "gasloc, no barrier": ({"algorithm": "gasloc", "barrier": "none"}, lambda own: GASLoCReference(own, 1.0, 0.5, 0.7)),
}


@pytest.mark.parametrize("local_steps", [1, 4, (2, 7, 5)], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_agents_are_where_the_slow_reference_has_them(name: str, local_steps: Any) -> None:
    settings, reference = METHODS[name]
    own = planned(**settings, local_steps=local_steps)
    agents, reports = executed(own)
    assert_where_the_reference_is(agents, reference(own).run(), rtol=1e-5, atol=1e-6)
    stale = any(read.staleness for report in reports for read in report.row.reads)
    assert stale == (name != "noloco")


@pytest.mark.parametrize("name", METHODS)
def test_stacked_agents_are_where_they_are_alone(name: str) -> None:
    own = planned(**METHODS[name][0], local_steps=(2, 7, 5))
    alone, expected = executed(own)
    stacked, found = executed(own, stacked=True)
    for one, other in zip(alone, stacked, strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-5)
    losses = [{report.row[:2]: report.loss for report in reports} for reports in (expected, found)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("algorithm", ["d-psgd", {"name": "slowmo", "outer_momentum": 0.0}, "d-asgd"], ids=str)
@pytest.mark.parametrize("local_steps", [1, 5])
def test_with_nobody_late_on_a_complete_graph_it_is_federated_averaging(algorithm: Any, local_steps: int) -> None:
    """The server's model after each round, in float64: local SGD from it at every client, and their mean."""
    own = planned(algorithm=algorithm, local_steps=local_steps, links=[], compute={}, num_steps=20, **FIRST)
    agents, reports = executed(own)
    config = own.config
    made = config.task.build_model(own.data, config.seed)
    server = np.concatenate([part.detach().double().numpy().ravel() for part in (made.weight, made.bias)])
    batches = [
        config.task.batches(own.data, spec.shard, config.batch_size, config.seed, spec.agent) for spec in own.specs
    ]
    velocity = [np.zeros(SIZE + 1) for _ in own.specs]
    for first in range(0, 20, local_steps):
        clients = []
        for i, stream in enumerate(batches):
            x = server.copy()
            for step in range(first, first + local_steps):
                inputs, targets = (part.double().numpy() for part in stream.at(step))
                wrong = inputs @ x[:SIZE] + x[SIZE] - targets[:, 0]
                gradient = np.concatenate([2 * (wrong[:, None] * inputs).mean(0), [2 * wrong.mean()]])
                velocity[i] = 0.9 * velocity[i] + gradient + 0.01 * x
                x = x - (0.05 + (0.01 - 0.05) * step / 23) * velocity[i]
            clients.append(x)
        server = np.mean(clients, axis=0)
    assert_where_the_reference_is(agents, clients, rtol=1e-5, atol=1e-6)
    mean = np.mean([agent.weights.double().numpy() for agent in agents], axis=0)
    assert np.sort(mean) == pytest.approx(np.sort(server), rel=1e-5)
    assert all(read.staleness == 0 for report in reports for read in report.row.reads)


def test_an_agent_alone_takes_the_same_steps_whether_it_combines_first_or_not() -> None:
    alone = {"num_agents": 1, "clusters": 1, "links": [], "local_steps": 5, "algorithm": "d-asgd"}
    (one,), _ = executed(planned(**alone))
    (other,), _ = executed(planned(**alone, **FIRST))
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("name", ["pc-asgd", "slowmo", "noloco", "gasloc"])
@pytest.mark.parametrize("wire", ["float32", {"weights": "bf16", "directions": "int8"}], ids=str)
def test_a_run_goes_on_from_a_state_to_the_bit(name: str, wire: Any) -> None:
    own = planned(**METHODS[name][0], local_steps=(2, 7, 5), optimizer="adamw", wire=wire)
    gone_on(own)


def test_a_schedule_is_replayed_by_agents_that_combine_first_and_by_those_that_do_not(tmp_path: Path) -> None:
    settings = SMALL | {"task": regression(), "local_steps": 4, "algorithm": "pc-asgd"}
    runs = {first: Trainer(settings | {"overlap": not first}, storage_path=str(tmp_path)).fit() for first in (0, 1)}
    for recorded in runs.values():
        schedule = str(Path(recorded.path) / "schedule.parquet")
        for first, other in runs.items():
            again = Trainer(settings | {"overlap": not first}, storage_path=str(tmp_path), schedule=schedule).fit()
            assert again.error is None
            if other is recorded:
                assert_same_to_the_bit(recorded, again)


def test_directions_are_sent_by_rules_that_predict_alone() -> None:
    sizes = {name: executed(planned(**METHODS[name][0], local_steps=4))[0][0].message_bytes for name in METHODS}
    assert sizes.pop("pc-asgd") == 8 * (SIZE + 1)
    assert set(sizes.values()) == {4 * (SIZE + 1)}


def test_those_who_meet_in_pairs_send_to_one_partner_a_round() -> None:
    _, reports = executed(planned(**METHODS["noloco"][0], local_steps=4, num_agents=4))
    sent = [report.bytes_sent for report in reports if report.progress < 23]
    assert set(sent) == {4 * (SIZE + 1)}
    # The last version is for all, lest one wait for a partner that has taken all its steps.
    assert {report.bytes_sent for report in reports if report.progress == 23} == {3 * 4 * (SIZE + 1)}


@pytest.mark.parametrize("numbers", [(0.5, 0.7), (0.3, 0.7), (0.0, 1.0), (0.9, 0.7)])
def test_disagreement_of_random_pairs_shrinks_as_the_formula_says(numbers: tuple[float, float]) -> None:
    """Its mean square over many draws, without steps of the agents' own."""
    momentum, step_size = numbers
    draw, rounds = np.random.default_rng(0), 24
    x = draw.normal(size=(16, 20_000))
    x -= x.mean(0)
    m = np.zeros_like(x)
    squares = [(x**2).mean()]
    for _ in range(rounds):
        order = draw.permuted(np.tile(np.arange(16)[:, None], (1, x.shape[1])), axis=0)
        shuffled = np.take_along_axis(x, order, 0)
        means = np.repeat((shuffled[::2] + shuffled[1::2]) / 2, 2, axis=0)
        mean = np.empty_like(x)
        np.put_along_axis(mean, order, means, 0)
        m = momentum * m + step_size * (mean - x)
        x = x + m
        squares.append((x**2).mean())
    factor = (squares[-1] / squares[rounds // 2]) ** (1 / rounds)
    assert factor == pytest.approx(disagreement_factor(*numbers, 16), rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"algorithm": {"name": "noloco", "outer_momentum": 0.9}, "num_agents": 16, "links": []},
            "algorithm.outer_momentum = 0.9: allowed with outer_step_size = 0.7 are values at which",
        ),
        ({"algorithm": "noloco", "topology": "ring", "links": []}, "topology.name = 'ring': allowed with"),
        ({"algorithm": "noloco"}, "links.0.unit = 'steps': allowed with algorithm.name = 'noloco' is seconds"),
        ({"algorithm": "noloco", "barrier": "none", "links": []}, "barrier.name = 'none': allowed with"),
        ({"algorithm": "gasloc", "overlap": True}, "overlap = true: allowed with algorithm.name = 'gasloc' is false"),
        ({"algorithm": "sgp", "overlap": False}, "overlap = false: allowed with algorithm.name = 'sgp' is true"),
        ({"algorithm": "dc-s3gd", "overlap": False}, "overlap = false: allowed with algorithm.name = 'dc-s3gd' is"),
        ({"algorithm": "server", "overlap": False}, "overlap = false: allowed with algorithm.name = 'server' is null"),
        ({"algorithm": {"name": "slowmo", "outer_momentum": 1}}, "algorithm.outer_momentum = 1: allowed are"),
        ({"algorithm": {"name": "gasloc", "gossip": 0}}, "algorithm.gossip = 0: allowed are"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    assert_refused(settings, message)
