"""Methods side by side: what is compared runs under one schedule, and is refused as a whole."""

from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd.config import Config
from ray_pcasgd.runs.comparison import METHODS, Method, compare, parse_method
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.reference import kind_of, kinds_in

TINY: dict[str, Any] = {"num_agents": 3, "num_steps": 4, "evaluate_every": 4, "engine": "local"}


def test_methods_share_schedules_and_figures_are_over_seeds(tmp_path: Path) -> None:
    config = load_config(TINY | {"storage_path": str(tmp_path), "seed": 7, "links": [{"delay": 2}]})
    methods = [METHODS[0], Method("a", {"algorithm": "d-asgd"}), Method("b", {"algorithm": "c-asgd"})]
    comparison = compare(config, methods, num_seeds=2)
    runs = comparison.runs
    assert list(zip(runs["label"], runs["seed"], strict=True)) == [
        (label, seed) for label in ("d-psgd without delay", "a", "b") for seed in (7, 8)
    ]
    hashes = {(row.label, row.seed): row.schedule_hash for row in runs.itertuples()}
    assert hashes["a", 7] == hashes["b", 7] != hashes["d-psgd without delay", 7]
    table = comparison.table("accuracy")
    own = runs[runs["label"] == "a"]["test_accuracy"]
    assert table.loc["a", "averaged_mean"] == pytest.approx(own.sum() / 2)
    assert table.loc["a", "averaged_std"] == pytest.approx(abs(own.iloc[0] - own.iloc[1]) / 2**0.5)
    assert comparison.path.parent == tmp_path
    assert all(Path(path).parent == comparison.path for path in runs["path"])


def test_the_upper_line_waits_for_no_recorded_message(tmp_path: Path) -> None:
    recorded = compare(load_config(TINY | {"storage_path": str(tmp_path)}), [Method("a", {})], 1)
    schedule = f"{recorded.runs['path'][0]}/schedule.parquet"
    config = load_config(TINY | {"storage_path": str(tmp_path), "schedule": schedule})
    comparison = compare(config, [METHODS[0], Method("a", {})], 1)
    staleness = dict(zip(comparison.runs["label"], comparison.runs["staleness_mean"], strict=True))
    assert staleness["d-psgd without delay"] == 0
    assert staleness["a"] > 0


def test_nothing_runs_where_one_method_cannot(tmp_path: Path) -> None:
    config = load_config(TINY | {"storage_path": str(tmp_path)})
    with pytest.raises(SettingsError, match=r"^algorithm\.theta = \[0\.5\]: allowed is one value for each of the 3"):
        compare(config, [METHODS[0], parse_method("pc-asgd,theta=[0.5]")], 1)
    # Which only the run's graph tells.
    with pytest.raises(SettingsError, match=r"^algorithm\.attackers = 4: "):
        compare(config, [METHODS[0], parse_method("bridge,attackers=4")], 1)
    assert list(tmp_path.iterdir()) == []


def test_methods_are_read_with_lists_and_nested_settings() -> None:
    text = "pc-asgd, theta=[0.5,0.25], compensation.name=adaptive, compensation.decay=0.5"
    algorithm = {
        "name": "pc-asgd",
        "theta": [0.5, 0.25],
        "compensation": {"name": "adaptive", "decay": 0.5},
    }
    assert parse_method(text) == Method(text, {"algorithm": algorithm})
    with pytest.raises(SettingsError, match="allowed is key=value"):
        parse_method("pc-asgd,theta")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("pc-asgd,optimizer=adamw", "optimizer = adamw: is a setting of the run, which all methods of a comparison"),
        ("pc-asgd,optimizer.momentum=0.9", "optimizer.momentum = 0.9: is a setting of the run"),
        ("pc-asgd,theta=0.3,step_size=0.1", "step_size = 0.1: is a setting of the run"),
        ("d-asgd,lr=0.1", "lr = 0.1: is a setting of the run"),
    ],
)
def test_a_setting_of_the_run_behind_an_algorithms_name_is_said_to_be_one(text: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_method(text)
    assert str(caught.value).startswith(told)
    assert f"by --set {'step_size' if 'lr' in text else told.split(' ')[0].split('.')[0]}=" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_setting_of_an_algorithm_may_stand_behind_its_name() -> None:
    for kind in kinds_in(Config.model_fields["algorithm"].annotation):
        for name in kind.model_fields.keys() - {"name"}:
            assert parse_method(f"{kind_of(kind)},{name}=1").changes["algorithm"][name] == 1


def test_a_home_folder_is_spelled_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(TINY | {"storage_path": "~/runs", "name": "mine"})
    assert compare(config, [Method("a", {})], 1).path == tmp_path / "runs" / "mine"
    with pytest.raises(SettingsError, match=r"^name = 'mine': the folder .* exists"):
        compare(config, [Method("a", {})], 1)
