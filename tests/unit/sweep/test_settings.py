"""What a sweep is told, and what becomes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ray_pcasgd.report.sweep_page import write_sweep_report
from ray_pcasgd.report.sweep_pictures import heat_map, marginals, sensitivity
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.sweep.results import summarized
from ray_pcasgd.sweep.settings import Range, load_sweep, nested

KEYS = ["algorithm.theta", "step_size"]


def test_points_are_all_combinations() -> None:
    sweep = load_sweep({"space": {"algorithm.theta": [0, 0.5], "step_size": [0.1, 0.2, 0.3]}})
    points = list(sweep.points())
    assert len(points) == 6
    assert points[0] == {"algorithm.theta": 0, "step_size": 0.1}
    assert points[-1] == {"algorithm.theta": 0.5, "step_size": 0.3}


def test_a_point_becomes_settings_whatever_the_order_of_its_keys() -> None:
    for point in (
        {"algorithm": "pc-asgd", "algorithm.theta": 0.7, "barrier": "all"},
        {"algorithm.theta": 0.7, "barrier": "all", "algorithm": "pc-asgd"},
        {"algorithm.theta": 0.7, "barrier": "all", "algorithm.name": "pc-asgd"},
    ):
        config = load_config({"algorithm": "d-asgd"}, changes=nested(point))
        assert config.algorithm.name == "pc-asgd"
        assert config.algorithm.model_dump()["theta"]["value"] == 0.7
        assert config.barrier is not None
        assert config.barrier.name == "all"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": {}}, "space"),
        ({"space": {"step_size": []}}, r"space.step_size = \[\]: allowed is one value or more"),
        (
            {"space": {"step_size": {"low": 0, "high": 1}}},
            "space.step_size: a range; allowed with search.name = 'grid'",
        ),
        (
            {"space": {"step_size": {"low": 1, "high": 1}}, "search": "random"},
            "low = 1, high = 1: allowed is low < high",
        ),
        (
            {"space": {"step_size": {"low": 0, "high": 1, "log": True}}, "search": "random"},
            "low = 0: allowed with log",
        ),
        ({"space": {"seed": [1, 2]}}, "space.seed: allowed is the setting seeds"),
        ({"space": {"step_size": [1]}, "seeds": 0}, "seeds"),
        ({"space": {"step_size": [1]}, "search": "bayes"}, "search"),
    ],
)
def test_what_cannot_be_swept_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_sweep(settings)


def test_the_metric_is_one_that_the_task_has() -> None:
    sweep = load_sweep({"space": {"step_size": [1]}})
    assert sweep.judged_by(load_config()) == ("test_accuracy", "max")
    assert load_sweep({"space": {"step_size": [1]}, "metric": "test_loss"}).judged_by(load_config()) == (
        "test_loss",
        "min",
    )
    with pytest.raises(SettingsError, match="metric = 'test_mae': allowed are test_loss, test_accuracy"):
        load_sweep({"space": {"step_size": [1]}, "metric": "test_mae"}).judged_by(load_config())


def trials(rows: list[tuple[float, float, int, float, bool, str | None]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[*KEYS, "seed", "test_accuracy", "finished", "error"]).assign(path="nowhere")


def test_points_are_judged_by_the_mean_of_their_finished_trials_and_incomplete_ones_come_later() -> None:
    table = trials(
        [
            (0.0, 0.1, 0, 0.80, True, None),
            (0.0, 0.1, 1, 0.90, True, None),
            (0.5, 0.1, 0, 0.99, True, None),
            (0.5, 0.1, 1, 0.10, False, None),  # stopped early: its metric is that of fewer steps
            (1.0, 0.1, 0, 0.70, False, None),
            (1.0, 0.1, 1, 0.60, False, None),
            (0.2, 0.1, 0, 0.95, True, None),
            (0.2, 0.1, 1, np.nan, False, "agent 3 has loss nan"),
        ]
    )
    points = summarized(table, KEYS, "test_accuracy", "max")
    assert points["algorithm.theta"].tolist() == [0.0, 0.5, 0.2, 1.0]
    np.testing.assert_allclose(points["mean"], [0.85, 0.99, 0.95, 0.65])
    assert points["std"].iloc[0] == pytest.approx(0.1 / 2**0.5)
    assert np.isnan(points["std"].iloc[1])
    assert points[["finished", "stopped", "failed"]].to_numpy().tolist() == [[2, 0, 0], [1, 1, 0], [1, 0, 1], [0, 2, 0]]
    by_loss = summarized(table.assign(test_loss=table["test_accuracy"]), KEYS, "test_loss", "min")
    assert by_loss["mean"].iloc[0] == pytest.approx(0.85)


def grid(value: Any) -> pd.DataFrame:
    rows = [(theta, eta, 0, value(theta, eta), True, None) for theta in (0.0, 0.5, 1.0) for eta in (0.1, 0.2, 0.4, 0.8)]
    return trials(rows)


def test_sensitivity_is_the_share_of_variance_that_a_setting_explains() -> None:
    alone = summarized(grid(lambda theta, eta: 0.5 + 0.3 * theta), KEYS, "test_accuracy", "max")
    assert sensitivity(alone, KEYS).to_dict() == pytest.approx({"algorithm.theta": 1.0, "step_size": 0.0})
    both = summarized(grid(lambda theta, eta: theta * (eta - 0.375)), KEYS, "test_accuracy", "max")
    shares = sensitivity(both, KEYS)
    assert shares["algorithm.theta"] == pytest.approx(0.0, abs=1e-9)
    assert 0 < shares["step_size"] < 1
    constant = summarized(grid(lambda theta, eta: 0.5), KEYS, "test_accuracy", "max")
    assert sensitivity(constant, KEYS).to_dict() == {"algorithm.theta": 0.0, "step_size": 0.0}


def test_a_page_has_the_pictures_that_there_is_something_for(tmp_path: Any) -> None:
    table = grid(lambda theta, eta: theta * eta)
    points = summarized(table, KEYS, "test_accuracy", "max")
    assert heat_map(points, KEYS, "test_accuracy") is not None
    assert heat_map(points, ["step_size"], "test_accuracy") is None
    assert marginals(points, KEYS, "test_accuracy") is not None
    page = write_sweep_report(tmp_path, points, table, KEYS, "test_accuracy", "seed: 0").read_text(encoding="utf-8")
    assert "12 points, 1 seed, 12 trials, 0 failed" in page
    assert page.count("<figure") == 3
    failed = table.assign(error=["agent 0 has loss nan", *[None] * 11])
    assert "agent 0 has loss nan" in write_sweep_report(
        tmp_path, summarized(failed, KEYS, "test_accuracy", "max"), failed, KEYS, "test_accuracy", ""
    ).read_text(encoding="utf-8")


def test_ranges_of_whole_numbers_have_whole_limits() -> None:
    with pytest.raises(ValueError, match="allowed with integer are whole numbers"):
        Range(low=0.5, high=3, integer=True)


def whole(space: dict[str, Any], **config: Any) -> dict[str, Any]:
    sweep = load_sweep({"space": space, "search": "random", "config": config})
    return dict(sweep.in_whole_numbers(sweep.base()).space)


def test_a_range_over_a_setting_of_whole_numbers_is_one_of_whole_numbers() -> None:
    spaces = whole({"num_agents": {"low": 2, "high": 8}, "algorithm.oldest_age": {"low": 1, "high": 64, "log": True}})
    assert [(range_.integer, range_.limits, range_.log) for range_ in spaces.values()] == [
        (True, (2, 8), False),
        (True, (1, 64), True),
    ]
    assert all(isinstance(limit, int) for range_ in spaces.values() for limit in range_.limits)
    spaces = whole({"step_size": {"low": 1, "high": 8}, "algorithm.theta": {"low": 0, "high": 1}})
    assert [range_.integer for range_ in spaces.values()] == [None, None]


@pytest.mark.parametrize(
    ("range_", "message"),
    [
        ({"low": 2.5, "high": 8}, "space.num_agents.low = 2.5: allowed are whole numbers, as for num_agents"),
        ({"low": 2, "high": 8.5}, "space.num_agents.high = 8.5: allowed are whole numbers"),
        ({"low": 2, "high": 8, "integer": False}, "space.num_agents.integer = false: the setting takes whole numbers"),
    ],
)
def test_a_range_that_would_draw_others_is_refused(range_: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        whole({"num_agents": range_})


def test_epochs_and_schedulers_that_ask_for_steps_do_not_go_together() -> None:
    for tree in ({"config": {"num_epochs": 2}, "space": {"step_size": [1]}}, {"space": {"num_epochs": [1, 2]}}):
        sweep = load_sweep(tree | {"scheduler": "asha"})
        with pytest.raises(
            SettingsError, match=r"scheduler\.name = 'asha': allowed together with num_epochs is 'fifo'"
        ):
            sweep.check_with(sweep.base())
        sweep = load_sweep(tree)
        sweep.check_with(sweep.base())


def test_a_sweep_lies_where_its_settings_or_those_of_its_runs_say() -> None:
    space: dict[str, Any] = {"space": {"step_size": [0.1]}}
    for given, expected in (
        ({}, "runs"),
        ({"config": {"storage_path": "elsewhere"}}, "elsewhere"),
        ({"storage_path": "here"}, "here"),
        ({"storage_path": "here", "config": {"storage_path": "here"}}, "here"),
    ):
        sweep = load_sweep(space | given)
        assert sweep.stored(sweep.base()) == expected
    for given, told in (
        (
            {"storage_path": "here", "config": {"storage_path": "elsewhere"}},
            "config.storage_path = 'elsewhere': allowed is null, or storage_path = 'here'",
        ),
        (
            {"config": {"name": "first"}},
            "config.name = 'first': runs of a sweep are named after its points",
        ),
    ):
        with pytest.raises(SettingsError) as caught:
            load_sweep(space | given).base()
        assert str(caught.value) == told


def test_a_schedule_is_found_from_the_trials_processes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_sweep({"space": {"step_size": [0.1]}})
    assert config.base("runs/schedule.parquet").schedule == str(tmp_path / "runs" / "schedule.parquet")
    remote = "s3://bucket/runs/live/schedule.parquet?region=us-east-1"
    assert config.base(remote).schedule == remote
