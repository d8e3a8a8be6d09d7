"""Calibration finds the laws that rows were planned by, from their times alone."""

import itertools
from typing import Any

import numpy as np
import pytest

from ray_pcasgd import Config
from ray_pcasgd.records import Read, Row, RowKind
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.schedule.calibration import (
    Bounds,
    Recording,
    compute_seconds,
    evaluation_seconds,
    fitted,
    message_bounds,
    message_seconds,
)
from ray_pcasgd.schedule.calibration_bytes import link_times
from ray_pcasgd.schedule.laws import ConstantLaw, LogNormal

NEAR, FAR, STEP = 0.01, 0.06, 0.1
SETTINGS: dict[str, Any] = {
    "num_agents": 4,
    "num_steps": 150,
    "evaluate_every": 150,
    "engine": "local",
    "compute": {"law": f"log-normal({STEP}, 0.3)"},
    "links": [{"delay": f"log-normal({NEAR}s, 0.3)"}, {"between": "clusters", "delay": f"log-normal({FAR}s, 0.3)"}],
}
WAITING = {"waits": True, "reads_first": True}
CASES: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "nobody waits": ({"algorithm": "d-asgd"}, {}),
    "nobody waits, reading first": ({"algorithm": "d-asgd", "overlap": False}, {"reads_first": True}),
    "each version goes to one neighbor": ({"algorithm": "gossip-push"}, {"is_push": True}),
    "all wait": ({"algorithm": "d-psgd"}, {"waits": True}),
    "all wait, reading first": ({"algorithm": "d-psgd", "overlap": False}, WAITING),
    "a server that waits for all": ({"algorithm": {"name": "server", "gathering": "sync"}}, WAITING),
    "a server that waits for nobody": ({"algorithm": {"name": "server", "gathering": "asgd"}}, WAITING),
}


def planned(settings: dict[str, Any]) -> list[Row]:
    return [row for row in make_plan(Config.model_validate(SETTINGS | settings)).schedule if row is not None]


def recorded(rows: list[Row], **kind: Any) -> Recording:
    """Return rows of peers that wait for nobody and read at their ends, or of another kind."""
    nobody: frozenset[int] = frozenset()
    defaults = {"reads_first": nobody, "waits": nobody, "sends_to_all": True, "reads_all": False, "waited": {}}
    laws = {"steps_in": lambda *_: 1, "evaluates": lambda *_: False}
    return Recording(rows=rows, **{**defaults, **laws, **kind})


def recording_of(rows: list[Row], reads_first: bool = False, waits: bool = False, is_push: bool = False) -> Recording:
    everybody = frozenset({row.agent for row in rows})
    by_agent = {agent: [row for row in rows if row.agent == agent] for agent in everybody}
    waited = {
        agent: sum(after.start - before.end for before, after in itertools.pairwise(own))
        for agent, own in by_agent.items()
    }
    some = everybody if waits else frozenset[int]()
    workers = frozenset(range(4)) if reads_first else frozenset[int]()
    return recorded(rows, reads_first=workers, waits=some, sends_to_all=not is_push, reads_all=is_push, waited=waited)


def site(agent: int) -> int:
    return agent % 4 // 2  # a server is with the first agents


@pytest.mark.parametrize("case", CASES)
def test_laws_are_found_again(case: str) -> None:
    settings, kind = CASES[case]
    recording = recording_of(planned(settings), **kind)
    laws = message_seconds(recording, lambda k, i: site(k) != site(i), {True: 1.0})
    far = laws[True]
    assert isinstance(far, LogNormal)
    assert far.median == pytest.approx(FAR, rel=0.1)
    assert far.sigma == pytest.approx(0.3, abs=0.1)
    if (near := laws[False]) is not None:  # a tenth of a step: not every run can tell
        assert near.expectation() == pytest.approx(NEAR, rel=0.6)
    seconds = compute_seconds(recording)
    assert sorted(seconds) == [0, 1, 2, 3]
    assert np.mean([one for of_agent in seconds.values() for one in of_agent]) == pytest.approx(0.1046, rel=0.05)


