import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.schedule.delays import ComputeTimes, LinkDelay, LinkTimes, check_timing
from ray_pcasgd.schedule.law_base import InBlocks
from ray_pcasgd.schedule.law_measured import MeasuredLaw
from ray_pcasgd.schedule.laws import ConstantLaw, Law, Outage

LAWS: list[Any] = [
    2.5,
    0,
    {"name": "uniform", "low": 1, "high": 4},
    {"name": "exponential", "mean": 3},
    {"name": "shifted-exponential", "shift": 2, "mean": 0.5},
    {"name": "pareto", "shape": 3, "scale": 2},
    {"name": "log-normal", "median": 2, "sigma": 0.5},
]
NO_CLUSTERS = (0,) * 10


def law(value: Any) -> Any:
    return TypeAdapter(Law).validate_python(value)


def draws(value: Any, count: int, seed: int = 0) -> np.ndarray:
    sampler = law(value).sampler(generator(seed, "test"))
    return np.array([sampler(float(moment)) for moment in range(count)])


def link_times(delays: Sequence[LinkDelay], sender: int = 0, receiver: int = 1, seed: int = 0) -> LinkTimes:
    return LinkTimes(delays, NO_CLUSTERS, seed, sender, receiver)


def holds(delays: Sequence[LinkDelay], versions: int = 20, **link: int) -> list[int]:
    times = link_times(delays, **link)
    return [times.hold_steps(version, 0.5 * version) for version in range(1, versions + 1)]


@pytest.mark.parametrize("value", ["uniform(1, 2)", "exponential(3)", "pareto(2, 1)", "log-normal(2, 0.5)"])
def test_values_drawn_in_blocks_are_those_that_single_draws_give(value: str) -> None:
    random = generator(0, "test")
    single = {
        "uniform(1, 2)": lambda: random.uniform(1, 2),
        "exponential(3)": lambda: random.exponential(3),
        "pareto(2, 1)": lambda: 1 * (1.0 + random.pareto(2)),
        "log-normal(2, 0.5)": lambda: random.lognormal(math.log(2), 0.5),
    }[value]
    assert draws(value, 1000).tolist() == [single() for _ in range(1000)]


@pytest.mark.parametrize(
    "value", [value for value in LAWS if isinstance(law(value).sampler(generator(0, "test")), InBlocks)]
)
def test_many_values_at_once_are_those_that_come_one_by_one(value: Any) -> None:
    sampler = law(value).sampler(generator(0, "test"))
    assert isinstance(sampler, InBlocks)
    found = [*sampler.many(7), sampler(0.0), *sampler.many(3), *sampler.many(0), *sampler.many(300), sampler(0.0)]
    assert found == draws(value, 312).tolist()


@pytest.mark.parametrize("value", LAWS)
def test_sample_mean_is_the_expectation(value: Any) -> None:
    values = draws(value, 20_000)
    assert (values >= 0).all()
    assert values.mean() == pytest.approx(law(value).expectation(), rel=0.03)


@pytest.mark.parametrize("value", LAWS[2:])
def test_quantiles_follow_the_law(value: Any) -> None:
    values = np.sort(draws(value, 20_000))
    parts = law(value)
    levels = np.array([0.05, 0.5, 0.95])
    match parts.name:
        case "uniform":
            expected = parts.low + levels * (parts.high - parts.low)
        case "exponential":
            expected = -parts.mean * np.log(1 - levels)
        case "shifted-exponential":
            expected = parts.shift - parts.mean * np.log(1 - levels)
        case "pareto":
            expected = parts.scale * (1 - levels) ** (-1 / parts.shape)
        case "log-normal":
            expected = parts.median * np.exp(parts.sigma * np.array([-1.6449, 0, 1.6449]))
    np.testing.assert_allclose(np.quantile(values, levels), expected, rtol=0.05)


def test_pareto_has_no_mean_up_to_shape_one() -> None:
    assert law({"name": "pareto", "shape": 1, "scale": 2}).expectation() == math.inf


def test_heaviest_tail_stays_finite() -> None:
    assert np.isfinite(draws({"name": "pareto", "shape": 0.1, "scale": 1}, 20_000)).all()


