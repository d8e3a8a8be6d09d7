"""A2CiD2: its constants, a slow reference in float64 written from the paper, what is conserved, how fast it mixes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st

from ray_pcasgd.agents.pair import PairPeer, PairSpec
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import Read, Row, RowKind
from ray_pcasgd.rules.acid import ACiD, connectivity
from ray_pcasgd.rules.adpsgd import ADPSGD
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, read_yaml
from ray_pcasgd.runs.trainer import Trainer
from tests.comparing import assert_same_to_the_bit
from tests.references.pairs import ACiDReference

Array = npt.NDArray[np.float64]

SMALL: dict[str, Any] = {
    "num_agents": 6,
    "num_steps": 12,
    "evaluate_every": 6,
    "topology": "ring",
    "algorithm": {"name": "ad-psgd", "acceleration": "acid"},
    "links": [],
    "compute": {"law": {"name": "exponential", "mean": 2.0}, "stragglers": {1: 1.5}},
    "task": {"model": {"hidden": [4]}},
    "engine": "local",
}
LATE = {"links": [{"delay": 0.7, "unit": "seconds"}]}
OWN_UNITS: dict[str, Any] = {"schedule": "recorded"}


def plan(**changes: Any) -> Plan:
    return make_plan(load_config(SMALL | changes))


def acid_of(own: Plan) -> ACiD:
    assert isinstance(own.config.algorithm, ADPSGD)
    assert own.config.algorithm.acceleration is not None
    return own.config.algorithm.acceleration


def rows_of(own: Plan) -> list[Row]:
    return [row for row in own.schedule if row is not None]


def pairs_of(own: Plan) -> list[PairPeer]:
    agents = [spec.build(own.data) for spec in own.specs]
    return [agent for agent in agents if isinstance(agent, PairPeer)]


@pytest.mark.parametrize("number", [4, 6, 16])
def test_the_constants_of_a_ring_and_of_a_complete_graph_are_those_of_the_closed_forms(number: int) -> None:
    """Of a ring, eigenvalues are cosines, and an edge is in parallel with the ``n - 1`` others."""
    ring = connectivity(number, {(i, (i + 1) % number): 0.5 for i in range(number)})
    assert ring.chi1 == pytest.approx(1 / (0.5 * 2 * (1 - np.cos(2 * np.pi / number))))
    assert ring.chi2 == pytest.approx((number - 1) / number / 0.5 / 2)
    assert ring.mixing_rate == pytest.approx(0.5 / np.sqrt(ring.chi1 * ring.chi2))
    assert ring.twin_step == pytest.approx(0.5 * np.sqrt(ring.chi1 / ring.chi2))
    complete = connectivity(number, {(i, k): 2.0 for i in range(number) for k in range(i)})
    assert complete.chi1 == pytest.approx(complete.chi2) == pytest.approx(1 / (2 * number))
    assert complete.twin_step == pytest.approx(0.5)


@pytest.mark.parametrize("number", [4, 8, 16])
def test_of_a_complete_graph_pairs_use_the_edges_between_even_and_odd_numbers(number: int) -> None:
    """Of which chi1 / chi2 is n / (n - 1): A2CiD2 then gains next to nothing."""
    acid = acid_of(plan(num_agents=number, topology="complete", compute={"law": 1.0}))
    assert acid.twin_step == pytest.approx(0.5 * np.sqrt(number / (number - 1)))
    assert acid.mixing_rate == pytest.approx(0.5 / np.sqrt((number - 1) / number))


def test_the_rates_of_the_edges_follow_from_who_asks_how_often() -> None:
    """Of a ring of four, agents 0 and 2 ask, each its two neighbors; agent 2 takes thrice as long for a gradient."""
    own = plan(num_agents=4, compute={"law": 1.0, "agents": {2: 3.0}})
    rates = {(0, 1): 0.75, (0, 3): 0.75, (2, 1): 0.25, (2, 3): 0.25}  # a unit is 1.5 seconds
    expected = connectivity(4, rates)
    assert acid_of(own).mixing_rate == pytest.approx(expected.mixing_rate)
    assert acid_of(own).twin_step == pytest.approx(expected.twin_step)
    assert acid_of(own).gradient_seconds == 1.5
    given = plan(algorithm={"name": "ad-psgd", "acceleration": {"name": "acid", "mixing_rate": 0.2}}, num_agents=4)
    assert acid_of(given).mixing_rate == 0.2
    assert acid_of(given).twin_step != 0.5
    alone = plan(num_agents=1, clusters=1, compute={"law": 1.0})
    assert (acid_of(alone).mixing_rate, acid_of(alone).twin_step) == (0, 0.5)


@pytest.mark.parametrize(
    "settings",
    [{}, LATE, LATE | OWN_UNITS, {"topology": "star", "optimizer": {"momentum": 0.5}}],
    ids=["global unit", "late", "own units", "star"],
)
def test_runs_equal_the_slow_reference(settings: dict[str, Any], tmp_path: Path) -> None:
    if "schedule" in settings:  # an ad-psgd run's, replayed: each agent knows its own mean gradient alone
        plain = Trainer(SMALL | LATE | {"algorithm": "ad-psgd", "storage_path": str(tmp_path)}).fit()
        settings = settings | {"schedule": str(Path(plain.path) / "schedule.parquet")}
    own = plan(**settings)
    rows, agents = rows_of(own), pairs_of(own)
    assert (acid_of(own).gradient_seconds is None) == ("schedule" in settings)
    execution = Execution(rows, agents)
    reference = ACiDReference(agents[0].weights.double().numpy(), len(agents), acid_of(own), rows)
    furthest = 0.0
    for row in rows:
        execution.prepare()
        reference.take(row, 0.1 * agents[row.agent].direction.double().numpy())
        list(execution.execute([row]))
        agent = agents[row.agent]
        assert agent.twin is not None
        found = np.stack([agent.weights.double().numpy(), agent.twin.weights.double().numpy()])
        np.testing.assert_allclose(found, reference.pairs[row.agent], atol=1e-5)
        furthest = max(furthest, float(np.abs(found[0] - found[1]).max()))
    assert furthest > 1e-3, "twins never left their agents"


class Happening(NamedTuple):
    """What happens at one moment: the rows of it, and who is there afterwards."""

    rows: list[Row]
    there: frozenset[int]


@st.composite
def with_losses(draw: st.DrawFn) -> list[Happening]:
    """A live run of four agents of which one or the other dies, also in the middle of an exchange, and comes back."""
    at, steps, began, away = Counter[int](), Counter[int](), [0.0] * 4, set[int]()
    happened, now = list[Happening](), 0.0

    def take(agent: int, kind: RowKind, times: tuple[float, float, float], *reads: Read, skipped: int = 0) -> Row:
        row = Row(agent, at[agent] + skipped, *times, reads, kind)
        at[agent] = row.step + 1
        steps[agent] += kind == "step"
        began[agent] = began[agent] if kind == "passive" else row.end
        return row

    for _ in range(draw(st.integers(1, 30))):
        rows: list[Row] = []
        now += draw(st.sampled_from([0.25, 1.0, 5.0]))
        active, passive = draw(st.sampled_from([0, 2])), draw(st.sampled_from([1, 3]))
        if not {active, passive} & away and steps[active] < 12:
            lost = draw(st.sampled_from([None, None, active, passive]))
            ready, to_passive, to_active = now, Read(active, at[active], 0, 0), Read(passive, at[passive], 0, 0)
            if lost != passive:
                rows.append(take(passive, "passive", (began[active], ready, now + 0.1), to_passive))
            if lost != active:
                reads = () if lost == passive else (to_active,)
                rows.append(take(active, "step", (began[active], ready, now + 0.2), *reads))
            away |= {lost} - {None}  # type: ignore[arg-type]
        elif away:
            back = draw(st.sampled_from(sorted(away)))
            away.discard(back)
            reads = tuple(Read(k, at[k], 0, 0) for k in range(4) if k % 2 != back % 2 and k not in away)
            rows.append(take(back, "rejoined", (now, now, now), *reads, skipped=draw(st.integers(0, 2))))
        if passive not in away and steps[passive] < 12 and draw(st.booleans()):
            rows.append(take(passive, "step", (began[passive], now + 0.2, now + 0.2)))
        happened.append(Happening(rows, frozenset({*range(4)} - away)))
    return happened


def pair_of(agent: PairPeer) -> Array:
    """Return an agent's weights and its twin, of shape (2, D)."""
    assert agent.twin is not None
    return np.stack([agent.weights.double().numpy(), agent.twin.weights.double().numpy()])


