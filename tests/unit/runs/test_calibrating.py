"""From a live run's folder to settings of planned runs; the folder is that of a planned run which says it was live."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from ray_pcasgd import SettingsError, Trainer, calibrate, load_config
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.cli.app import main
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import read_yaml
from ray_pcasgd.schedule.bandwidth import bits_per_second
from ray_pcasgd.schedule.barrier import AllBarrier
from ray_pcasgd.schedule.parquet import read_rows
from ray_pcasgd.schedule.trace_files import read_columns

LIVE = {"name": "ray", "mode": "live"}


def recorded(folder: Path, **settings: Any) -> Path:
    """Return the folder of a run whose times are those of its laws."""
    common = {"engine": "local", "num_agents": 4, "num_steps": 60, "evaluate_every": 60, "name": "live"}
    laws = {"law": "uniform(0.015, 0.025)", "agents": {3: "uniform(0.03, 0.05)"}}
    delays = [{"between": "clusters", "delay": "log-normal(15ms, 0.2)"}]
    Trainer(**{**common, "compute": laws, "links": delays, "storage_path": str(folder), **settings}).fit()
    run = folder / "live"
    rewrite(run, engine=LIVE)
    return run


def rewrite(run: Path, **changes: Any) -> None:
    tree = read_yaml(run / "config.yaml") | changes
    (run / "config.yaml").write_text(write_yaml(tree))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("runs"))


def seconds_of(rows: Any) -> float:
    return max(row.end for row in rows) - min(row.start for row in rows)


def test_a_plan_by_the_calibrated_settings_takes_as_long(run: Path, tmp_path: Path) -> None:
    found = calibrate(run, tmp_path / "calibrated.yaml")
    config = load_config(found.path)
    assert config.name is None
    assert config.engine.name == "ray"
    assert config.engine.mode == "planned"
    assert make_plan(load_config(found.path, ["algorithm=d-psgd"])).config.barrier == AllBarrier()
    assert sorted(found.compute) == sorted(config.compute.agents) == [0, 1, 2, 3]
    assert config.compute.mean(0) == pytest.approx(0.02, rel=0.1)
    assert config.compute.mean(3) == pytest.approx(0.04, rel=0.05)
    (link,) = config.links
    assert link.between == ((0, 1), (2, 3))
    assert link.delay is not None
    assert link.delay.expectation() == pytest.approx(0.0153, rel=0.1)
    rows, again = read_rows(run / "schedule.parquet")[0], list(make_plan(config).schedule)
    assert seconds_of(again) == pytest.approx(seconds_of(rows), rel=0.03)


def test_agents_of_one_host_are_one_site_and_their_seconds_may_differ_in_number(tmp_path: Path) -> None:
    run = recorded(tmp_path, local_steps=[4, 4, 4, 1], links=[{"delay": "3ms"}])
    rewrite(run, links=[])
    agents = [
        f'{{"kind": "agent_started", "agent": {k}, "detail": "process 7 on {"ab"[k // 2]}, cpu"}}' for k in range(4)
    ]
    (run / "events.jsonl").write_text("\n".join(agents) + "\n")
    found = calibrate(run, tmp_path / "calibrated.yaml")
    assert [len(found.compute[agent]) for agent in range(4)] == [15, 15, 15, 60]
    assert set(found.links) == {("", ""), ("a", "b")}
    config = load_config(found.path)
    assert config.compute.mean(0) == pytest.approx(0.02, rel=0.1)
    assert config.compute.mean(3) == pytest.approx(0.04, rel=0.05)
    # The unlike agent sees when the others' messages come, those of its own host and those of the other one.
    laws = [found.links["", ""], found.links["a", "b"]]
    written = [link.delay for link in config.links]
    assert len(written) == 2
    for law, delay in zip(laws, written, strict=True):
        assert law is not None
        assert delay is not None
        assert delay.expectation() == pytest.approx(law.expectation(), rel=0.01)
        assert 0.001 < delay.expectation() < 0.01


def test_runs_whose_messages_differ_in_size_tell_of_a_bandwidth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limited: dict[str, Any] = {"links": [{"delay": "log-normal(15ms, 0.1)", "bandwidth": "20 Mbit/s"}]}
    limited |= {"algorithm": "d-psgd", "clusters": 1}
    runs = [recorded(tmp_path / wire, wire=wire, **limited) for wire in ("float32", "int8")]
    for one in runs:
        rewrite(one, links=[])  # a live run's network has its own
    written = tmp_path / "calibrated.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", *map(str, runs), "--output", str(written)])
    assert ended.value.code == 0
    config = load_config(written)
    (link,) = config.links
    assert link.delay is not None
    assert link.delay.expectation() == pytest.approx(0.015, rel=0.03)
    assert link.bandwidth is not None
    assert float(bits_per_second(link.bandwidth)) == pytest.approx(20e6, rel=0.05)
    assert f"messages within sites: {delay_text_of(link)}, {link.bandwidth}" in capsys.readouterr().out
    assert len(read_columns(written.with_suffix(".csv"), ("agent 3",))[0]) == 2 * 60
    for one, wire in zip(runs, ("float32", "int8"), strict=True):
        again = list(make_plan(config.model_copy(update={"wire": load_config(one / "config.yaml").wire})).schedule)
        assert seconds_of(again) == pytest.approx(seconds_of(read_rows(one / "schedule.parquet")[0]), rel=0.03), wire
    # Of one run, all of whose messages are as long, as before.
    assert load_config(calibrate([runs[0]], tmp_path / "one.yaml").path).links[0].bandwidth is None


def test_a_servers_messages_and_its_workers_may_differ_in_size(tmp_path: Path) -> None:
    limited: dict[str, Any] = {"links": [{"delay": "log-normal(15ms, 0.1)", "bandwidth": "20 Mbit/s"}], "clusters": 1}
    limited |= {"algorithm": {"name": "server", "gathering": "asgd"}}
    wires: list[Any] = ["float32", {"weights": "int8", "directions": "float32"}]
    runs = [recorded(tmp_path / str(place), wire=wire, **limited) for place, wire in enumerate(wires)]
    for one in runs:
        rewrite(one, links=[])
    found = calibrate(runs, tmp_path / "calibrated.yaml")
    law = found.links["", ""]
    assert law is not None
    assert law.expectation() == pytest.approx(0.015, rel=0.03)
    assert found.bandwidths["", ""] == pytest.approx(20e6, rel=0.03)


def delay_text_of(link: Any) -> str:
    return f"log-normal({link.delay.median:.6g}s, {link.delay.sigma:.4g})"


def test_runs_of_other_agents_are_refused(run: Path, tmp_path: Path) -> None:
    other = recorded(tmp_path, num_agents=3, compute={"law": 0.02})
    for runs, told in (
        ([run, other], f"{other}: its agents are not those of {run}, or at other sites"),
        ([], "runs = []"),
    ):
        with pytest.raises(SettingsError) as raised:
            calibrate(runs, tmp_path / "calibrated.yaml")
        assert str(raised.value).startswith(told)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"engine": {"name": "local"}}, "engine.mode = 'planned': allowed is live; times of planned runs follow laws"),
        ({"engine": {**LIVE, "mode": "planned"}}, "engine.mode = 'planned': allowed is live"),
        ({"algorithm": {"name": "ad-psgd"}}, "algorithm.name = 'ad-psgd': allowed are rules between peers and servers"),
        ({"links": [{"delay": "3 steps"}]}, "links.0.unit = 'steps': allowed are seconds"),
    ],
)
def test_what_does_not_say_how_long_things_took_is_refused(
    run: Path, tmp_path: Path, changes: dict[str, Any], error: str
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    rewrite(other, **changes)
    with pytest.raises(SettingsError) as raised:
        calibrate(other, tmp_path / "calibrated.yaml")
    assert str(raised.value).startswith(f"{other}: {error}")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("calibrated*"))


def test_nothing_is_overwritten_and_nothing_but_yaml_is_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("1\n")
    for name, told in (("mine.yaml", "mine.csv exists already"), ("mine.txt", "allowed is a new file NAME.yaml")):
        with pytest.raises(SettingsError, match=told):
            calibrate(run, tmp_path / name)
    with pytest.raises(SettingsError, match="cannot be written"):
        calibrate(run, tmp_path / "nowhere" / "mine.yaml")
    with pytest.raises(SettingsError, match="is no run folder"):
        calibrate(tmp_path, tmp_path / "new.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
    assert (tmp_path / "mine.csv").read_text() == "1\n"


def test_a_damaged_schedule_is_one_line(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    (other / "schedule.parquet").write_bytes(b"PAR1")
    with pytest.raises(SettingsError, match="cannot be read"):
        calibrate(other, tmp_path / "calibrated.yaml")