def test_outages_hold_messages_until_the_link_is_up() -> None:
    sampler = Outage(mean_up=30, mean_down=10, delay=0.25).sampler(generator(0, "test"))
    moments = np.arange(0, 200_000, 0.5)
    delays = np.array([sampler(moment) for moment in moments]) - 0.25
    down = delays > 0
    assert down.mean() == pytest.approx(10 / 40, rel=0.05)
    assert delays.mean() + 0.25 == pytest.approx(Outage(mean_up=30, mean_down=10, delay=0.25).expectation(), rel=0.06)
    # All messages of one outage arrive together, and each outage is as long as the law says.
    ends = np.unique((moments + delays)[down].round(6))
    starts = (np.diff(down.astype(int)) == 1).sum() + down[0]
    assert abs(len(ends) - starts) <= 0.1 * starts  # an outage that ends and begins between two messages hides
    assert down.sum() * 0.5 / len(ends) == pytest.approx(10, rel=0.06)


def test_an_outage_is_over_when_its_messages_arrive() -> None:
    law = Outage(mean_up=3, mean_down=3)
    first, second = (law.sampler(generator(0, "test")) for _ in range(2))
    arrivals = sorted({moment + first(moment) for moment in map(float, range(1, 400)) if first(moment) > 0})
    assert len(arrivals) > 20
    for arrival in arrivals:
        assert second(arrival - 1e-6) > 0
        assert second(arrival + 1e-6) == 0


def test_a_link_starts_up() -> None:
    law = Outage(mean_up=5, mean_down=5)
    assert all(law.sampler(generator(seed, "test"))(0.0) == 0 for seed in range(50))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_measured_delays_are_replayed_in_order_and_again(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"delays{suffix}"
    frame = pd.DataFrame({"sent": [1, 2, 3], "late": [0.5, 2.0, 1.25]})
    _ = frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    measured = {"name": "measured", "path": str(path), "column": "late"}
    replayed = draws(measured, 7).tolist()
    doubled = [0.5, 2.0, 1.25] * 4
    assert any(replayed == doubled[place : place + 7] for place in range(3))
    assert len({tuple(draws(measured, 3, seed)) for seed in range(20)}) == 3
    assert law(measured).expectation() == 1.25
    assert law(law(measured).model_dump()) == law(measured)


FILES = {
    "cannot be read": None,
    "column = 'delay': allowed are late, sent": "late,sent\n1,2\n",
    "holds values that are no delays, such as '-2' in row 2": "delay\n1\n-2\n",
    "no delays, such as 'soon' in row 2; allowed are numbers from 0 on, up to 1e+09 seconds": "delay\n1\nsoon\n",
    "values that are no delays; allowed": "delay\n",
    "such as 'inf' in row 2": "delay\n1\ninf\n",
    "such as '2000000000.0' in row 1": "delay\n2e9\n",
    "column = 'delay': allowed are 23.1; the file seems to have no header: write column: 0": "23.1\n24.0\n",
    "allowed is CSV or Parquet": "",
}


@pytest.mark.parametrize("said", FILES)
def test_a_file_without_delays_is_refused(said: str, tmp_path: Path) -> None:
    path = tmp_path / "delays.csv"
    if (content := FILES[said]) is not None:
        path.write_text(content)
    with pytest.raises(ValidationError) as caught:
        MeasuredLaw(path=path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        -1,
        math.inf,
        "soon",
        {"name": "constant", "value": -0.5},
        {"name": "uniform", "low": 2, "high": 1},
        {"name": "exponential", "mean": 0},
        {"name": "pareto", "shape": 0, "scale": 1},
        {"name": "outage", "mean_up": 0, "mean_down": 1},
        {"name": "gamma"},
    ],
)
def test_a_law_of_negative_or_infinite_times_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        law(value)


def test_compute_times_of_agents_and_stragglers() -> None:
    compute = ComputeTimes(
        law=ConstantLaw(value=1), agents={2: ConstantLaw(value=3)}, stragglers={1: law(0.5), 2: law(0.25)}
    )
    assert [compute.sampler(0, agent)(0.0) for agent in range(4)] == [1, 1.5, 3.25, 1]
    assert [compute.extra_sampler(0, agent)(0.0) for agent in range(4)] == [0, 0.5, 0.25, 0]


