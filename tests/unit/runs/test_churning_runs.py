"""Runs whose agents leave and come back as the settings say: what they keep, say, evaluate, and go on from."""

from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd.engines.base import Pause
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Event
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.schedule.parquet import read_rows
from tests.comparing import assert_same_metrics, assert_same_to_the_bit
from tests.unit.interrupted_runs import SMALL, assert_as_undisturbed, interrupted

AWAY = [{"agent": 1, "leaves": "6.5s", "returns": "16.5s"}, {"agent": 2, "leaves": "4.5s"}]
NO_DELAY: dict[str, Any] = {"links": [], "algorithm": "d-asgd"}


class Noting(Callback):
    """Notes events, the steps of evaluations, and pauses."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.evaluated: list[tuple[int, int]] = []
        self.pauses: list[int] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def on_evaluation(self, rows: Any) -> None:
        self.evaluated += [(rows[-1]["step"], len(rows) - 1)] if rows else []

    def on_pause(self, pause: Pause, state: Any) -> None:
        self.pauses.append(pause.step)


def train(folder: Path, *callbacks: Callback, **settings: Any) -> Result:
    return Trainer(SMALL | NO_DELAY | settings, storage_path=str(folder), callbacks=callbacks).fit()


def test_a_run_says_who_leaves_and_comes_back_and_evaluates_who_is_there(tmp_path: Path) -> None:
    noting = Noting()
    result = train(tmp_path, noting, membership=AWAY)
    assert result.error is None
    assert [event for event in noting.events if event.agent >= 0] == [
        Event("agent_left", 2, 4, "agent 2 leaves after 4 steps"),
        Event("agent_left", 1, 6, "agent 1 leaves after 6 steps"),
        Event("agent_returned", 1, 16, "agent 1 is back at step 16, as the mean of agent 0"),
    ]
    # With agent 1 at 5 and at 20, never with agent 2.
    assert noting.evaluated == [(5, 2), (10, 1), (15, 1), (20, 2)]
    # A state can be kept at each evaluation; agent 1 is back by the time of the third.
    assert noting.pauses == [5, 10, 16]
    rows, metadata = read_rows(Path(result.path) / "schedule.parquet")
    assert metadata["left"] == "2"
    assert max(row.step for row in rows if row.agent == 2) == 3


def test_a_replay_says_and_evaluates_the_same(tmp_path: Path) -> None:
    result, first, again = train(tmp_path, membership=AWAY), Noting(), Noting()
    schedule = str(Path(result.path) / "schedule.parquet")
    replay = train(tmp_path / "replay", first, schedule=schedule, links=[])
    assert_same_to_the_bit(replay, result)
    assert_same_metrics(replay, result)
    assert first.evaluated == [(5, 2), (10, 1), (15, 1), (20, 2)]
    # What a replay does not use may stand in its settings, whatever the algorithm.
    other = train(tmp_path / "other", again, schedule=schedule, membership=AWAY, algorithm="gossip-push")
    assert other.error is None
    assert again.evaluated == first.evaluated


@pytest.mark.parametrize("at_step", [5, 10, 15])
def test_a_run_goes_on_to_the_same_bits_while_agents_are_away(at_step: int, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"membership": AWAY, "links": [{"between": "clusters", "delay": 2}]}
    assert_as_undisturbed(resume(interrupted(tmp_path, at_step, **changes)), **changes)


def test_the_agents_that_never_come_do_not_keep_a_schedule_from_replaying(tmp_path: Path) -> None:
    noting = Noting()
    result = train(tmp_path, noting, membership={"agent": 2, "leaves": 0})
    assert result.error is None
    assert noting.evaluated == [(step, 2) for step in (5, 10, 15, 20)]
    replay = train(tmp_path / "replay", schedule=str(Path(result.path) / "schedule.parquet"))
    assert_same_to_the_bit(replay, result)


def test_a_run_that_all_have_left_fails(tmp_path: Path) -> None:
    result = train(tmp_path, membership=[{"agents": [0, 1, 2], "leaves": 3}])
    assert str(result.error) == "every agent has left the run; events.jsonl says why"


@pytest.mark.parametrize("algorithm", ["d-asgd", "pc-asgd", "gossip-pull"])
@pytest.mark.parametrize("batched", ["never", "always"])
def test_what_is_kept_of_others_does_not_grow_while_an_agent_is_away(batched: str, algorithm: str) -> None:
    away = [{"agent": 1, "leaves": "5.5s", "returns": "50.5s"}, {"agent": 2, "leaves": "8.5s"}]
    settings = {"num_steps": 70, "links": [{"delay": 2}], "membership": away, "num_agents": 4}
    plan = make_plan(load_config(SMALL | NO_DELAY | settings | {"algorithm": algorithm}))
    agents = [spec.build(plan.data) for spec in plan.specs]
    execution = Execution(plan.schedule, agents, stacks=batched == "always")
    kept = [max(map(len, execution.versions.by_agent.values())) for _ in execution.reports()]
    assert [agent.version for agent in agents] == [70, 70, 8, 70]
    # Two steps late, and what batches run ahead.
    assert max(kept) <= 12


@pytest.mark.parametrize("mode", ["planned", "live"])
def test_nobody_leaves_whose_last_gradient_would_count_for_ever(mode: str) -> None:
    settings = {"algorithm": {"name": "server", "gathering": "ia2sgd"}, "membership": AWAY, "links": []}
    with pytest.raises(SettingsError, match=r"^membership: allowed with gathering.name = 'ia2sgd' is an empty list; "):
        make_plan(load_config(settings | {"engine": {"name": "ray", "mode": mode}}))


@pytest.mark.parametrize("algorithm", ["ad-psgd", "sgp", "sgp-overlap", "gossip-push", "noloco"])
def test_who_leaves_is_planned_where_each_version_goes_to_all_neighbors(algorithm: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config({"engine": "local", "algorithm": algorithm, "links": [], "membership": AWAY}))
    assert str(caught.value).startswith(f"membership: allowed with algorithm.name = '{algorithm}' is an empty list; ")
    assert "\n" not in str(caught.value)


SERVED: dict[str, Any] = {
    "algorithm": {"name": "server", "gathering": {"name": "k-async", "k": 2}, "correction": "dc-asgd-a"},
    "links": [{"delay": "300ms"}],
}


def test_a_run_with_a_server_says_who_leaves_and_comes_back(tmp_path: Path) -> None:
    noting = Noting()
    result = train(tmp_path, noting, membership=AWAY, **SERVED)
    assert result.error is None
    assert [event for event in noting.events if event.agent >= 0] == [
        Event("agent_left", 2, 2, "agent 2 leaves after 2 steps"),
        Event("agent_left", 1, 3, "agent 1 leaves after 3 steps"),
        Event("agent_returned", 1, 4, "agent 1 is back at step 4, with its servers' weights"),
    ]
    rows, metadata = read_rows(Path(result.path) / "schedule.parquet")
    assert metadata["left"] == "2"
    assert max(row.step for row in rows if row.agent == 2) == 1


def test_a_run_with_a_server_goes_on_to_the_same_bits_while_workers_are_away(tmp_path: Path) -> None:
    changes = SERVED | {"membership": AWAY}
    assert_as_undisturbed(resume(interrupted(tmp_path, 5, **changes)), **changes)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"membership": {"agents": [0, 1, 2], "leaves": 3}}, "every agent has left the run; events.jsonl says why"),
        ({"membership": [{"agents": [0, 1], "leaves": 3}, {"agent": 2, "leaves": 3, "returns": 90}]}, "None"),
        # What all have sent before they leave is all that the server needs.
        ({"membership": {"agents": [0, 1, 2], "leaves": 2.7}, "num_steps": 1, "evaluate_every": 1}, "None"),
    ],
)
def test_a_run_with_a_server_fails_where_all_have_left_for_good_before_its_end(
    changes: dict[str, Any], error: str, tmp_path: Path
) -> None:
    assert str(train(tmp_path, **SERVED, **changes).error) == error


@pytest.mark.parametrize("batched", ["never", "always"])
def test_a_server_does_not_keep_more_and_more_for_a_worker_that_is_away(batched: str) -> None:
    away = [{"agent": 1, "leaves": "5.5s", "returns": "50.5s"}, {"agent": 2, "leaves": "8.5s"}]
    plan = make_plan(load_config(SMALL | SERVED | {"num_steps": 70, "membership": away}))
    agents = [spec.build(plan.data) for spec in plan.specs]
    execution = Execution(plan.schedule, agents, stacks=batched == "always")
    server: Any = agents[3]
    kept = [(max(map(len, execution.versions.by_agent.values())), len(server.history)) for _ in execution.reports()]
    assert server.is_done
    assert max(versions for versions, _ in kept) <= 12
    assert max(history for _, history in kept) <= 12


@pytest.mark.parametrize(
    ("algorithm", "said"),
    [
        (
            {"gathering": {"name": "adasync", "every_seconds": 1}},
            "membership: allowed with gathering.name = 'adasync' is",
        ),
        (
            {"gathering": "sync", "shards": 2},
            "membership: allowed with gathering.name = 'sync' and shards = 2 is an empty",
        ),
        ({}, "membership.0.agent: agent 8 is a server, which stays; allowed are 0 to 7"),
    ],
)
def test_what_cannot_be_planned_of_workers_is_refused_in_a_line(algorithm: dict[str, Any], said: str) -> None:
    away = AWAY if algorithm else {"agent": 8, "leaves": 3}
    tree = {"engine": "local", "algorithm": {"name": "server", **algorithm}, "links": [], "membership": away}
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(tree))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


LIVE: dict[str, Any] = {"engine": {"name": "ray", "mode": "live"}, "num_agents": 3, "clusters": 1}


@pytest.mark.parametrize("algorithm", ["d-asgd", "ad-psgd", "gossip-push", "noloco", "choco-sgd", "server"])
def test_any_live_run_takes_membership_and_its_agents_say_themselves_when_they_leave(algorithm: str) -> None:
    plan = make_plan(load_config(LIVE | {"algorithm": algorithm, "links": [], "membership": AWAY}))
    assert plan.departures == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"membership": {"agents": [0, 1, 2], "returns": 3}},
            "membership: allowed with engine.mode = 'live' is that an",
        ),
        ({"membership": {"agent": 3, "leaves": 3}}, "membership.0.agent: agent 3; allowed are 0 to 2"),
        (
            {"membership": {"agents": [1, 4], "leaves": 3}, "algorithm": {"name": "server", "shards": 2}},
            "membership.0.agents: agent 4 is a server, which stays; allowed are 0 to 2",
        ),
        (
            {"membership": AWAY, "engine": LIVE["engine"] | {"join_later": [0, 2]}},
            "engine.join_later = [0, 2]: allowed are agents of which membership does not say when they are there, as "
            "it does of 2",
        ),
    ],
)
def test_wrong_membership_of_live_runs_is_refused_in_a_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(LIVE | {"links": []} | changes))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
