"""Peers in one table: the reports of the slow path, which computes one agent at a time, and its states."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ray_pcasgd.agents.curvature import curvature_along
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.agents.replica import Replica
from ray_pcasgd.engines.base import Leaving, Pause, RunError
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.engines.local.history import History
from ray_pcasgd.engines.local.networks import StackedNetworks
from ray_pcasgd.engines.local.stacked import StackedExecution, fits_into_a_table
from ray_pcasgd.records import Own, Read, Reads, Row, StepReport, Update
from ray_pcasgd.rules import PCASGD
from ray_pcasgd.rules.prediction import AnyReads, Rows
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.scheduler import Recorded
from ray_pcasgd.tasks.measures import CrossEntropy, MeanSquaredError
from ray_pcasgd.tasks.mlp import mlp

# No kinks, at which a rounding turns a gradient around.
SMALL: dict[str, Any] = {
    "num_agents": 5,
    "num_steps": 14,
    "evaluate_every": 6,
    "topology": "star",
    "links": [{"between": "clusters", "delay": 3}],
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "engine": {"name": "local", "batched": "always"},
    "task": {"model": {"hidden": [8], "activation": "tanh"}},
}
GUARDED: dict[str, Any] = {"name": "pc-asgd", "stability": {"name": "curvature", "every": 4, "warmup": 40}}
CASES: dict[str, dict[str, Any]] = {
    "pc-asgd": {"algorithm": GUARDED, "optimizer": {"momentum": 0.9, "weight_decay": 1e-2}, "step_size": 0.02},
    "pc-asgd, curvature of some samples": {"algorithm": GUARDED | {"stability": GUARDED["stability"] | {"samples": 5}}},
    "pc-asgd, set theta": {
        "algorithm": {"name": "pc-asgd", "theta": [0.1, 0.3, 0.5, 0.7, 1.0], "drift": "velocity", "compensation": 30},
        "optimizer": {"name": "adamw"},
        "step_size": 0.002,
        "gradient_clipping": {"norm": 0.5},
    },
    "p-asgd, declared": {
        "algorithm": {"name": "p-asgd", "drift": "velocity", "clipping": "renormalize"},
        "reliability": "declared",
        "topology": "ring",
    },
    "d-psgd": {"algorithm": "d-psgd"},
    "c-asgd": {"algorithm": "c-asgd", "barrier": {"name": "bounded", "staleness": 1}},
}


def plan(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | settings))


def built(own: Plan) -> list[Any]:
    return [spec.build(own.data) for spec in own.specs]


def steps(execution: Any) -> list[StepReport]:
    return [report for report in execution.reports() if isinstance(report, StepReport)]


def in_table(own: Plan, agents: Sequence[Peer], leaving: Leaving | None = None) -> StackedExecution:
    assert fits_into_a_table(agents, own.schedule)
    return StackedExecution(own.schedule, agents, leaving)


def assert_close(mine: Sequence[Peer], others: Sequence[Peer], tolerance: float = 1e-5) -> None:
    for one, other in zip(mine, others, strict=True):
        assert one.version == other.version
        torch.testing.assert_close(one.weights, other.weights, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_its_reports_are_those_of_the_slow_path(name: str) -> None:
    own = plan(**CASES[name])
    agents, stacked, alone = built(own), built(own), built(own)
    found = steps(in_table(own, agents))
    assert [report.row for report in found] == [report.row for report in steps(Execution(own.schedule, stacked, True))]
    slow = {report.row[:2]: report for report in steps(Execution(own.schedule, alone))}
    assert len(found) == len(slow)
    for mine in found:
        other = slow[mine.row[:2]]
        assert mine.loss == pytest.approx(other.loss, rel=1e-5)
        assert mine.measures == pytest.approx(other.measures, abs=1e-5)
        assert (mine.evaluation is None) == (other.evaluation is None)
        assert (mine.progress, mine.bytes_sent) == (other.progress, other.bytes_sent)
        if mine.snapshot is not None:
            assert other.snapshot is not None
            assert mine.evaluation == pytest.approx(other.evaluation, rel=1e-4)
            torch.testing.assert_close(mine.snapshot.weights, other.snapshot.weights, rtol=1e-5, atol=1e-5)
    assert_close(agents, alone)
    if name == "pc-asgd":
        assert any(0 < report.measures["theta"] < 1 for report in found)
        known = [[agent.curvature.coefficient(0) for agent in some] for some in (agents, alone)]
        assert known[0] == pytest.approx(known[1], rel=1e-4)
        assert max(known[0]) > 0


def test_a_recorded_run_in_which_some_neighbors_are_not_read() -> None:
    own = plan(algorithm="c-asgd")
    kept = (row._replace(reads=row.reads[row.step % 2 :]) for row in own.schedule if row is not None)
    schedule = Recorded(tuple(kept))
    agents, alone = built(own), built(own)
    assert fits_into_a_table(agents, schedule)
    assert len(steps(StackedExecution(schedule, agents))) == len(steps(Execution(schedule, alone))) == 5 * 14
    assert_close(agents, alone)


def test_either_path_goes_on_from_a_state_of_the_other() -> None:
    own = plan(**CASES["pc-asgd"])
    whole = built(own)
    steps(in_table(own, whole))
    for before in (in_table(own, built(own), Leaving()), Execution(own.schedule, built(own), True, Leaving())):
        state = next(report.state() for report in before.reports() if isinstance(report, Pause))
        for after in (in_table(own, built(own)), Execution(own.schedule, built(own), True)):
            after.go_on(copy.deepcopy(state))
            assert 0 < len(steps(after)) < 5 * 14
            agents = after.peers if isinstance(after, StackedExecution) else after.agents
            is_all_of_it = isinstance(before, StackedExecution) and isinstance(after, StackedExecution)
            assert_close(agents, whole, 0.0 if is_all_of_it else 1e-5)  # type: ignore[arg-type]


class Alone(PCASGD):
    """A rule of somebody's own, which has changed the one form of a step and not the other."""

    def step(self, state: Any, own: Own, reads: Reads, probe: Any = None) -> tuple[Any, Update]:
        return super().step(state, own, reads, probe)


