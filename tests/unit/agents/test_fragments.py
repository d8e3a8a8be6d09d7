"""Messages that hold a part of the model, against a slow reference in float64."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.fragments import Fragments, part_of
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.engines.base import InterruptionError
from ray_pcasgd.engines.live import agent_events as happened
from ray_pcasgd.engines.live import driver_actions as act
from ray_pcasgd.engines.live.commands import Join
from ray_pcasgd.engines.live.membership import Membership
from ray_pcasgd.engines.live.presence import Presence
from ray_pcasgd.records import Row
from ray_pcasgd.runs.plan.wire import check_whole
from ray_pcasgd.runs.settings.loading import load_config
from tests.speed import examples
from tests.unit.agents.local_reference import (
    PUBLISHED,
    SIZE,
    Array,
    CombiningReference,
    Reference,
    assert_refused,
    assert_where_the_reference_is,
    executed,
    gone_on,
    planned,
)

PARTS = 3
"""Of four numbers: two, two and none."""


def missing(version: int) -> Array:
    """Whether a version's message holds nothing of a number."""
    first = 2 * part_of(version, PARTS, 0)
    return ~np.isin(np.arange(SIZE + 1), [first, first + 1])


class InParts(Reference):
    """Of agents that read at a round's end."""

    def taken(self, i: int, version: int, reads: Any) -> Array:
        x = self.versions[i, version]

        def sent(what: str, agent: int, version: int, vector: Array) -> Array:
            return np.where(missing(version), x if what == "weights" else 0.0, vector)

        self.sent = sent
        return super().taken(i, version, reads)


class InPartsCombining(CombiningReference):
    """Of agents that combine first."""

    def combine(self, i: int, version: int, reads: Any) -> Array:
        x = self.versions[i, version]

        def sent(what: str, agent: int, version: int, vector: Array) -> Array:
            # The direction that has led to a version comes with it.
            absent = missing(version + (what == "direction"))
            return np.where(absent, x if what == "weights" else 0.0, vector)

        self.sent = sent
        return super().combine(i, version, reads)

    def mean(self, i: int, version: int, reads: Any) -> Array:
        whole = {read[:2]: self.versions[read[:2]] for read in reads}
        x = self.versions[i, version]
        self.versions |= {key: np.where(missing(key[1]), x, z) for key, z in whole.items()}
        found = super().mean(i, version, reads)
        self.versions |= whole
        return found


@pytest.mark.parametrize("local_steps", [1, (2, 7, 5)], ids=str)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("algorithm", ["d-psgd", "d-asgd", PUBLISHED], ids=["d-psgd", "d-asgd", "pc-asgd"])
def test_agents_are_where_the_slow_reference_has_them(algorithm: Any, overlap: bool, local_steps: Any) -> None:
    own = planned(algorithm=algorithm, overlap=overlap, local_steps=local_steps, wire={"fragments": PARTS})
    agents, reports = executed(own)
    kind = InParts if overlap else InPartsCombining
    reference = kind(own, 0.6 if algorithm is PUBLISHED else None)
    assert_where_the_reference_is(agents, reference.run(), rtol=1e-5, atol=1e-6)
    assert any(read.staleness for report in reports for read in report.row.reads)


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 1000), st.integers(0, 2**32))
@examples(40, whole=200)
def test_a_turn_of_messages_holds_every_number_once(fragments: int, numbers: int, turn: int, seed: int) -> None:
    fragments = min(fragments, numbers)
    cutter, vector = Fragments(fragments, seed), torch.arange(1.0, numbers + 1)
    held: Counter[float] = Counter()
    for version in range(turn * fragments, (turn + 1) * fragments):
        part = cutter.cut(vector, version)
        assert len(part) == cutter.length(numbers)
        held.update(part[part > 0].tolist())
        whole = cutter.filled(part, version, -vector)
        assert torch.equal(whole.abs(), vector)
        assert torch.equal(whole[whole > 0], part[part > 0])
    assert held == Counter(vector.tolist())


def test_parts_do_not_come_in_the_same_order_every_turn() -> None:
    """A reader that sees every second version of two parts would else never see one of them."""
    seen = {part_of(version, 2, 0) for version in range(0, 40, 2)}
    assert seen == {0, 1}