@limited(max_examples=40)
@given(with_losses(), st.sampled_from([None, 1.5]))
def test_agents_that_are_lost_in_the_middle_of_it_and_come_back_equal_the_slow_reference(
    happened: list[Happening], unit: float | None
) -> None:
    """And as long as the same agents are there, their weights and twins together change by their own steps alone."""
    acid = {"name": "acid", "mixing_rate": 0.4, "twin_step": 0.9, "gradient_seconds": unit or 1.0}
    own = plan(num_agents=4, algorithm={"name": "ad-psgd", "acceleration": acid})
    live = acid_of(own).model_copy(update={"gradient_seconds": unit})  # which live runs alone do without
    agents = [replace(spec, acceleration=live).build(own.data) for spec in own.specs if isinstance(spec, PairSpec)]
    rows = [row for one in happened for row in one.rows]
    execution = Execution(rows, agents)
    reference = ACiDReference(agents[0].weights.double().numpy(), 4, live, rows)
    there, total = frozenset(range(4)), sum(pair_of(agent).sum(0) for agent in agents)
    for one in happened:
        moved: Any = 0.0
        for row in one.rows:
            execution.prepare()
            step = 0.1 * agents[row.agent].direction.double().numpy()
            moved = moved + 2 * step * (row.kind == "step")
            reference.take(row, step)
            list(execution.execute([row]))
            np.testing.assert_allclose(pair_of(agents[row.agent]), reference.pairs[row.agent], atol=1e-5)
        after = sum(pair_of(agents[k]).sum(0) for k in sorted(one.there))
        if one.there == there:
            np.testing.assert_allclose(after, total - moved, atol=1e-4)
        there, total = one.there, after