class Changed(PCASGD):
    """One that has changed what a single form asks for."""

    def blends_and_moves(self, *given: Any, **more: Any) -> Any:
        return super().blends_and_moves(*given, **more)


class Choosy(PCASGD):
    """One that has changed what both forms ask for, as one agent's."""

    def rows(self, own: Own, reads: AnyReads) -> Rows:
        rows = super().rows(own, reads)
        return rows._replace(guessed=rows.guessed & (reads.staleness.sum() < 8))


ELSEWHERE: dict[str, dict[str, Any]] = {
    "exact drift": {"algorithm": {"name": "pc-asgd", "theta": 0.5}},
    "adaptive": {"algorithm": {"name": "pc-asgd", "compensation": "adaptive"}},
    "practical": {"algorithm": "pc-asgd-pv"},
    "pushing": {"algorithm": "sgp-overlap"},
    "sampling": {"algorithm": "gossip-pull"},
    "importance": {"algorithm": "d-asgd-importance"},
    "rounds": {"local_steps": 2},
    "narrow wire": {"wire": "bf16"},
    "isolation": {"on_non_finite_loss": "isolate"},
    "churn": {"membership": [{"agent": 1, "leaves": "3s", "returns": "6s"}]},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_runs_are_left_to_the_present_path(name: str) -> None:
    own = plan(**ELSEWHERE[name])
    assert not fits_into_a_table(built(own), own.schedule)


def test_a_rule_that_has_changed_one_form_alone_is_left_to_the_present_path() -> None:
    own = plan()
    agents = built(own)
    assert fits_into_a_table(agents, own.schedule)
    rejoined = Recorded((Row(0, 1, 0.0, 0.0, 0.0, (), "rejoined"),))
    assert not fits_into_a_table(agents, rejoined)
    for rule in (Alone(), Changed(), Choosy()):
        object.__setattr__(agents[0].spec.recipe, "rule", rule)
        assert not fits_into_a_table(agents, own.schedule)


def test_a_schedule_that_cannot_go_on_says_which_read_is_missing() -> None:
    own = plan(num_agents=2, algorithm="d-asgd", clusters=1, topology="complete")

    def row(agent: int, step: int, *reads: Read) -> Row:
        return Row(agent, step, float(step), step + 1.0, step + 1.0, reads)

    def execute(*rows: Row) -> None:
        schedule = Recorded(rows)
        assert fits_into_a_table(built(own), schedule)
        list(LocalEngine(LocalSettings(batched="always"), schedule).run(own.specs, own.data))

    with pytest.raises(
        RunError, match=r"^schedule: agent 0 reads version 2 of agent 1 at step 1, and no row before it"
    ):
        execute(row(0, 0), row(1, 0), row(0, 1, Read(1, 2, 0, 0)), row(1, 1, Read(0, 3, 0, 0)))
    with pytest.raises(RunError, match=r"^schedule: agent 1 has a row for step 2 and none for the step before it$"):
        execute(row(0, 0), row(1, 0), row(1, 2))


# The table.


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=4, max_size=4), st.integers(0, 6)), max_size=40))
def test_versions_stay_where_they_are_until_they_are_forgotten(moves: list[tuple[list[bool], int]]) -> None:
    """Against a dictionary: who publishes, and how far behind the newest version all before is forgotten."""
    history, expected, value = History(4, 1, has_directions=True), {}, 0.0
    for publishing, behind in [([True] * 4, 0), *moves]:
        agents = np.flatnonzero(publishing)
        if len(agents):
            places = history.add(agents)
            for agent, place in zip(agents.tolist(), places.tolist(), strict=True):
                value += 1
                history.weights[place], history.directions[place] = value, -value
                expected[agent, int(history.newest[agent])] = value
        horizons = history.newest - behind
        if behind:
            history.forget(horizons)
            expected = {(a, v): x for (a, v), x in expected.items() if v >= horizons[a]}
        for (agent, version), x in expected.items():
            place = history.places(np.array([agent]), np.array([version]))[0]
            assert history.first[agent] <= version
            assert (history.weights[place].item(), history.directions[place].item()) == (x, -x)
    assert len(history.weights) <= 6 * (len(expected) + 8)


