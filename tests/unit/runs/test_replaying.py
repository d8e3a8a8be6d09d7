"""Settings of a live run take a recording: they are those of a planned run then, which does what the live one does."""

from pathlib import Path

import pytest

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.plan.replaying import as_replay
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.sweep.running import sweep

LIVE = {"num_agents": 4, "engine": {"name": "ray", "mode": "live", "join_later": [3]}, "algorithm": {"name": "pc-asgd"}}


def test_a_live_run_s_settings_replay_as_planned_with_its_defaults(caplog: pytest.LogCaptureFixture) -> None:
    config = as_replay(load_config(LIVE, changes={"schedule": "runs/live/schedule.parquet"}))
    assert isinstance(config.engine, RaySettings)
    assert (config.engine.mode, config.engine.join_later) == ("planned", ())
    tree = config.model_dump()
    assert (tree["algorithm"]["bounded"], tree["reliability"]["staleness"]) == (True, 1)
    assert config.schedule == "runs/live/schedule.parquet"
    (line,) = caplog.messages
    assert line.startswith("engine.mode = 'live': a recorded schedule is replayed by planned runs")
    assert as_replay(config) is config


def test_what_replays_nothing_or_is_planned_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    for settings in (LIVE, {"schedule": "x.parquet"}, {"schedule": "x.parquet", "engine": "local"}):
        config = load_config(settings)
        assert as_replay(config) is config
    assert not caplog.messages


@pytest.mark.parametrize("place", ["argument", "settings"])
def test_a_sweep_on_a_recording_takes_a_live_base(place: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "none.parquet")
    base = LIVE if place == "argument" else LIVE | {"schedule": missing}
    settings = {"storage_path": str(tmp_path / "sweeps"), "config": base, "space": {"algorithm.theta": [0, 0.5]}}
    with pytest.raises(SettingsError, match=r"schedule = .*none.parquet.*no such file"):
        sweep(settings, missing if place == "argument" else None)
