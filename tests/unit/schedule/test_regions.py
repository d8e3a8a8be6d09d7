"""Regions: a measured table, as links of planned runs."""

import itertools
from typing import Any

import pytest

from ray_pcasgd import Config, SettingsError, load_config
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.schedule.bandwidth import bits_per_second
from ray_pcasgd.schedule.delays import LinkTimes
from ray_pcasgd.schedule.regions import BETWEEN, REGIONS, links_of

SIX: dict[str, Any] = {
    "engine": "local",
    "num_agents": 6,
    "num_steps": 4,
    "evaluate_every": 4,
    "compute": {"law": 0.05},
}
THREE: dict[str, Any] = {"Oregon": [0, 1], "Virginia": [2, 3], "Frankfurt": [4, 5]}


def test_the_table_has_every_pair_of_ten_regions_and_nothing_faster_than_light() -> None:
    assert len(REGIONS) == 10
    assert set(BETWEEN) == {frozenset(pair) for pair in itertools.combinations(REGIONS, 2)}
    assert BETWEEN[frozenset(("Oregon", "Virginia"))] == (67, 0.79)
    assert BETWEEN[frozenset(("Sydney", "Ireland"))] == (254, 0.344)
    assert BETWEEN[frozenset(("London", "Frankfurt"))] == (14, 1.14)
    assert all(trip > 5 and 0.3 < rate < 2 for trip, rate in BETWEEN.values())


def test_a_message_takes_half_a_round_trip_between_regions_and_no_time_within_one() -> None:
    links = links_of({name: tuple(agents) for name, agents in THREE.items()})
    far = LinkTimes(links, (0,) * 6, 0, 0, 5)
    assert far.latency_seconds(0, 0.0) == pytest.approx(0.0715)
    bandwidth = far.bandwidth(0, 0.0)
    assert far.has_lasting_bandwidth
    assert bandwidth is not None
    assert bits_per_second(bandwidth) == 404_000_000
    near = LinkTimes(links, (0,) * 6, 0, 0, 1)
    assert near.latency_seconds(0, 0.0) == 0
    assert near.bandwidth(0, 0.0) is None


@pytest.mark.parametrize("how", ["mapping", "assignment", "Config"])
def test_regions_take_the_place_of_the_example_s_links_and_clusters(how: str) -> None:
    if how == "mapping":
        config = load_config({**SIX, "regions": THREE})
    elif how == "assignment":
        config = load_config(SIX, ["regions={Oregon: [0, 1], Virginia: [2, 3], Frankfurt: [4, 5]}"])
    else:
        config = Config.model_validate({**SIX, "regions": THREE})
    assert config.links == ()
    plan = make_plan(config)
    assert plan.clusters == (0, 0, 1, 1, 2, 2)
    assert len([row for row in plan.schedule if row]) == 24


def test_links_that_are_given_say_more() -> None:
    given = load_config(SIX, ["links=[{delay: 2ms}]", "regions={Oregon: [0], Ohio: [5]}"])
    assert len(given.links) == 1
    assert make_plan(given).clusters == (0, 0, 0, 1, 1, 1), "not all agents are in regions"


@pytest.mark.parametrize(
    ("regions", "error"),
    [
        ({"Mars": [0]}, "regions: 'Mars'; allowed are Frankfurt, Ireland, London"),
        ({"Ohio": [0, 6]}, "regions.Ohio: agent 6; allowed are 0 to 5"),
        ({"Ohio": []}, "regions.Ohio: is empty; allowed is one agent or more"),
        ({"Ohio": [0], "Tokyo": [1, 0]}, "regions.Tokyo: agent 0 is in Ohio too; allowed is one region"),
    ],
)
def test_wrong_regions_are_one_line(regions: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingsError) as raised:
        make_plan(load_config({**SIX, "regions": regions}))
    assert str(raised.value).startswith(error)


def test_a_live_run_has_a_network_of_its_own() -> None:
    config = load_config({**SIX, "engine": {"name": "ray", "mode": "live"}, "regions": {"Ohio": [0]}})
    with pytest.raises(SettingsError, match=r"^regions.Ohio = \[0\]: allowed in planned runs"):
        make_plan(config)