def test_a_straggler_shifts_no_other_draws() -> None:
    def seconds(compute: ComputeTimes, agent: int) -> list[float]:
        sampler = compute.sampler(7, agent)
        return [sampler(0.0) for _ in range(5)]

    plain = ComputeTimes(law=law({"name": "exponential", "mean": 1}))
    slowed = plain.model_copy(update={"stragglers": {0: law({"name": "exponential", "mean": 1})}})
    assert seconds(plain, 1) == seconds(slowed, 1) != seconds(plain, 2)
    added = [long - short for long, short in zip(seconds(slowed, 0), seconds(plain, 0), strict=True)]
    injected = slowed.extra_sampler(7, 0)
    assert added == pytest.approx([injected(0.0) for _ in range(5)])


def test_link_without_an_entry_has_no_delay() -> None:
    assert (link_times([]).latency_seconds(3, 1.0), link_times([]).hold_steps(3, 1.0)) == (0.0, 0)


def test_units_do_not_displace_each_other() -> None:
    times = link_times([LinkDelay(delay=law(1.5), unit="seconds"), LinkDelay(delay=law(4))])
    assert (times.latency_seconds(3, 1.0), times.hold_steps(3, 1.0)) == (1.5, 4)


@pytest.mark.parametrize(("delay", "steps"), [(0.4, 0), (0.5, 0), (0.6, 1), (1.5, 2), (2.5, 2)])
def test_steps_are_whole(delay: float, steps: int) -> None:
    assert holds([LinkDelay(delay=law(delay))], 3) == [steps] * 3


def test_the_last_entry_that_matches_counts() -> None:
    delays = [
        LinkDelay(delay=law(1)),
        LinkDelay(delay=law(20), between=((0, 2), (1, 3)), from_step=5),
        LinkDelay(delay=law(0), from_step=10),
        LinkDelay(delay=law(7), links=((1, 0),), from_second=6.0),
    ]
    assert holds(delays, 13) == [1] * 4 + [20] * 5 + [0] * 2 + [7] * 2
    assert holds(delays, 13, sender=0, receiver=2) == [1] * 9 + [0] * 4


@pytest.mark.parametrize(
    ("entry", "covered"),
    [
        ({}, {(0, 1), (0, 2), (2, 3), (3, 4)}),
        ({"between": "clusters"}, {(0, 2), (3, 4)}),
        ({"between": [[0], [1, 2]]}, {(0, 1), (0, 2)}),
        ({"links": [[3, 2], [0, 1]]}, {(0, 1), (2, 3)}),
    ],
)
def test_entries_cover_links_both_ways(entry: dict[str, Any], covered: set[tuple[int, int]]) -> None:
    delay = LinkDelay(delay=law(3), **entry)
    links = [(0, 1), (0, 2), (2, 3), (3, 4)]
    for ends in (slice(None), slice(None, None, -1)):
        found = {link for link in links if LinkTimes([delay], (0, 0, 1, 1, 2), 0, *link[ends]).hold_steps(1, 0.0) == 3}
        assert found == covered


def test_each_direction_of_each_link_draws_for_itself() -> None:
    delays = [LinkDelay(delay=law({"name": "uniform", "low": 0, "high": 1e6}))]
    links = [(sender, receiver) for sender in range(4) for receiver in range(4) if sender != receiver]
    drawn = [tuple(holds(delays, 3, sender=sender, receiver=receiver)) for sender, receiver in links]
    assert len(set(drawn)) == len(links)
    assert holds(delays, 3) == holds(delays, 3) != holds(delays, 3, seed=1)


def test_an_entry_about_one_link_shifts_the_draws_of_no_other() -> None:
    everywhere = LinkDelay(delay=law({"name": "uniform", "low": 0, "high": 1e6}))
    one_link = LinkDelay(delay=law({"name": "exponential", "mean": 1e6}), links=((2, 3),))
    assert holds([everywhere]) == holds([one_link, everywhere]) == holds([everywhere, one_link])
    other_unit = one_link.model_copy(update={"links": None, "unit": "seconds"})
    assert holds([everywhere]) == holds([other_unit, everywhere])


def test_outages_in_steps_follow_the_versions() -> None:
    outage = LinkDelay(delay=law({"name": "outage", "mean_up": 5, "mean_down": 5}))
    found = holds([outage], 400)
    # While a link is down, a version later means a step less to wait.
    falls = [later - earlier for earlier, later in pairwise(found) if earlier > 1 and later]
    assert falls.count(-1) > 0.8 * len(falls) > 30


