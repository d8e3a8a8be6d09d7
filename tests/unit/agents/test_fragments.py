"""Messages that hold a part of the model, against a slow reference in float64."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.agents.fragments import Fragments, part_of
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.sent_weights import SentWeights
from ray_pcasgd.agents.wire import Wire
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import Plan
from tests.references.peers import (
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
from tests.speed import examples

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
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_sent_in_parts_is_refused_in_one_line(name: str) -> None:
    settings, message = REFUSED[name]
    assert_refused({"algorithm": "pc-asgd", "wire": {"fragments": 4}} | settings, message)


def test_a_planned_agent_may_leave_for_good() -> None:
    own = planned(algorithm="pc-asgd", wire={"fragments": 2}, membership=[{"agent": 1, "leaves": 3}])
    agents, reports = executed(own)
    assert agents[1].version < agents[0].version
    assert all(report.row.kind == "step" for report in reports)


FORMATS: list[dict[str, str]] = [{}, {"weights": "int8", "directions": "bf16"}]
AWAY = [{"agent": 1, "leaves": "4s", "returns": "9s"}, {"agent": 2, "returns": "3s"}]


def publishing_whole(own: Plan) -> Plan:
    specs = [spec for spec in own.specs if isinstance(spec, AgentSpec)]
    recipe = replace(specs[0].recipe, publishes_whole=True)
    return replace(own, specs=tuple(replace(spec, recipe=recipe) for spec in specs))


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_of_a_whole_version_the_same_is_read_as_of_its_fragment(formats: dict[str, str], overlap: bool) -> None:
    own = planned(algorithm=PUBLISHED, overlap=overlap, wire={**formats, "fragments": PARTS})
    (agents, reports), (others, again) = executed(own), executed(publishing_whole(own))
    for one, other in zip(agents, others, strict=True):
        assert torch.equal(one.weights, other.weights)
    assert [report.bytes_sent for report in reports] == [report.bytes_sent for report in again]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_who_comes_back_is_the_mean_of_whole_versions(formats: dict[str, str], overlap: bool) -> None:
    own = planned(algorithm="pc-asgd", overlap=overlap, wire={**formats, "fragments": PARTS}, membership=AWAY)
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    history = {(agent.spec.agent, 0): agent.weights for agent in execution.agents}
    back = []
    for report in execution.reports():
        assert isinstance(report, StepReport)
        row, agent = report.row, execution.agents[report.row.agent]
        history[row.agent, row.step + 1] = agent.weights
        if row.kind == "rejoined":
            mean = torch.stack([history[read[:2]] for read in row.reads]).mean(0)
            torch.testing.assert_close(agent.weights, mean, rtol=0, atol=1e-6)
            # Its own fragment to both neighbors, and all that it was given, in float32.
            assert report.bytes_sent == 2 * agent.message_bytes + len(row.reads) * 4 * (SIZE + 1)
            back.append((row.agent, len(row.reads)))
    assert back == [(2, 2), (1, 2)]
    assert all(agent.progress == 23 for agent in execution.agents)


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_a_run_whose_agents_come_back_goes_on_from_a_state_to_the_bit(formats: dict[str, str]) -> None:
    gone_on(planned(algorithm="pc-asgd", wire={**formats, "fragments": 3}, membership=AWAY))


def test_what_is_neither_a_fragment_nor_whole_is_refused() -> None:
    own, draw = torch.zeros(10), (0, "weights", 1, 5)
    for wire, sizes in ((Wire(), "5 numbers; allowed are 4 and 10"), (Wire(weights="bf16"), "5 bytes; allowed are 8")):  # type: ignore[arg-type]
        sent = SentWeights(wire.weights, Fragments(3, 0))
        whole = torch.arange(10.0)
        opened = sent.opened(sent.whole(whole), own, draw)
        assert opened.whole is not None
        assert torch.equal(opened.whole, whole)
        with pytest.raises(ValueError, match=rf"^its weights have {sizes}"):
            sent.opened(torch.zeros(5, dtype=sent.fragment(whole, draw).dtype), own, draw)
        with pytest.raises(ValueError, match=r"^its weights have numbers that are not finite$"):
            sent.opened(sent.whole(torch.full((10,), torch.inf)), own, draw)
