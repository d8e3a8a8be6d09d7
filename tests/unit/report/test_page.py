import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from matplotlib.patches import StepPatch

from ray_pcasgd.report.data import load_run
from ray_pcasgd.report.groups import Curve, agent_curves, final_table, group_runs, resampled
from ray_pcasgd.report.labels import label_of, labels_of
from ray_pcasgd.report.page import differing_settings, write_report
from ray_pcasgd.report.pictures import adaptivity_notes, metric_against, predicting_share
from ray_pcasgd.report.schedule_pictures import _MOST_WAITING, waiting_bars

NAN = float("nan")
LISTS = ("neighbors", "versions", "staleness", "ages")


def settings(algorithm: str = "pc-asgd", **changes: Any) -> dict[str, Any]:
    details = {
        "pc-asgd": {"theta": {"name": "constant", "value": 0.3}},
        "pc-asgd-pv": {"condition": "probe"},
    }
    return {
        "name": None,
        "storage_path": "runs",
        "seed": 0,
        "num_agents": 4,
        "num_steps": 40,
        "algorithm": {"name": algorithm} | details.get(algorithm, {}),
        "step_size": {"name": "constant", "value": 0.1},
        "topology": {"name": "complete"},
        "links": [{"delay": {"name": "constant", "value": 10.0}, "between": "clusters", "links": None}],
        "schedule": None,
        "task": {"data": {"name": "digits"}, "model": {"name": "mlp", "hidden": [64, 64]}},
        "engine": {"name": "ray", "mode": "planned"},
    } | changes


def metrics_of(config: dict[str, Any], level: float, predicting: float = NAN, metric: str = "accuracy") -> pd.DataFrame:
    random = np.random.default_rng(config["seed"])
    rows = []
    for step in range(10, config["num_steps"] + 1, 10):
        reached = level * (1 - math.exp(-step / 12))
        agents = [reached - 0.05 * random.random() for _ in range(config["num_agents"])]
        common = {"step": step, "train_loss": 2.3 * math.exp(-step / 15), "staleness_mean": 5.0, "theta": NAN}
        for agent, value in enumerate(agents):
            tested = {"test_loss": 1.1 - value, f"test_{metric}": value, "consensus_distance": 0.1 * agent}
            counted = {"seconds": step * (1.0 + agent / 10), "waited_seconds": step / 4, "predicting_share": predicting}
            rows.append({"agent": agent, **common, **tested, **counted})
        tested = {"test_loss": 1.1 - reached, f"test_{metric}": reached, "consensus_distance": 0.2 + step / 100}
        rows.append(
            {"agent": pd.NA, "seconds": rows[-1]["seconds"], "predicting_share": predicting, **common, **tested}
        )
    return pd.DataFrame(rows).astype({"agent": "Int64"})


def schedule_of(config: dict[str, Any], delay: int = 5) -> pa.Table:
    num_agents = config["num_agents"]
    rows = []
    for step in range(config["num_steps"]):
        for agent in range(num_agents):
            neighbors = [other for other in range(num_agents) if other != agent]
            far = [(other < num_agents // 2) != (agent < num_agents // 2) for other in neighbors]
            staleness = [min(step, delay) if is_far else 0 for is_far in far]
            times = {"start": float(step), "ready": step + 0.75, "end": step + 1.0}
            reads = (neighbors, [step - late for late in staleness], staleness, staleness)
            rows.append({"agent": agent, "step": step, "kind": "step", **times, **dict(zip(LISTS, reads, strict=True))})
    integers = {name: pa.list_(pa.int32()) for name in LISTS}
    kinds = {"agent": pa.int32(), "step": pa.int32()} | dict.fromkeys(("start", "ready", "end"), pa.float64())
    fields = kinds | integers | {"kind": pa.string()}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items())))


