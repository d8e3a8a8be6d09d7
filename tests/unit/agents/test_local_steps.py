"""Local steps: rounds of several mini-batches, against the plain loop and a slow reference of the rules with H."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_pcasgd import Trainer
from ray_pcasgd.agents.local_steps import EqualTime
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base.rounds import Rounds
from ray_pcasgd.engines.base import StateError
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.schedule.plan_peers import Planner
from tests.comparing import assert_same_to_the_bit
from tests.references.peers import (
    PUBLISHED,
    SMALL,
    Reference,
    assert_refused,
    assert_where_the_reference_is,
    executed,
    planned,
    regression,
)
from tests.unit.memory import in_one_vector

# The rules with H, in float64, from the formulas alone.


@pytest.mark.parametrize("local_steps", [1, 4, 23, (2, 7, 5)], ids=str)
@pytest.mark.parametrize("algorithm", ["d-psgd", "d-asgd", "pc-asgd"])
def test_agents_are_where_the_slow_reference_has_them(algorithm: str, local_steps: Any) -> None:
    rule: Any = PUBLISHED if algorithm == "pc-asgd" else algorithm
    own = planned(algorithm=rule, local_steps=local_steps)
    agents, reports = executed(own)
    expected = Reference(own, 0.6 if algorithm == "pc-asgd" else None).run()
    assert_where_the_reference_is(agents, expected, rtol=1e-5, atol=1e-6)
    if algorithm == "pc-asgd" and local_steps not in (1, 23):
        assert any(read.staleness for report in reports for read in report.row.reads), "nothing was predicted"


@pytest.mark.parametrize(
    "algorithm", ["d-asgd", PUBLISHED, "pc-asgd", "pc-asgd-pv", "sgp-overlap", "gossip-push"], ids=str
)
def test_stacked_agents_are_where_they_are_alone(algorithm: Any) -> None:
    """Also where their rounds differ in length."""
    own = planned(algorithm=algorithm, local_steps=(2, 7, 5))
    alone, expected = executed(own)
    stacked, found = executed(own, stacked=True)
    for one, other in zip(alone, stacked, strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-5)
    losses = [{report.row[:2]: report.loss for report in reports} for reports in (expected, found)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# One agent is the user's own loop.

ALONE: dict[str, Any] = {"num_agents": 1, "clusters": 1, "links": [], "local_steps": 5}
OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({"optimizer": {"momentum": 0.9}, "step_size": 0.05}, partial(torch.optim.SGD, lr=0.05, momentum=0.9)),
    "adamw": ({"optimizer": "adamw", "step_size": 0.01}, partial(torch.optim.AdamW, lr=0.01, weight_decay=0.01)),
    "adafactor": (
        {"optimizer": {"name": "torch", "optimizer": "torch.optim:Adafactor"}, "step_size": 0.05},
        partial(torch.optim.Adafactor, lr=0.05),
    ),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_agent_alone_takes_the_plain_loop_s_steps(optimizer: str) -> None:
    """Rounds only say when it could have read: 23 mini-batches are four rounds of five and one of three."""
    settings, make = OPTIMIZERS[optimizer]
    own = planned(**ALONE | settings)
    (agent,), reports = executed(own)
    config = own.config
    model = in_one_vector(config.task.build_model(own.data, config.seed))
    expected, losses = make(model.parameters()), []
    batches = config.task.batches(own.data, own.specs[0].shard, config.batch_size, config.seed, 0)
    for number in range(23):
        inputs, targets = batches.at(number)
        expected.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        expected.step()
        losses.append(loss.item())
    for name, tensor in agent.replica.state_dict(*agent.snapshot()).items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-5, atol=1e-6)
    found = [report.loss for report in reports]
    assert found == pytest.approx([np.mean(losses[first : first + 5]) for first in range(0, 23, 5)], rel=1e-4)
    assert [report.progress for report in reports] == [5, 7, 14, 20, 23]


def test_a_whole_run_counts_mini_batches_and_evaluates_all_agents_at_the_same_steps(tmp_path: Path) -> None:
    settings = SMALL | {"task": regression(), "local_steps": (2, 7, 5), "algorithm": "d-asgd", "num_steps": 40}
    result = Trainer(settings, storage_path=str(tmp_path)).fit()
    assert result.error is None
    frame = result.metrics_dataframe
    tested = frame[frame["test_loss"].notna()]
    # Of the multiples of 7 up to the longest round before the end, and the end; -1 is the averaged model.
    steps = {who: sorted(rows["step"]) for who, rows in tested.groupby(tested["agent"].fillna(-1))}
    assert steps == {who: [7, 14, 21, 28, 40] for who in (-1, 0, 1, 2)}
    assert result.metrics["step"] == 40


@given(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 25))
def test_every_agent_is_evaluated_once_at_each_of_the_same_steps(
    num_steps: int, lengths: list[int], every: int
) -> None:
    rounds = Rounds(num_steps, tuple(min(length, num_steps) for length in lengths))
    points = [
        [
            point
            for version in range(1, rounds.last(agent) + 1)
            if (point := rounds.evaluation_point(agent, version, every)) is not None
        ]
        for agent in range(len(lengths))
    ]
    assert all(own == points[0] for own in points)
    assert points[0] == sorted(set(points[0]))
    assert points[0][-1] == num_steps
    assert all(point % every == 0 for point in points[0][:-1])
    for agent in range(len(lengths)):
        taken = [rounds.steps_in(agent, version) for version in range(rounds.last(agent))]
        assert sum(taken) == num_steps
        assert min(taken) >= 1


# States, replays, delays, settings.


@pytest.mark.parametrize("algorithm", ["pc-asgd", "pc-asgd-pv"])
def test_a_state_of_another_wire_is_refused(algorithm: str) -> None:
    own, other = planned(algorithm=algorithm, wire="bf16"), planned(algorithm=algorithm)
    states = []
    for each in (own, other):
        execution = Execution(each.schedule, [spec.build(each.data) for spec in each.specs])
        reports = execution.reports()
        for _ in range(8):
            next(reports)
        states.append(execution.state())
    for each, state in ((own, states[1]), (other, states[0])):
        with pytest.raises(StateError, match="versions"):
            Execution(each.schedule, [spec.build(each.data) for spec in each.specs]).go_on(state)


@pytest.mark.parametrize("algorithm", ["pc-asgd", "pc-asgd-pv"])
@pytest.mark.parametrize("wire", ["float32", "bf16", {"directions": "int8"}], ids=str)
def test_a_run_goes_on_from_a_state_to_the_bit(algorithm: str, wire: Any) -> None:
    own = planned(algorithm=algorithm, local_steps=(2, 7, 5), optimizer="adamw", wire=wire)
    whole, _ = executed(own)
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    reports = execution.reports()
    for _ in range(8):
        next(reports)
    state = execution.state()
    again = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    again.go_on(state)
    assert 0 < len(list(again.reports())) < len(list(own.schedule))
    for one, other in zip(whole, again.agents, strict=True):
        assert torch.equal(one.weights, other.weights)


def test_a_recorded_schedule_is_replayed_and_others_lengths_of_rounds_are_refused(tmp_path: Path) -> None:
    settings = SMALL | {"task": regression(), "local_steps": 4, "algorithm": "pc-asgd"}
    first = Trainer(settings, storage_path=str(tmp_path)).fit()
    schedule = str(Path(first.path) / "schedule.parquet")
    again = Trainer(settings, storage_path=str(tmp_path), schedule=schedule).fit()
    assert_same_to_the_bit(first, again)
    # 23 mini-batches in rounds of 4 are 6 rows of each agent, which are 18 in rounds of 3.
    with pytest.raises(SettingsError, match=r"^num_steps = 23: allowed with the schedule is up to 18, what agent 0 "):
        make_plan(load_config(settings | {"local_steps": 3, "schedule": schedule}))
    shorter = Trainer(settings, storage_path=str(tmp_path), schedule=schedule, local_steps=3, num_steps=18).fit()
    assert shorter.error is None


def test_a_delay_in_steps_lasts_until_the_end_of_its_round() -> None:
    for hold, rounds in (("8 steps", 2), ("9 steps", 3), ("1 steps", 1)):
        own = planned(
            local_steps=4, num_steps=60, compute={}, links=[{"delay": hold}], algorithm="d-asgd", num_agents=2
        )
        late = {read.staleness for row in own.schedule if row is not None and row.step > 5 for read in row.reads}
        assert late == {rounds}


def test_a_round_takes_the_time_of_its_mini_batches() -> None:
    own = planned(local_steps=(4, 1, 10), compute={"law": 2.0, "agents": {1: 5.0}}, links=[], num_steps=20)
    assert isinstance(own.schedule, Planner)
    ends = {row[:2]: row.end for row in own.schedule}
    assert (ends[0, 0], ends[1, 0], ends[2, 0]) == (8.0, 5.0, 20.0)
    assert max(ends.values()) == 100.0


def test_who_has_taken_all_its_rounds_is_not_waited_for() -> None:
    own = planned(local_steps=(23, 1, 2), algorithm="d-psgd", links=[])
    rows = [row for row in own.schedule if row is not None]
    assert [sum(row.agent == i for row in rows) for i in range(3)] == [1, 23, 12]


def test_rounds_of_equal_time_follow_from_the_mean_compute_times() -> None:
    compute = {"law": "exponential(1)", "agents": {1: 2.5}, "stragglers": {2: 0.3}}
    own = planned(local_steps={"name": "equal-time", "most": 20}, compute=compute)
    assert own.rounds.local_steps == (20, 8, 15)
    assert planned(local_steps={"name": "equal-time", "most": 20}, compute={"law": 0}).rounds.longest == 20
    slow = planned(local_steps={"name": "equal-time", "most": 3}, compute={"agents": {1: 100}})
    assert slow.rounds.local_steps == (3, 1, 3)


@pytest.mark.parametrize(
    ("most", "seconds", "expected"),
    [
        (3, (0.7, 0.7, 0.7), (3, 3, 3)),
        (29, (0.01, 0.01), (29, 29)),
        (6, (0.3, 0.9), (6, 2)),
        (10, (1.0, 3.0), (10, 3)),
        (5, (0.0, 1.0), (5, 1)),
    ],
)
def test_whole_quotients_of_speeds_are_not_rounded_down(
    most: int, seconds: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert EqualTime(most=most).of(seconds) == expected


def test_a_list_of_ones_is_the_run_without_local_steps() -> None:
    one, other = executed(planned(local_steps=(1, 1, 1)))[0], executed(planned())[0]
    for mine, theirs in zip(one, other, strict=True):
        assert isinstance(mine, Peer)
        assert torch.equal(mine.weights, theirs.weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_steps": 0}, "local_steps = 0: allowed are values from 1 on"),
        ({"local_steps": 24}, "local_steps = 24: allowed are 1 to num_steps = 23"),
        (
            {"local_steps": {"name": "equal-time", "most": 24}},
            "local_steps.most = 24: allowed are 1 to num_steps = 23",
        ),
        ({"local_steps": [2, 3]}, "local_steps = [2, 3]: allowed is one number for each of the 3 agents"),
        (
            {"local_steps": 2, "algorithm": "dc-s3gd"},
            "local_steps = 2: allowed with algorithm.name = 'dc-s3gd' is 1; it corrects every gradient by what was "
            "read",
        ),
        (
            {"local_steps": 2, "algorithm": "server"},
            "local_steps = 2: allowed with algorithm.name = 'server' is 1; workers send every gradient",
        ),
        (
            {"local_steps": [2, 2], "algorithm": "diloco"},
            "local_steps = [2, 2]: allowed is one number for each of the 3 agents",
        ),
        (
            {"local_steps": 2, "algorithm": "elastic-averaging"},
            "local_steps = 2: allowed with algorithm.name = 'elastic-averaging' is 1; its local steps are "
            "algorithm.period",
        ),
        (
            {"local_steps": {"name": "equal-time", "most": 5}, "algorithm": "ad-psgd", "links": []},
            "local_steps = 'equal-time': allowed with algorithm.name = 'ad-psgd' is 1; pairs meet after each step",
        ),
        (
            {"local_steps": {"name": "equal-time", "most": 5}, "compute": {"law": "pareto(1, 2)"}},
            "local_steps.name = 'equal-time': allowed are compute times with a mean; that of agent 0 is infinite",
        ),
        ({"local_steps": "equal-time"}, "local_steps.most: is required; allowed is a whole number from 1 on"),
        ({"local_steps": "fast"}, "local_steps = 'fast': allowed is a whole number"),
        ({"local_steps": 2.5}, "local_steps = 2.5: allowed is a whole number"),
        ({"local_steps": None}, "local_steps = null: allowed is a whole number"),
        ({"local_steps": True}, "local_steps = true: allowed is a whole number"),
        ({"local_steps": []}, "local_steps = []: allowed is one number for each of the 3 agents"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    assert_refused(settings, message)