def test_messages_hold_a_part_of_the_bytes() -> None:
    sizes = {}
    for fragments in (1, 2, 3):
        wire = {"weights": "bf16", "directions": "float32", "fragments": fragments}
        agents, reports = executed(planned(algorithm=PUBLISHED, wire=wire))
        assert {report.bytes_sent for report in reports} == {2 * agents[0].message_bytes}
        sizes[fragments] = agents[0].message_bytes
    assert sizes == {1: 6 * 4, 2: 6 * 2, 3: 6 * 2}


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("formats", [{}, {"weights": "int8", "directions": "bf16"}, {"weights": "int8"}], ids=str)
def test_a_run_goes_on_from_a_state_to_the_bit(formats: dict[str, str], overlap: bool) -> None:
    wire = {**formats, "fragments": 3}
    own = planned(algorithm="pc-asgd", overlap=overlap, local_steps=(2, 7, 5), wire=wire)
    gone_on(own)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a rule that does not average": (
        {"algorithm": "gasloc"},
        "wire.fragments = 4: allowed with algorithm.name = 'gasl",
    ),
    "push-sum": (
        {"algorithm": "sgp"},
        "wire.fragments = 4: allowed with algorithm.name = 'sgp' is 1; others are for d-",
    ),
    "pairs": (
        {"algorithm": "ad-psgd", "links": []},
        "wire.fragments = 4: allowed with algorithm.name = 'ad-psgd' is 1",
    ),
    "a server": ({"algorithm": {"name": "diloco"}}, "wire.fragments = 4: allowed with algorithm.name = 'diloco' is 1"),
    "displacement": (
        {"algorithm": {"name": "pc-asgd", "prediction": "displacement"}},
        "algorithm.prediction = 'displacement': allowed with wire.fragments = 4 is direction",
    ),
    "own drift": (
        {"algorithm": {"name": "p-asgd", "prediction": "own-drift"}},
        "algorithm.prediction = 'own-drift': allowed with wire.fragments = 4 is direction",
    ),
    "mean squares": (
        {"algorithm": {"name": "pc-asgd", "compensation": "adaptive"}},
        "algorithm.compensation.name = 'adaptive': allowed with wire.fragments = 4 is constant or relative",
    ),
    "more parts than numbers": ({"wire": {"fragments": 5}}, "wire.fragments = 5: allowed are 1 to 4, the model's para"),
    "what else is left out": (
        {"wire": {"fragments": 4, "directions": "top-k"}},
        "wire.directions.name = 'top-k': allowed with wire.fragments = 4 is float32, bf16, int8 or int4",
    ),
    "who comes back": (
        {"membership": [{"agent": 2, "leaves": 3}, {"agent": 1, "leaves": 3, "returns": 5}]},
        "membership: allowed with wire.fragments = 4 is that nobody comes in or back; nobody holds a whole model",
    ),
    "who comes later": (
        {"engine": {"name": "ray", "mode": "live", "join_later": [2]}, "links": [], "compute": {}},
        "engine.join_later = [2]: allowed with wire.fragments = 4 is an empty list",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sent_in_parts_is_refused_in_one_line(name: str) -> None:
    settings, message = REFUSED[name]
    assert_refused({"algorithm": "pc-asgd", "wire": {"fragments": 4}} | settings, message)


def test_a_recorded_return_as_the_mean_of_whole_versions_is_refused() -> None:
    config = load_config({"wire": {"fragments": 2}, "schedule": "some.parquet"})
    read = executed(planned(algorithm="d-asgd"))[1][-1].row.reads[:1]
    back = Row(1, 4, 0.0, 0.0, 0.0, read, "rejoined")
    with pytest.raises(ValueError, match=r"schedule = 'some.parquet': agent 1 comes back at step 4 as the mean of"):
        check_whole(config, [back])
    check_whole(config, [back._replace(reads=())])


def test_a_planned_agent_may_leave_for_good() -> None:
    own = planned(algorithm="pc-asgd", wire={"fragments": 2}, membership=[{"agent": 1, "leaves": 3}])
    agents, reports = executed(own)
    assert agents[1].version < agents[0].version
    assert all(report.row.kind == "step" for report in reports)


@pytest.mark.parametrize("fragments", [1, 2])
def test_a_live_agent_that_is_lost_does_not_come_back(fragments: int) -> None:
    own = planned(algorithm="pc-asgd", wire={"fragments": fragments})
    specs = [spec for spec in own.specs if isinstance(spec, AgentSpec)]
    membership = Membership(specs, -1, unknown=(2,))
    actions = [*membership.handle(happened.Began({}), 0.0)]
    actions += membership.handle(happened.Lost(1, InterruptionError("gone", 0)), 0.0)
    comes_back = fragments == 1
    assert [one.agent for one in actions if isinstance(one, act.Make)] == ([2, 1] if comes_back else [])
    told = {one.agent for one in actions if isinstance(one, act.Announce)}
    assert told == ({1} if comes_back else {1, 2})
    if not comes_back:
        assert set(membership.those(Presence.AWAY)) == {1, 2}
        refusal = membership.refusal(Join(agent=1))
        assert refusal is not None
        assert refusal.startswith("join: allowed are runs with wire.fragments = 1")