@pytest.mark.parametrize("settings", [{}, LATE], ids=["at once", "late"])
def test_both_sums_change_by_the_agents_own_steps_alone(settings: dict[str, Any]) -> None:
    """At one moment for all, of the sum of weights and of that of twins; with late links, of the two together."""
    own = plan(**settings, num_steps=30)
    rows, agents = rows_of(own), pairs_of(own)
    execution = Execution(rows, agents)
    start = agents[0].weights.double()
    total = torch.zeros_like(start)
    for row in rows:
        execution.prepare()
        if row.kind == "step":
            total += 0.1 * agents[row.agent].direction.double()
        list(execution.execute([row]))
    end = max(row.end for row in rows)
    sums = torch.zeros(2, len(start), dtype=torch.float64)
    for agent in agents:
        assert agent.twin is not None
        last = Row(agent.spec.agent, agent.version, end, end, end, (), "passive")
        sums += torch.stack(agent.twin.flowed(agent.weights, last, end)).double()
    expected = len(agents) * start - total
    torch.testing.assert_close(sums.sum(dim=0), 2 * expected, rtol=0, atol=2e-5)
    apart = (sums[0] - sums[1]).abs().max().item()
    if settings:
        assert apart > 1e-4, "late links are no harder"
    else:
        torch.testing.assert_close(sums, torch.stack([expected, expected]), rtol=0, atol=2e-5)


def test_without_a_flow_it_is_ad_psgd_to_the_bit(tmp_path: Path) -> None:
    still = {"name": "ad-psgd", "acceleration": {"name": "acid", "mixing_rate": 0, "twin_step": 0.5}}
    settings = SMALL | LATE | {"storage_path": str(tmp_path)}
    plain = Trainer(settings | {"algorithm": "ad-psgd", "name": "plain"}).fit()
    assert_same_to_the_bit(Trainer(settings | {"algorithm": still, "name": "still"}).fit(), plain)
    moving = Trainer(settings | {"name": "moving"}).fit()
    assert moving.schedule_hash == plain.schedule_hash
    assert moving.metrics["test_loss"] != plain.metrics["test_loss"]


def test_a_run_replays_to_its_weights_and_says_what_it_was_run_with(tmp_path: Path) -> None:
    settings = SMALL | LATE | {"storage_path": str(tmp_path)}
    result = Trainer(settings).fit()
    written = read_yaml(Path(result.path) / "config.yaml")["algorithm"]["acceleration"]
    assert written["gradient_seconds"] == pytest.approx(2 + 1.5 / 6)
    schedule = str(Path(result.path) / "schedule.parquet")
    filled = {"name": "ad-psgd", "acceleration": written}
    assert_same_to_the_bit(Trainer(settings | {"algorithm": filled, "schedule": schedule}).fit(), result)


