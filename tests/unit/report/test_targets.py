"""Pages: the common start, bytes, the time to a target, single figures, and delays without effect."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_pcasgd.cli import app as cli
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.report.delays import delay_notes
from ray_pcasgd.report.drawing import as_pdf
from ray_pcasgd.report.page import load_groups, page
from ray_pcasgd.report.pictures import metric_against
from ray_pcasgd.report.targets import target_table
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.trainer import Trainer

BASE: dict[str, Any] = {
    "engine": "local",
    "num_agents": 4,
    "num_steps": 40,
    "evaluate_every": 10,
    "task": {"model": {"hidden": [8]}},
}
SLOW = {"stragglers": {3: {"name": "constant", "value": 9.0}}}
"""Agent 3 takes ten times as long as the others."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    """Return what runs settings, each of them once."""
    folder, known = tmp_path_factory.mktemp("runs"), {}

    def fit(**settings: Any) -> Result:
        key = json.dumps(settings, sort_keys=True)
        if key not in known:
            known[key] = Trainer(BASE | settings, storage_path=str(folder)).fit()
        assert known[key].error is None
        return known[key]

    return fit


def test_the_common_start_is_tested_and_begins_every_curve(run: Callable[..., Result]) -> None:
    result = run(compute=SLOW)
    config = load_config(BASE)
    data = config.task.load()
    expected = config.task.examine(config.task.build_model(data, 0), data).values
    summary = json.loads((Path(result.path) / "result.json").read_text(encoding="utf-8"))
    assert summary["initial"] == {"test_loss": expected["loss"], "test_accuracy": expected["accuracy"]}
    assert result.metrics_dataframe["step"].min() == 10  # the table of evaluations is what it was
    groups = load_groups([Path(result.path)])
    figure = metric_against(groups, "test_accuracy", "seconds")
    assert figure is not None
    for line in figure.axes[0].lines:
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (0.0, expected["accuracy"])


def test_fast_agents_are_drawn_where_they_are(run: Callable[..., Result]) -> None:
    result = run(compute=SLOW)
    frame = result.metrics_dataframe
    figure = metric_against(load_groups([Path(result.path)]), "test_accuracy", "seconds")
    assert figure is not None
    own = [line for line in figure.axes[0].lines if line.get_linewidth() < 1]
    assert len(own) == 4
    for agent, line in enumerate(own):
        rows = frame[frame["agent"] == agent]
        np.testing.assert_array_equal(line.get_xdata()[1:], rows["seconds"])
        np.testing.assert_array_equal(line.get_ydata()[1:], rows["test_accuracy"])
    assert own[0].get_xdata()[-1] < own[3].get_xdata()[1]  # done before the slow one is tested for the first time


def test_accuracy_stands_against_bytes_of_all_and_of_each_agent(run: Callable[..., Result]) -> None:
    result = run(compute=SLOW)
    frame = result.metrics_dataframe
    figure = metric_against(load_groups([Path(result.path)]), "test_accuracy", "bytes_sent")
    assert figure is not None
    left, right = figure.axes
    averaged, first = frame[frame["agent"].isna()], frame[frame["agent"] == 0]
    np.testing.assert_array_equal(left.lines[0].get_xdata()[1:], averaged["bytes_sent"])
    np.testing.assert_array_equal(right.lines[0].get_xdata()[1:], first["bytes_sent"])
    assert averaged["bytes_sent"].iloc[-1] == sum(
        frame[frame["agent"] == agent]["bytes_sent"].iloc[-1] for agent in range(4)
    )
    assert left.get_xlabel() == "MB sent by all together"
    served = run(algorithm={"name": "server", "gathering": "asgd"})
    figure = metric_against(load_groups([Path(served.path)]), "test_accuracy", "bytes_sent")
    assert figure is not None
    assert len(figure.axes) == 1  # workers are not tested


def test_the_time_to_a_target_is_that_of_the_first_evaluation_that_has_it(run: Callable[..., Result]) -> None:
    result = run(compute=SLOW)
    frame = result.metrics_dataframe
    averaged = frame[frame["agent"].isna()]
    target = float(averaged["test_accuracy"].iloc[1])
    (row,) = target_table(load_groups([Path(result.path)]), "test_accuracy", target)
    hit = averaged[averaged["test_accuracy"] >= target].iloc[0]
    assert (row["steps"], row["seconds"]) == (f"{hit['step']:.4g}", f"{hit['seconds']:.4g}")
    assert row["MB sent by all"] == f"{hit['bytes_sent'] / 1e6:.4g}"
    agents = frame[frame["agent"].notna() & (frame["test_accuracy"] >= target)].groupby("agent")["seconds"].min()
    assert row["first agent, seconds"] == f"{agents.min():.4g}"
    assert row["last agent, seconds"] == (f"{agents.max():.4g}" if len(agents) == 4 else "–")
    (never,) = target_table(load_groups([Path(result.path)]), "test_accuracy", 1.0)
    assert set(never.values()) == {"pc-asgd, theta staleness", "–"}
    (lower,) = target_table(load_groups([Path(result.path)]), "test_loss", float(averaged["test_loss"].iloc[2]))
    assert lower["steps"] == "30"


def test_means_over_seeds_stand_where_every_seed_has_reached_the_target(run: Callable[..., Result]) -> None:
    results = [run(seed=seed) for seed in (0, 1)]
    groups = load_groups([Path(result.path) for result in results])
    ends = sorted(result.metrics["test_accuracy"] for result in results)
    (both,) = target_table(groups, "test_accuracy", ends[0])
    assert both["seeds that reach it"] == "2 of 2"
    assert "±" in both["seconds"]
    best = max(frame["test_accuracy"][frame["agent"].isna()].max() for frame in (r.metrics_dataframe for r in results))
    (one,) = target_table(groups, "test_accuracy", float(best))
    assert (one["seeds that reach it"], one["seconds"]) == ("1 of 2", "–")


def test_the_report_command_takes_a_target_and_writes_single_figures(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    folder = Path(run(compute=SLOW).path)
    figures, output = tmp_path / "a" / "figures", tmp_path / "page.html"
    cli.report([str(folder)], output, 0.2, figures)
    text = output.read_text(encoding="utf-8")
    assert "Time to a test accuracy of 20.0 %" in text
    names = {path.name for path in figures.iterdir()}
    assert {"test-accuracy-against-bytes-sent.pdf", "test-accuracy-against-bytes-sent.svg"} <= names
    assert len(names) == 2 * text.count("<figure")
    assert all(path.read_bytes()[:5] in (b"%PDF-", b"<?xml") for path in figures.iterdir())
    figure = metric_against(load_groups([folder]), "test_accuracy", "bytes_sent")
    assert figure is not None
    assert as_pdf(figure) == (figures / "test-accuracy-against-bytes-sent.pdf").read_bytes()
    with pytest.raises(SettingsError, match="target = 90: allowed for test accuracy are 0 to 1"):
        cli.report([str(folder)], output, 90.0, None)
    with pytest.raises(SettingsError, match=r"--figures .*page.html: cannot be written"):
        cli.report([str(folder)], output, None, output)
    with pytest.raises(SettingsError, match=r"--output .*figures: is a folder; allowed is a file"):
        cli.report([str(folder)], figures, None, None)


# Delays without effect.

FRESH = "delays of links had no effect on what was read: every read was fresh"


@pytest.mark.usefixtures("without_pictures")
def test_delays_without_effect_are_named(run: Callable[..., Result]) -> None:
    in_vain = {"links": [{"delay": 0.01, "unit": "seconds"}], "algorithm": "d-psgd", "barrier": "all"}
    harmless, undelayed = run(**in_vain), run(links=[], algorithm="d-psgd")
    late, zero = run(), run(links=[{"delay": 0}], algorithm="d-psgd")

    def notes(*results: Result, labels: list[str] | None = None) -> list[str]:
        return delay_notes(load_groups([Path(result.path) for result in results], labels))

    (note,) = notes(harmless)
    assert FRESH in note
    text = page(load_groups([Path(harmless.path)]), "t")
    assert FRESH in text
    assert "Time to" not in text  # no target
    assert notes(undelayed) == notes(late) == notes(zero) == []
    both = notes(harmless, undelayed, late, labels=["a", "b", "c"])
    assert len(both) == 2
    assert both[1].startswith("a and b have different delays, and yet read the same versions at every step")
    assert notes(undelayed, zero, labels=["a", "b"]) == []


def fails_on_all(outputs: Any, targets: Any) -> Any:
    if len(targets) > 300:
        raise KeyError("no such class")
    return (outputs.argmax(1) == targets).float().mean()


def test_what_fails_on_the_test_samples_fails_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"task.metrics: fails_on_all: fails on the test samples .*no such class"):
        Trainer(BASE | {"task": {"metrics": [fails_on_all]}}, storage_path=str(tmp_path)).fit()
    assert list(tmp_path.iterdir()) == []
    # A loss is tried on a few samples alone.
    result = Trainer(BASE | {"task": {"loss": Sometimes()}}, storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, RunError)
    said = "task.loss: fails on the test samples before the first step (KeyError: 'too many' ("
    assert str(result.error).startswith(said)
    assert Path(__file__).name in str(result.error)
    assert json.loads((Path(result.path) / "result.json").read_text(encoding="utf-8"))["agent_steps"] == 0


class Sometimes:
    def __call__(self, outputs: Any, targets: Any) -> Any:
        from torch.nn import functional

        if len(targets) > 300:
            raise KeyError("too many")
        return functional.cross_entropy(outputs, targets)