def final_of(metrics: pd.DataFrame) -> dict[str, Any]:
    last = metrics[metrics["step"] == metrics["step"].max()]
    averaged, agents = last[last["agent"].isna()].iloc[0], last[last["agent"].notna()]
    tests = [column for column in metrics if column.startswith("test_")]
    return {
        "averaged": {name: float(averaged[name]) for name in tests},
        "consensus_distance": float(averaged["consensus_distance"]),
        "agents": {
            name: {
                "mean": float(agents[name].mean()),
                "std": float(agents[name].std(ddof=0)),
                "min": float(agents[name].min()),
                "max": float(agents[name].max()),
            }
            for name in tests
        },
    }


def write_run(
    path: Path,
    config: dict[str, Any] | None = None,
    metrics: pd.DataFrame | None = None,
    error: str | None = None,
    schedule_hash: str = "00ff00ff00ff00ff",
) -> Path:
    config = config or settings()
    metrics = metrics_of(config, 0.95) if metrics is None else metrics
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    metrics.to_parquet(path / "metrics.parquet", index=False)
    pq.write_table(schedule_of(config), path / "schedule.parquet")
    event = {"time": 1.5, "kind": "agent_isolated", "agent": 2, "step": 7, "detail": "loss < limit"}
    (path / "events.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")
    result = {
        "schedule_hash": schedule_hash,
        "wall_seconds": 65.0,
        "agent_steps_per_second": 1234.5,
        "final": final_of(metrics) if len(metrics) and metrics["agent"].isna().any() else {},
        "error": error,
    }
    (path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return path


class Page(HTMLParser):
    """What a page holds; fails where its tags are not balanced."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def headings(self) -> list[str]:
        pieces = self.source.split("<h2>")[1:]
        return [piece.split("</h2>")[0] for piece in pieces]

    def pictures(self) -> list[str]:
        return [str(attributes["alt"]) for tag, attributes in self.tags if tag == "img"]


def report_of(tmp_path: Path, *runs: Path, title: str = "a title", labels: list[str] | None = None) -> Page:
    return Page(write_report(runs, tmp_path / "out" / "report.html", title, labels))


def table_row(page: Page, first: str) -> dict[str, str]:
    headings = next(row for row in page.rows if row[0] == "method")
    return dict(zip(headings, next(row for row in page.rows if row[0] == first), strict=True))


def test_a_page_about_one_run_has_every_section_and_picture(tmp_path: Path) -> None:
    config = settings("pc-asgd-pv")
    page = report_of(tmp_path, write_run(tmp_path / "run", config, metrics_of(config, 0.95, predicting=0.4)))
    assert page.headings() == ["Final figures", "Pictures", "Schedule", "Settings", "Events"]
    assert page.pictures() == [
        "Test accuracy against steps",
        "Test accuracy against seconds",
        "Loss against steps",
        "Loss against seconds",
        "Share of predicting choices",
        "Consensus distance",
        "Staleness of what was read",
        "Waiting",
        "The first steps",
    ]
    text = "".join(page.text)
    assert "pc-asgd-pv, condition probe · seed 0 · digits · mlp · 4 agents · 40 steps each" in text
    assert "00ff00ff00ff00ff" in text
    assert "step_size:" in text
    assert "loss < limit" in text
    assert "failed" not in text


def test_a_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    page = report_of(tmp_path, write_run(tmp_path / "run"), write_run(tmp_path / "other", settings("d-asgd")))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "base"})
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "style"):
            if name in attributes:
                assert tag == "img"
                assert str(attributes[name]).startswith("data:image/svg+xml;base64,")
    for outside in ("http://", "https://", "url(", "@import", "//fonts"):
        assert outside not in page.source


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first, second = (write_report([run], tmp_path / name, "t").read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_names_settings_and_errors_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('&\"')</script> $5 $"
    run = write_run(tmp_path / "<b>run", settings(name=evil, topology={"name": evil}), error=evil)
    other = write_run(tmp_path / "other", settings("d-asgd"))
    page = report_of(tmp_path, run, other, title=evil, labels=[evil, "_other"])
    assert "<script" not in page.source
    assert "<b>" not in page.source
    assert "".join(page.text).count(evil) >= 4


def test_a_failed_run_shows_its_error_and_what_there_is(tmp_path: Path) -> None:
    error = "agent 3 at step 2: the training loss is nan"
    page = report_of(tmp_path, write_run(tmp_path / "run", metrics=pd.DataFrame(), error=error))
    (place,) = [i for i, (tag, attributes) in enumerate(page.tags) if attributes.get("class") == "error"]
    assert page.tags[place][0] == "p"
    assert error in "".join(page.text)
    assert page.pictures() == ["Staleness of what was read", "The first steps"]


def test_an_interrupted_run_counts_as_failed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("result.json", "events.jsonl", "metrics.parquet", "schedule.parquet"):
        (run / name).unlink()
    page = report_of(tmp_path, run)
    assert "interrupted" in "".join(page.text)
    assert page.pictures() == []


@pytest.mark.usefixtures("without_pictures")
def test_a_failed_seed_does_not_count(tmp_path: Path) -> None:
    configs = [settings(seed=seed) for seed in (0, 1)]
    runs = [
        write_run(tmp_path / "whole", configs[0], metrics_of(configs[0], 0.9)),
        write_run(tmp_path / "failed", configs[1], metrics_of(configs[1], 0.1), error="lost"),
    ]
    row = table_row(report_of(tmp_path, *runs), "pc-asgd, theta 0.3")
    assert row["failed"] == "1"
    assert row["seeds"] == "2"
    assert row["test accuracy, averaged model"] == f"{90 * (1 - math.exp(-40 / 12)):.1f} %"


def test_several_seeds_are_summed_up_as_mean_and_deviation(tmp_path: Path) -> None:
    levels = {0: 0.90, 1: 0.94, 2: 0.95}
    frames = {seed: metrics_of(settings(seed=seed), level) for seed, level in levels.items()}
    runs = [write_run(tmp_path / f"run{seed}", settings(seed=seed), frame) for seed, frame in frames.items()]
    page = report_of(tmp_path, *runs)
    row = table_row(page, "pc-asgd, theta 0.3")
    told = "± is the sample standard deviation over seeds, here 3, and so are the bands of pictures that say so."
    assert "".join(page.text).count(told) == 1

    reached = [100 * level * (1 - math.exp(-40 / 12)) for level in levels.values()]
    mean = sum(reached) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in reached) / 2)
    assert row["seeds"] == "3"
    assert row["test accuracy, averaged model"] == f"{mean:.1f} ± {deviation:.1f} %"

    agents = [[frame["test_accuracy"][len(frame) - 5 + agent] for agent in range(4)] for frame in frames.values()]
    means = [100 * sum(values) / 4 for values in agents]
    deviation = math.sqrt(sum((value - sum(means) / 3) ** 2 for value in means) / 2)
    assert row["agents' mean"] == f"{sum(means) / 3:.1f} ± {deviation:.1f} %"
    assert row["lowest agent"] == f"{100 * min(map(min, agents)):.1f} %"
    assert row["highest agent"] == f"{100 * max(map(max, agents)):.1f} %"
    # Of the reads of 40 steps, one third is fresh; the others are late by the number of steps so far, at most 5.
    assert row["mean staleness"] == f"{(0 + 1 + 2 + 3 + 4 + 5 * 35) / 40 * 2 / 3:.4g}"
    assert row["consensus distance"] == "0.6 ± 0"


def test_one_run_has_no_deviation(tmp_path: Path) -> None:
    frame = metrics_of(settings(), 0.9)
    page = report_of(tmp_path, write_run(tmp_path / "run", metrics=frame))
    row = table_row(page, "pc-asgd, theta 0.3")
    agents = [100 * frame["test_accuracy"][len(frame) - 5 + agent] for agent in range(4)]
    assert row["agents' mean"] == f"{sum(agents) / 4:.1f} %"
    assert "±" not in page.source
    waiting = [10 / (40 * (1 + agent / 10)) for agent in range(4)]
    assert row["waiting"] == f"{100 * sum(waiting) / 4:.1f} %"
    assert row["agent-steps/s"] == "1,234"


def test_curves_over_seeds_are_means_and_deviations(tmp_path: Path) -> None:
    runs = [
        load_run(write_run(tmp_path / f"{seed}", settings(seed=seed), metrics_of(settings(seed=seed), level)))
        for seed, level in ((0, 0.9), (1, 0.8))
    ]
    other = load_run(write_run(tmp_path / "other", settings("d-asgd")))
    figure = metric_against(group_runs([*runs, other], ["a", "a", "b"]), "test_accuracy", "step")
    assert figure is not None
    averaged = figure.axes[0].lines[0]
    rising = [1 - math.exp(-step / 12) for step in (10, 20, 30, 40)]
    np.testing.assert_allclose(averaged.get_xdata(), [10, 20, 30, 40])
    np.testing.assert_allclose(averaged.get_ydata(), [0.85 * value for value in rising])
    (band,) = figure.axes[0].collections
    corners = band.get_paths()[0].vertices
    for step, value in zip((10, 20, 30, 40), rising, strict=True):
        heights = sorted(set(np.round(corners[corners[:, 0] == step, 1], 9)))
        half = 0.1 * value / math.sqrt(2)
        np.testing.assert_allclose(heights, [0.85 * value - half, 0.85 * value + half], atol=1e-9)


def test_the_band_of_one_run_reaches_from_the_lowest_to_the_highest_agent(tmp_path: Path) -> None:
    frame = metrics_of(settings(), 0.9)
    run = load_run(write_run(tmp_path / "run", metrics=frame))
    figure = metric_against(group_runs([run], ["a"]), "test_accuracy", "step")
    assert figure is not None
    corners = figure.axes[0].collections[0].get_paths()[0].vertices
    agents = frame[frame["agent"].notna()]
    for step in (10, 20, 30, 40):
        values = agents.loc[agents["step"] == step, "test_accuracy"]
        heights = corners[corners[:, 0] == step, 1]
        assert (heights.min(), heights.max()) == (values.min(), values.max())


def test_resampling_holds_the_last_value_and_starts_where_all_have_begun() -> None:
    grid, values = resampled(
        [Curve(np.array([1.0, 3.0]), np.array([0.0, 1.0])), Curve(np.array([2.0, 6.0]), np.array([4.0, 0.0]))]
    )
    assert grid.tolist() == [2, 3, 6]
    assert values.tolist() == [[0.5, 1.0, 1.0], [4.0, 3.0, 0.0]]
    long = Curve(np.arange(5000.0), np.arange(5000.0))
    grid, values = resampled([long], most_points=400)
    assert grid.size == 400
    assert (grid[0], grid[-1]) == (0, 4999)
    assert values[0].tolist() == grid.tolist()
    assert resampled([Curve(np.empty(0), np.empty(0))])[0].size == 0


@pytest.mark.parametrize(("share", "is_noted"), [(0.0, True), (0.01, True), (0.5, False), (0.99, True), (NAN, False)])
def test_a_variant_that_always_chooses_the_same_is_noted(tmp_path: Path, share: float, is_noted: bool) -> None:
    config = settings("pc-asgd-pv")
    run = load_run(write_run(tmp_path / "run", config, metrics_of(config, 0.9, predicting=share)))
    groups = group_runs([run], ["pv"])
    assert bool(adaptivity_notes(groups)) == is_noted
    assert (predicting_share(groups) is None) == math.isnan(share)


def test_the_page_says_where_a_variant_is_not_adaptive(tmp_path: Path) -> None:
    config = settings("pc-asgd-pv")
    page = report_of(tmp_path, write_run(tmp_path / "run", config, metrics_of(config, 0.9, predicting=1.0)))
    assert "predicting on 100.0% of steps; the variant is not adaptive here" in "".join(page.text)


def test_the_predicting_share_counts_steps_not_rows(tmp_path: Path) -> None:
    rows = [(0, 10, 1.0), (0, 40, 0.0), (pd.NA, 40, 0.9)]
    frame = pd.DataFrame(rows, columns=["agent", "step", "predicting_share"]).assign(consensus_distance=0.1)
    run = load_run(write_run(tmp_path / "run", metrics=frame.astype({"agent": "Int64"})))
    assert run.predicting_share() == pytest.approx(0.25)


def test_what_is_computed_of_all_agents_at_once_is_what_each_one_s_rows_say(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = []
    for agent, points in ((1, 3), (4, 1), (5, 4), (9, 2)):  # some have left, or were never there
        steps = np.sort(random.choice(np.arange(1, 50), points, replace=False))
        rows += [(agent, step, *random.random(4)) for step in steps]
    columns = ["agent", "step", "seconds", "waited_seconds", "predicting_share", "test_accuracy"]
    frame = pd.DataFrame(rows, columns=columns).assign(consensus_distance=0.1)
    frame.loc[4, "test_accuracy"] = NAN
    frame.loc[3, "seconds"] = 0.0
    shuffled = frame.sample(frac=1.0, random_state=1)
    run = load_run(write_run(tmp_path / "run", metrics=shuffled.astype({"agent": "Int64"})))
    own = {int(agent): rows for agent, rows in frame.groupby("agent")}
    assert run.agent_numbers == list(own) == list(run.agents)
    curves = agent_curves(run, "test_accuracy", "step")
    for rows, curve in zip(own.values(), curves, strict=True):
        known = rows.dropna(subset="test_accuracy")
        assert (curve.x.tolist(), curve.y.tolist()) == (known["step"].tolist(), known["test_accuracy"].tolist())
    assert [curve.x.size for curve in agent_curves(run, "test_f1", "step")] == [0] * 4
    last = {agent: rows.iloc[-1] for agent, rows in own.items() if agent != 4}
    assert run.waiting_shares() == {agent: row["waited_seconds"] / row["seconds"] for agent, row in last.items()}
    steps = {agent: np.diff(rows["step"], prepend=0) for agent, rows in own.items()}
    total = sum(float((steps[agent] * rows["predicting_share"]).sum()) for agent, rows in own.items())
    assert run.predicting_share() == pytest.approx(total / sum(float(each.sum()) for each in steps.values()))
    assert run.predicting_share(5) == pytest.approx(float(np.average(own[5]["predicting_share"], weights=steps[5])))
    assert run.predicting_share(2) is None
    reads = run.schedule.to_pylist()
    for agent in range(4):
        late = [one for row in reads if row["agent"] == agent for one in row["staleness"]]
        assert run.mean_staleness(agent) == sum(late) / len(late)
    assert run.mean_staleness(4) is None


def test_a_run_without_agents_rows_has_no_curves(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", metrics=pd.DataFrame({"agent": [], "step": [], "test_accuracy": []})))
    assert agent_curves(run, "test_accuracy", "step") == agent_curves(run, "test_f1", "step") == []
    assert (run.agent_numbers, run.waiting_shares(), run.predicting_share()) == ([], {}, None)


@pytest.mark.parametrize("num_agents", [_MOST_WAITING, _MOST_WAITING + 1])
def test_of_very_many_agents_the_waiting_is_one_outline(tmp_path: Path, num_agents: int) -> None:
    agents = np.arange(num_agents) + 2  # two have no rows
    waited = (agents % 7) / 10
    frame = pd.DataFrame({"agent": agents, "step": 10, "seconds": 1.0, "waited_seconds": waited})
    figure = waiting_bars(load_run(write_run(tmp_path / "run", metrics=frame.assign(consensus_distance=0.1))))
    assert figure is not None
    patches = figure.axes[0].patches
    if num_agents == _MOST_WAITING:
        assert [bar.get_height() for bar in patches] == waited.tolist()
        return
    (outline,) = patches
    assert isinstance(outline, StepPatch)
    heights, edges, _ = outline.get_data()
    assert heights.tolist() == [0.0, 0.0, *waited]
    assert ((edges[1:] + edges[:-1]) / 2).tolist() == list(range(num_agents + 2))


@pytest.mark.usefixtures("without_pictures")
def test_only_settings_that_differ_are_shown(tmp_path: Path) -> None:
    changed = settings("pc-asgd-pv", seed=1, name="mine", links=[], step_size={"name": "constant", "value": 0.2})
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", changed)]
    groups = group_runs([load_run(run) for run in runs], ["A", "B"])
    assert differing_settings(groups) == [
        {"setting": "seed", "A": "0", "B": "1"},
        {"setting": "algorithm.name", "A": "pc-asgd", "B": "pc-asgd-pv"},
        {"setting": "algorithm.theta", "A": "0.3", "B": "–"},
        {"setting": "step_size", "A": "0.1", "B": "0.2"},
        {"setting": "links", "A": "[delay: 10, between: clusters]", "B": "[]"},
        {"setting": "algorithm.condition", "A": "–", "B": "probe"},
    ]
    page = report_of(tmp_path, *runs, labels=["A", "B"])
    assert ["algorithm.theta", "0.3", "–"] in page.rows
    assert not any(row[0] == "num_agents" for row in page.rows)


@pytest.mark.usefixtures("without_pictures")
def test_schedules_are_compared_by_their_hashes(tmp_path: Path) -> None:
    same = [write_run(tmp_path / name, settings(name)) for name in ("d-asgd", "c-asgd")]
    assert "All 2 runs share one schedule" in "".join(report_of(tmp_path, *same).text)
    other = write_run(tmp_path / "d-psgd", settings("d-psgd", links=[]), schedule_hash="1234")
    page = report_of(tmp_path, *same, other)
    assert "The 3 runs were under 2 different schedules." in "".join(page.text)
    assert ["00ff00ff00ff00ff", "d-asgd (seed 0), c-asgd (seed 0)"] in page.rows
    assert ["1234", "d-psgd, no link delay (seed 0)"] in page.rows


def test_other_metrics_than_accuracy_are_found_and_not_written_in_percent(tmp_path: Path) -> None:
    frame = metrics_of(settings(), 0.9, metric="mse")
    page = report_of(tmp_path, write_run(tmp_path / "run", metrics=frame))
    assert page.pictures()[0] == "Test mse against steps"
    assert table_row(page, "pc-asgd, theta 0.3")["test mse, averaged model"] == f"{0.9 * (1 - math.exp(-40 / 12)):.4g}"


def test_labels_tell_methods_apart_but_not_seeds() -> None:
    assert label_of(settings()) == "pc-asgd, theta 0.3"
    assert label_of(settings("d-psgd", links=[])) == "d-psgd, no link delay"
    assert label_of({}) == "run"
    runs = [settings(seed=0), settings(seed=1, name="x"), settings("d-asgd")]
    assert labels_of(runs) == ["pc-asgd, theta 0.3", "pc-asgd, theta 0.3", "d-asgd"]
    assert labels_of([settings(), settings(num_steps=80)]) == [
        "pc-asgd, theta 0.3, num_steps 40",
        "pc-asgd, theta 0.3, num_steps 80",
    ]
    local = settings(engine={"name": "local", "batched": "auto"})
    assert labels_of([settings(), local])[1] == "pc-asgd, theta 0.3, engine.name local"


def test_methods_that_differ_in_late_settings_only_still_have_labels_of_their_own() -> None:
    many = [
        settings(num_agents=2, num_steps=1, step_size=1.0, warmup_steps=1),
        settings(num_agents=4, num_steps=2, step_size=2.0, warmup_steps=2),
        settings(num_agents=4, num_steps=2, step_size=2.0, warmup_steps=3),
    ]
    assert len(set(labels_of(many))) == 3


def test_what_cannot_be_reported_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty.*no run folder; allowed are folders with a config.yaml"):
        load_run(tmp_path / "empty")
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="allowed is one run folder or more"):
        report_of(tmp_path)
    with pytest.raises(ValueError, match="allowed is one for each of the 1 runs"):
        report_of(tmp_path, run, labels=["a", "b"])
    (run / "metrics.parquet").write_text("no table")
    with pytest.raises(ValueError, match="cannot be read"):
        load_run(run)
    assert not (tmp_path / "out").exists()


def test_final_tables_are_text_under_headings(tmp_path: Path) -> None:
    groups = group_runs([load_run(write_run(tmp_path / "run"))], ["mine"])
    (row,) = final_table(groups, "test_accuracy")
    assert row["method"] == "mine"
    assert "seeds" not in row
    assert "failed" not in row
    assert row["predicting"] == "–"