def test_an_agent_that_comes_back_takes_its_neighbors_twin() -> None:
    """It comes back as the mean of where its neighbors are, not of what they are going to send."""
    acid = {"name": "acid", "mixing_rate": 0.4, "twin_step": 0.9}
    own = plan(num_agents=2, compute={"law": 1.0}, num_steps=3, algorithm={"name": "ad-psgd", "acceleration": acid})
    agents = pairs_of(own)
    rows = [
        Row(1, 0, 0, 1.5, 1.5, ()),
        Row(1, 1, 2, 2, 2, (Read(0, 0, 0, 0),), "passive"),
        Row(0, 0, 0, 2, 2, (Read(1, 1, 0, 0),)),
        Row(1, 2, 3, 3, 3, (Read(0, 1, 0, 0),), "rejoined"),
        Row(1, 3, 5, 5, 5, (Read(0, 1, 0, 0),), "passive"),
        Row(0, 1, 2, 5, 5, (Read(1, 3, 0, 0),)),
    ]
    execution = Execution(rows, agents)
    for row in rows[:4]:
        execution.prepare()
        list(execution.execute([row]))
    back, twin = agents[1], agents[1].twin
    assert twin is not None
    donor = agents[0].twin
    assert donor is not None
    assert torch.equal(back.weights, agents[0].weights)
    assert torch.equal(twin.weights, donor.weights)
    assert not torch.equal(twin.weights, back.weights)
    assert (twin.moment, twin.unit) == (3, 1.0)
    # Its neighbor has sent weights and twin, where an exchange takes weights alone.
    assert back.bytes_sent(rows[3]) == back.bytes_sent(rows[1]) + 4 * len(twin.weights)
    for row in rows[4:]:
        execution.prepare()
        list(execution.execute([row]))
    assert not torch.equal(agents[0].twin.weights, agents[0].weights)


@pytest.mark.parametrize(
    ("acceleration", "message"),
    [
        ({"name": "acid", "mixing_rate": -1}, "algorithm.acceleration.mixing_rate = -1: allowed are values from 0 on"),
        ({"name": "acid", "gradient_seconds": 0}, "algorithm.acceleration.gradient_seconds = 0: allowed are values ab"),
        ({"name": "acid", "eta": 1}, "algorithm.acceleration.eta = 1: no such setting"),
        ("a2cid2", "algorithm.acceleration"),
    ],
)
def test_settings_that_mean_nothing_are_refused(acceleration: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plan(algorithm={"name": "ad-psgd", "acceleration": acceleration})


def decay(number: int, accelerated: bool, rate: float, seed: int, units: int = 60) -> float:
    """Return the rate per unit of time at which agents on a ring come together that only average, of squares.

    Each averages ``rate`` times in a unit.
    """
    law = {"name": "exponential", "mean": 1 / rate}
    own = plan(num_agents=number, num_steps=int(units * rate), compute={"law": law}, seed=seed)
    settings = acid_of(own) if accelerated else ACiD(mixing_rate=0, twin_step=0.5, gradient_seconds=1)
    rows = [row for row in rows_of(own) if row.end < units * 0.9]
    reference = ACiDReference(np.zeros(2), number, settings, rows_of(own))
    phases = 2 * np.pi * np.arange(number) / number
    for i, phase in enumerate(phases):
        reference.pairs[i][:] = np.cos(phase), np.sin(phase)
    sizes = []
    for row in rows:
        reference.take(row, np.zeros(2))
        if row.end > units * 0.45 and not sizes:
            sizes.append(np.linalg.norm([pair[0] for pair in reference.pairs]))
    sizes.append(np.linalg.norm([pair[0] for pair in reference.pairs]))
    return 2 * float(np.log(sizes[0] / sizes[1]) / (units * 0.45))


@pytest.mark.parametrize(("number", "expected"), [(16, (0.073, 0.171, 0.237)), (32, (0.020, 0.039, 0.129))])
def test_agents_on_a_ring_come_together_faster_than_by_twice_as_many_averagings(
    number: int, expected: tuple[float, float, float]
) -> None:
    """The paper's process, simulated by itself, has these rates; here half of the agents ask, others do not."""
    kinds = ((False, 1.0), (False, 2.0), (True, 1.0))
    found = [np.mean([decay(number, *kind, seed) for seed in range(2)]) for kind in kinds]
    assert found == pytest.approx(expected, rel=0.25)
    assert found[0] < found[1] < found[2]


def test_counts_of_events_are_those_of_a_rate_of_one() -> None:
    own = plan(num_agents=16, num_steps=20, compute={"law": 1.0})
    kinds = Counter(row.kind for row in rows_of(own))
    assert kinds["passive"] == 8 * 20