def test_a_round_of_local_steps_is_so_many_mini_batches() -> None:
    rows = [Row(0, step, 10.0 * step, 10.0 * step + 8.0, 10.0 * step + 8.0, ()) for step in range(4)]
    recording = recorded(rows, steps_in=lambda _, step: 4 if step < 3 else 2)
    # What lies between rows is work too, unless it is waited; after the last one as much as usual.
    assert compute_seconds(recording) == {0: [2.5, 2.5, 2.5, 5.0]}


def test_what_evaluations_take_is_no_part_of_a_step() -> None:
    ends = [1.0, 2.1, 8.2, 9.3]  # and after the second one an evaluation of 5 seconds
    rows = [Row(0, step, end - 1.0, end, end, ()) for step, end in enumerate(ends)]
    recording = recorded(rows, evaluates=lambda _, step: step == 1)
    assert compute_seconds(recording) == {0: pytest.approx([1.1, 1.1, 1.1, 1.1])}
    assert evaluation_seconds(recording) == {0: pytest.approx(5.0)}


def test_absences_and_cancelled_work_are_no_part_of_a_step() -> None:
    kinds: list[tuple[float, float, RowKind]] = [(0.0, 1.0, "step"), (1.2, 1.6, "cancelled"), (1.8, 2.8, "step")]
    kinds += [(60.0, 60.0, "rejoined"), (60.2, 61.2, "step"), (61.4, 62.4, "step")]
    rows = [Row(0, step, start, end, end, (), kind) for step, (start, end, kind) in enumerate(kinds)]
    recording = recorded(rows)
    assert compute_seconds(recording) == {0: pytest.approx([1.2] * 4)}
    waiting = recorded(rows, reads_first=frozenset({0}), waits=frozenset({0}), waited={0: 0.4})
    assert compute_seconds(waiting) == {0: pytest.approx([1.1] * 4)}


def test_what_was_there_at_the_first_look_has_no_lower_bound() -> None:
    rows = [Row(1, 0, 0.0, 1.0, 1.0, ()), Row(0, 0, 1.9, 2.0, 2.0, (Read(1, 1, 0, 0),))]
    for reads_all in (False, True):
        recording = recorded(rows, reads_first=frozenset({0}), reads_all=reads_all)
        assert message_seconds(recording, lambda *_: "all", {}) == {"all": None}


def test_the_few_late_ones_of_many_messages_are_not_overlooked() -> None:
    bounds = [Bounds(0.0, 0.1)] * 5000 + [Bounds(0.1, 0.2)] + [Bounds(0.0, 0.1)] * 5000
    law = fitted(bounds)
    assert isinstance(law, LogNormal)
    assert law.median < 0.1


def test_bounds_without_a_lower_one_tell_nothing_and_exact_ones_a_constant() -> None:
    assert fitted([Bounds(0.0, 0.2), Bounds(0.0, 0.1)]) is None
    assert fitted([Bounds(0.25, 0.25), Bounds(0.25, 0.25), Bounds(0.0, 0.5)]) == ConstantLaw(value=0.25)
    between = fitted([Bounds(0.09, 0.12), Bounds(0.1, 0.13)] * 10)
    assert isinstance(between, LogNormal)
    assert 0.09 < between.median < 0.13


# Messages of several sizes.

LATENCY = {True: 0.05, False: 0.02}
MEGABITS = {True: 4.0, False: 8.0}
LIMITED = [
    {"delay": "log-normal(20ms, 0.2)", "bandwidth": "8 Mbit/s"},
    {"between": "clusters", "delay": "log-normal(50ms, 0.2)", "bandwidth": "4 Mbit/s"},
]