@pytest.mark.parametrize(
    "entry",
    [
        {"delay": 1, "between": [[0, 1]]},
        {"delay": 1, "between": [[0, 1], []]},
        {"delay": 1, "between": [[0, 1], [1, 2]]},
        {"delay": 1, "between": "clusters", "links": [[0, 1]]},
        {"delay": 1, "links": [[2, 2]]},
        {"delay": 1, "unit": "hours"},
        {"delay": 1, "from_step": -1},
        {"between": "all"},
    ],
)
def test_an_entry_without_sense_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LinkDelay.model_validate(entry)


def test_an_entry_survives_being_written_and_read() -> None:
    entry = LinkDelay(delay=law(3), links=((0, 1),), from_step=4)
    assert LinkDelay.model_validate(entry.model_dump(mode="json")) == entry


@pytest.mark.parametrize(
    ("compute", "links", "said"),
    [
        (ComputeTimes(agents={4: law(1)}), [], "compute.agents: agent 4; allowed are 0 to 3"),
        (ComputeTimes(stragglers={-1: law(1)}), [], "compute.stragglers: agent -1"),
        (ComputeTimes(), [LinkDelay(delay=law(1)), LinkDelay(delay=law(1), links=((0, 4),))], "links.1.links: agent 4"),
        (ComputeTimes(), [LinkDelay(delay=law(1), between=((0, 1), (2, 7)))], "links.0.between: agent 7"),
    ],
)
def test_agents_that_do_not_exist_are_named(compute: ComputeTimes, links: list[LinkDelay], said: str) -> None:
    with pytest.raises(ValueError, match="allowed are 0 to 3") as caught:
        check_timing(compute, links, 4)
    assert said in str(caught.value)


def test_agents_that_exist_pass() -> None:
    compute = ComputeTimes(agents={0: law(1)}, stragglers={3: law(1)})
    check_timing(compute, [LinkDelay(delay=law(1), between=((0, 1), (2, 3)))], 4)


def turn_by_turn(law: Outage, seed: int) -> Any:
    """Return what draws delays by keeping every turn: the definition, without bounds of time and memory."""
    random, turns = generator(seed, "test"), [0.0]

    def delay(moment: float) -> float:
        while turns[-1] <= moment:
            turns.append(turns[-1] + float(random.exponential(law.mean_up if len(turns) % 2 else law.mean_down)))
        following = next(place for place, turn in enumerate(turns) if turn > moment)
        return law.delay + (turns[following] - moment if following % 2 == 0 else 0.0)

    return delay


@pytest.mark.parametrize(("mean_up", "mean_down", "step"), [(30, 10, 0.5), (5, 5, 1), (0.01, 0.02, 1), (3, 3e-3, 0.7)])
def test_the_turns_of_an_outage_are_drawn_one_by_one(mean_up: float, mean_down: float, step: float) -> None:
    law = Outage(mean_up=mean_up, mean_down=mean_down, delay=0.25)
    moments = np.repeat(np.cumsum(np.random.default_rng(0).exponential(step, 100)), 2)
    expected = turn_by_turn(law, 7)
    sampler = law.sampler(generator(7, "test"))
    assert [sampler(float(moment)) for moment in moments] == [expected(float(moment)) for moment in moments]


@pytest.mark.parametrize(("mean_up", "mean_down"), [(1e-6, 1e-6), (1e-6, 3e-6), (1e-300, 1e-300), (1e-9, 1e-3)])
def test_turns_far_shorter_than_the_time_between_messages_take_neither_time_nor_memory(
    mean_up: float, mean_down: float
) -> None:
    sampler = Outage(mean_up=mean_up, mean_down=mean_down).sampler(generator(0, "test"))
    delays = np.array([sampler(1000.0 * moment) for moment in range(1, 20_000)])
    down = mean_down / (mean_up + mean_down)
    assert (delays > 0).mean() == pytest.approx(down, abs=0.015)
    assert delays.mean() == pytest.approx(down * mean_down, rel=0.04)


def test_an_outage_may_be_asked_for_at_any_time_however_late() -> None:
    sampler = Outage(mean_up=1e-6, mean_down=1e-6).sampler(generator(0, "test"))
    assert all(0 <= sampler(moment) < 1 for moment in (0.0, 1e-6, 1e9, 1e30, 1e170, 1e170))