# The networks.

SMOOTHED = CrossEntropy(label_smoothing=0.1, ignore_index=2)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv1d(1, 3, 3)
        self.head = nn.Linear(12, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.kernel(inputs[:, None]).tanh().flatten(1))
        return outputs


@pytest.mark.parametrize("make", [lambda: mlp(6, (5, 4), 4, "tanh"), lambda: mlp(6, (7,), 4, "relu"), Convolution])
@pytest.mark.parametrize("loss", [CrossEntropy(), SMOOTHED, MeanSquaredError()], ids=["plain", "smoothed", "mse"])
def test_losses_gradients_and_curvatures_of_all_are_each_one_s(make: Any, loss: Any) -> None:
    torch.manual_seed(0)
    replica = Replica(make(), torch.device("cpu"))
    networks = StackedNetworks(replica, loss)
    weights = replica.weights + 0.3 * torch.randn(3, replica.weights.numel())
    directions = torch.randn(3, replica.weights.numel())
    directions[2] = 0
    inputs = torch.randn(3, 8, 6)
    targets = torch.randn(3, 8, 4) if isinstance(loss, MeanSquaredError) else torch.randint(0, 4, (3, 8))
    losses, gradients = networks.gradients(weights, inputs, targets)
    curvatures = networks.curvatures(weights, inputs, targets, directions)
    for agent in range(3):
        replica.load(weights[agent], replica.buffers)
        replica.forget_gradients()

        def alone(agent: int = agent) -> Tensor:
            value: Tensor = loss(replica.module(inputs[agent]), targets[agent])
            return value

        value = alone()
        value.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(losses[agent], value.detach())
        torch.testing.assert_close(gradients[agent], replica.take_gradient()[0])
        expected = curvature_along(alone, replica.parameters(), directions[agent])
        assert (curvatures[agent] is None) == (expected is None) == (agent == 2)
        assert expected is None or curvatures[agent] == pytest.approx(expected, rel=1e-3, abs=1e-5)