def bounds_by_size(wires: tuple[str, ...], algorithm: str) -> dict[bool, dict[int, list[Bounds]]]:
    """Return what messages took within sites and between them, by their bytes, in runs that differ in their wire."""
    found: dict[bool, dict[int, list[Bounds]]] = {True: {}, False: {}}
    for wire in wires:
        settings = SETTINGS | {"links": LIMITED, "wire": wire, "algorithm": algorithm}
        schedule: Any = make_plan(Config.model_validate(settings)).schedule
        recording = recording_of(list(schedule), waits=algorithm == "d-psgd")
        for far, bounds in message_bounds(recording, lambda k, i: site(k) != site(i), {True: 1.0}).items():
            found[far][schedule.message_bytes] = bounds
    return found


@pytest.mark.parametrize(
    ("wires", "algorithm", "within"),
    [
        (("float32", "bf16", "int4"), "d-psgd", 0.02),
        # Gradients take less time than messages of 72 ms at times: they stand in queues.
        (("float32", "int8"), "d-asgd", 0.07),
    ],
)
def test_latency_and_bandwidth_are_found_again(wires: tuple[str, ...], algorithm: str, within: float) -> None:
    found = bounds_by_size(wires, algorithm)
    # Who waits for all has waited for those of the other site: of its own little is known.
    for far in (True, False) if algorithm == "d-asgd" else (True,):
        times = link_times(found[far])
        assert times.bits_per_second == pytest.approx(MEGABITS[far] * 1e6, rel=within)
        assert isinstance(times.latency, LogNormal)
        assert times.latency.median == pytest.approx(LATENCY[far], rel=0.04)
        assert times.latency.sigma == pytest.approx(0.2, abs=0.04)


SIZES = (1_000, 4_000, 20_000)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.45])
def test_queues_shift_neither_latency_nor_bandwidth(share: float) -> None:
    """Up to almost half of the messages of the largest size, and fewer of others, come much later."""
    random = np.random.default_rng(0)
    found = {}
    for size in SIZES:
        seconds = 0.03 * np.exp(0.1 * random.standard_normal(600)) + 8 * size / 2e6
        seconds += (random.random(600) < share * size / max(SIZES)) * random.exponential(0.5, 600)
        found[size] = [Bounds(one, one) for one in seconds]
    times = link_times(found)
    assert times.bits_per_second == pytest.approx(2e6, rel=0.03)
    assert isinstance(times.latency, LogNormal)
    assert times.latency.median == pytest.approx(0.03, rel=0.03)


def exactly(*seconds: float) -> list[Bounds]:
    return [Bounds(one, one) for one in seconds]


def test_a_line_by_hand_and_where_there_is_none() -> None:
    # 10 ms and 8 kB/s; each size counts by its number of messages.
    line = {80: exactly(*[0.02] * 40), 160: exactly(*[0.03] * 40)}
    times = link_times(line)
    assert times.bits_per_second == pytest.approx(64e3)
    assert isinstance(times.latency, ConstantLaw)
    assert times.latency.value == pytest.approx(0.01)
    assert link_times(line | {240: exactly(*[0.06] * 10)}).bits_per_second == pytest.approx(_slow_line(), rel=1e-9)
    # Of one size, of none that takes longer, of none that tells of anything.
    assert link_times({80: line[80]}) == (ConstantLaw(value=0.02), None)
    assert link_times({80: exactly(0.03, 0.03), 160: exactly(0.02, 0.02)}).bits_per_second is None
    assert link_times({80: [Bounds(0.0, 0.1)], 160: [Bounds(0.0, 0.1)]}) == (None, None)
    # A latency below 0 is none: the line goes through the origin.
    assert link_times({80: exactly(0.01), 160: exactly(0.03)}).bits_per_second == pytest.approx(
        8 * (80**2 + 160**2) / (80 * 0.01 + 160 * 0.03)
    )


def _slow_line() -> float:
    """Return the bandwidth of the line of least squares through all messages of the test, one by one."""
    sizes = np.array([80] * 40 + [160] * 40 + [240] * 10)
    seconds = np.array([0.02] * 40 + [0.03] * 40 + [0.06] * 10)
    slope, _ = np.linalg.lstsq(np.stack([sizes, np.ones_like(sizes)], 1), seconds, rcond=None)[0]
    return float(8 / slope)
