"""What a sweep says is best, and what matters: on its way, in its table and on its page."""

import itertools
import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import Tensor

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.report.sweep_page import write_sweep_report
from ray_pcasgd.report.sweep_pictures import heat_map, marginals, sensitivity, sensitivity_bars, what_matters
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.sweep.progress import SweepProgress, is_news
from ray_pcasgd.sweep.results import SweepResult, summarized, tabled
from ray_pcasgd.sweep.settings import load_sweep
from ray_pcasgd.sweep.states import with_axis

KEYS = ["algorithm.theta", "step_size"]
METRIC = "test_accuracy"


def trials(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return a table of trials; they have finished with step 60 and not failed unless it is said."""
    usual = {"seed": 0, "step": 60, "error": None, "path": "nowhere"}
    return pd.DataFrame([usual | {"finished": row.get("step", 60) == 60} | row for row in rows])


def drawn(number: int, value: Any, seed: int = 0) -> pd.DataFrame:
    """Return points of a random search: theta in [0, 1], step size in [0.01, 1], evenly in its logarithm."""
    random = generator(seed, "points")
    points = zip(random.uniform(0, 1, number), 10 ** random.uniform(-2, 0, number), strict=True)
    rows = [{"algorithm.theta": theta, "step_size": eta, METRIC: value(theta, eta)} for theta, eta in points]
    return summarized(trials(rows), KEYS, METRIC, "max")


# What matters.


@pytest.mark.parametrize("seed", range(5))
def test_in_a_random_search_what_matters_is_what_the_metric_depends_on(seed: int) -> None:
    points = drawn(20, lambda theta, eta: 0.9 - 0.2 * abs(np.log10(eta) + 0.7), seed)
    shares = sensitivity(points, KEYS)
    assert shares["step_size"] > 0.6
    assert shares["algorithm.theta"] < 0.35
    assert "More than chance is explained by step_size" in what_matters(points, KEYS)


def test_of_noise_nothing_matters() -> None:
    random = generator(0, "noise")
    told = 0
    for seed in range(20):
        points = drawn(20, lambda theta, eta: float(random.normal()), seed)
        told += sum(key in what_matters(points, KEYS).split("From")[0] for key in KEYS)
        assert max(sensitivity(points, KEYS)) < 0.6
    assert told <= 5  # of 40, in each of which chance gets so far 1 time in 20


def test_of_few_points_it_is_said_that_nothing_can_be_told() -> None:
    points = drawn(5, lambda theta, eta: eta)
    assert what_matters(points, KEYS) == (
        "Which setting matters cannot be told from 5 finished points; 8 are the fewest."
    )
    assert sensitivity_bars(points, KEYS) is None
    assert sensitivity(points, KEYS).tolist() == [0.0, 0.0]
    names = [{"a": str(number), "b": number % 2, METRIC: number / 10} for number in range(10)]
    words = summarized(trials(names), ["a", "b"], METRIC, "max")
    assert "cannot be told whether a or b matters" in what_matters(words, ["a", "b"])


# The table.


def test_points_that_were_stopped_early_come_last_with_their_step() -> None:
    rows = [
        {"step_size": 0.1, METRIC: 0.5},
        {"step_size": 0.2, METRIC: 0.9, "step": 20},
        {"step_size": 0.3, METRIC: 0.7, "step": 40},
        {"step_size": 0.4, METRIC: 0.8, "step": 40},
        {"step_size": 0.5, METRIC: 0.6},
        {"step_size": 0.6, METRIC: np.nan, "step": 20, "error": "diverged"},
    ]
    points = summarized(trials(rows), ["step_size"], METRIC, "max")
    assert points["step_size"].tolist() == [0.5, 0.1, 0.4, 0.3, 0.2, 0.6]
    assert points["step"].tolist()[:5] == [60, 60, 40, 40, 20]


def test_values_that_are_no_numbers_are_written_and_found_again() -> None:
    edges = {"name": "edges", "edges": [[0, 1]]}
    rows = [
        {"topology": topology, "theta": theta, "mixed": mixed, "flag": True}
        for topology, theta, mixed in zip(["ring", edges, "ring"], [0.1, 1, 2], [None, 0.5, "all"], strict=True)
    ]
    table, values = tabled(rows, ["topology", "theta", "mixed", "flag"])
    assert table["topology"].tolist() == ["ring", "edges (edges: [[0, 1]])", "ring"]
    assert set(values) == {"topology", "mixed"}
    table.to_parquet("/dev/null")
    for place, row in enumerate(rows):
        scores = [float(other == place) for other in range(3)]
        scored = table.assign(seed=0, step=60, error=None, finished=True, **{METRIC: scores})
        points = summarized(scored, ["topology", "theta", "mixed", "flag"], METRIC, "max")
        result = SweepResult(None, Path(), METRIC, "max", scored, points, values)  # type: ignore[arg-type]
        assert result.best == row


# On its way.


def result_of(progress: SweepProgress, name: str, value: float, step: int, **config: Any) -> None:
    trial = SimpleNamespace(trial_id=name, config=config, last_result=None, error_file="e")
    progress.on_trial_result(0, [], trial, {METRIC: value, "step": step, "num_steps": 60})


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_line_names_what_the_table_would_name(seeds: int) -> None:
    """Whatever trials have come to: finished, on their way, or stopped; with one seed or two."""
    random = generator(seeds, "trials")
    for _ in range(40):
        progress = SweepProgress(METRIC, "max", 12, None, clock=lambda: 0.0)
        rows = []
        for (number, eta), seed in itertools.product(enumerate((0.1, 0.2, 0.3)), range(seeds)):
            steps = list(range(20, random.choice([20, 40, 60]) + 1, 20))
            values = [round(float(random.uniform()), 3) for _ in steps]
            for step, value in zip(steps, values, strict=True):
                result_of(progress, f"{number}-{seed}", value, step, step_size=eta, seed=seed)
            rows.append({"step_size": eta, "seed": seed, METRIC: values[-1], "step": steps[-1]})
        best = summarized(trials(rows), ["step_size"], METRIC, "max").iloc[0]
        line = progress.line()
        spread = f" ± {100 * best['std']:.1f}" if seeds > 1 and best["std"] == best["std"] else ""
        assert f"best test accuracy {100 * best['mean']:.1f}{spread} % at step_size={best['step_size']:.4g}" in line
        assert (f"at step {best['step']:.0f} of 60" in line) == (not best["finished"])
        assert (", 2 seeds" in line) == (seeds == 2)


def test_the_line_names_no_trial_by_what_it_was_once() -> None:
    progress = SweepProgress(METRIC, "max", 2, None, clock=lambda: 0.0)
    for step, value in ((20, 0.9), (40, 0.5), (60, 0.3)):
        result_of(progress, "a", value, step, step_size=0.1, seed=0)
    result_of(progress, "b", 0.4, 60, step_size=0.2, seed=0)
    assert "best test accuracy 40.0 % at step_size=0.2 seed=0," in progress.line()
    progress.on_trial_error(0, [], SimpleNamespace(trial_id="b", config={"step_size": 0.2}, error_file="e"))
    assert "best test accuracy 30.0 % at step_size=0.1 seed=0," in progress.line()
    result_of(progress, "c", float("nan"), 60, step_size=0.3, seed=0)
    assert "30.0 % at step_size=0.1" in progress.line()


def test_a_trial_that_failed_is_one_line_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    progress = SweepProgress(METRIC, "max", 2, None, clock=lambda: 0.0)
    file = tmp_path / "error.txt"
    file.write_text('Traceback\n  File "x", line 1\nray_pcasgd.engines.failures.StepError: agent 0 at step 6: boom\n')
    for path in (file, tmp_path / "nothing"):
        trial = SimpleNamespace(trial_id="b", config={"step_size": 0.2}, error_file=str(path))
        progress.on_trial_error(0, [], trial)
    assert capsys.readouterr().out.splitlines() == [
        f"step_size=0.2 failed: agent 0 at step 6: boom (see {file})",
        f"step_size=0.2 failed: the table at the end says why (see {tmp_path / 'nothing'})",
    ]


@pytest.mark.parametrize(
    ("message", "shown"),
    [("Trial task failed for trial x", False), ("Trials did not complete: [x]", False), ("y", True)],
)
def test_of_tunes_messages_those_are_left_out_that_are_said_already(message: str, shown: bool) -> None:
    assert is_news(logging.LogRecord("ray.tune", logging.ERROR, "", 0, message, None, None)) == shown


def test_settings_that_are_lists_or_none_have_a_line_too() -> None:
    progress = SweepProgress(METRIC, "max", 3, None, clock=lambda: 0.0)
    for number, barrier in enumerate((None, {"name": "bounded", "staleness": 2}, "all")):
        result_of(progress, str(number), number / 10, 60, barrier=barrier, num_steps=60)
    assert "best test accuracy 20.0 % at barrier=all num_steps=60 seed=0" in progress.line()


def test_tensorboard_s_steps_are_the_run_s() -> None:
    assert with_axis({"step": 40.0, METRIC: 0.5}) == {"step": 40.0, METRIC: 0.5, "timesteps_total": 40}


# Which way is better.


def hits(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


class Rising:
    higher_is_better = True

    def reset(self) -> None: ...

    def update(self, outputs: Tensor, targets: Tensor) -> None: ...

    def compute(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("accuracy", "max"),
        ({"name": "top-accuracy", "k": 3}, "max"),
        ("cross-entropy", "min"),
        ("mae", "min"),
        (Rising, "max"),
        (hits, None),
    ],
)
def test_more_is_better_where_the_metric_says_so_and_nobody_guesses(metric: Any, expected: str | None) -> None:
    base = load_config({"task": {"metrics": [metric]}})
    name = f"test_{base.task.metrics[0].key}"
    sweep = load_sweep({"space": {"step_size": [1]}, "metric": name})
    if expected is not None:
        assert sweep.judged_by(base) == (name, expected)
        return
    with pytest.raises(SettingsError, match="mode: needed for metric = 'test_hits', which does not say; allowed"):
        sweep.judged_by(base)
    assert load_sweep({"space": {"step_size": [1]}, "metric": name, "mode": "max"}).judged_by(base)[1] == "max"


# The page.


def page_of(tmp_path: Path, table: pd.DataFrame, keys: list[str], **more: Any) -> str:
    points = summarized(table, keys, METRIC, "max")
    return write_sweep_report(tmp_path, points, table, keys, METRIC, "", **more).read_text(encoding="utf-8")


def test_logarithmic_ranges_have_logarithmic_axes_and_linear_ones_do_not() -> None:
    points = drawn(12, lambda theta, eta: eta)
    for scales, expected in (({"step_size": True}, "log"), ({"step_size": False}, "linear")):
        figure = marginals(points, KEYS, METRIC, {"algorithm.theta": False, **scales})
        assert figure is not None
        assert [axes.get_xscale() for axes in figure.axes] == ["linear", expected]
    for listed, expected in (([0.1, 0.2, 0.4], "log"), ([0.1, 0.2, 0.3], "linear"), ([0.0, 1.0, 100.0], "linear")):
        rows = [{"step_size": eta, METRIC: eta} for eta in listed]
        figure = marginals(summarized(trials(rows), ["step_size"], METRIC, "max"), ["step_size"], METRIC)
        assert figure is not None
        assert figure.axes[0].get_xscale() == expected


def test_captions_tell_of_what_is_drawn_and_of_nothing_else(tmp_path: Path) -> None:
    grid = [
        {"algorithm.theta": theta, "step_size": eta, "seed": seed, METRIC: theta + eta + seed / 100}
        for theta, eta, seed in itertools.product((0.0, 0.5), (0.1, 0.2), (0, 1))
    ]
    text = page_of(tmp_path, trials(grid), KEYS)
    assert "The line is the mean over the other settings." in text
    assert "Mean ± sample standard deviation over seeds." in text
    assert text.count("± is the sample standard deviation over seeds, 2 of them.") == 1
    assert "stopped early</th>" in text
    assert "Hollow" not in text
    one = page_of(tmp_path, trials([row for row in grid if row["seed"] == 0]), KEYS)
    assert "±" not in one
    random = trials([{"step_size": eta, METRIC: eta} for eta in (0.11, 0.23, 0.37)])
    text = page_of(tmp_path, random, ["step_size"], scales={"step_size": True})
    assert "The line is" not in text
    assert "extremes" not in text


def test_what_was_stopped_early_has_no_color_and_no_share_in_means(tmp_path: Path) -> None:
    rows = [
        {"algorithm.theta": theta, "step_size": eta, METRIC: value, "step": step}
        for theta, eta, value, step in (
            (0.0, 0.1, 0.4, 60),
            (0.5, 0.1, 0.9, 20),
            (0.0, 0.2, 0.6, 60),
            (0.5, 0.2, 0.8, 60),
        )
    ]
    table = trials(rows)
    points = summarized(table, KEYS, METRIC, "max")
    figure = heat_map(points, KEYS, METRIC)
    assert figure is not None
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"40.0", "60.0", "80.0", "90.0\nstep 20"}
    assert np.ma.getmaskarray(figure.axes[0].images[0].get_array()).sum() == 1
    figure = marginals(points, KEYS, METRIC)
    assert figure is not None
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [0.5, 0.8])
    text = page_of(tmp_path, table, KEYS)
    assert "<th>at step</th>" in text
    assert "Points of which no trial finished come last" in text
    assert heat_map(points, KEYS, METRIC, {"step_size": True}) is None  # a range is no grid


def test_a_report_has_place_for_points_that_came_to_nothing_and_settings_that_are_words(tmp_path: Path) -> None:
    rows = [
        {"algorithm.screen": screen, "algorithm.attackers": attackers, **came_to}
        for screen in ("trimmed-mean", "krum")
        for attackers, came_to in ((1, {METRIC: 0.5}), (4, {METRIC: math.nan, "error": "refused", "step": math.nan}))
    ]
    keys = ["algorithm.screen", "algorithm.attackers"]
    text = page_of(tmp_path, trials(rows), keys)
    assert "<img" in text or "<svg" in text, text
    assert "krum" in text


def test_a_population_s_trials_are_no_seeds_of_a_point(tmp_path: Path) -> None:
    table = trials([{"step_size": 0.1, METRIC: 0.5}, {"step_size": 0.1, METRIC: 0.6}])
    points = summarized(table.assign(_trial=range(2)), ["step_size", "_trial"], METRIC, "max").drop(columns="_trial")
    assert points["mean"].tolist() == [0.6, 0.5]
    text = write_sweep_report(tmp_path, points, table, ["step_size"], METRIC, "", changed=True).read_text(
        encoding="utf-8"
    )
    assert "±" not in text
    assert "config.yaml says how they changed before" in text
    assert "What matters" not in text


def test_the_last_line_counts_every_trial(capsys: pytest.CaptureFixture[str]) -> None:
    progress = SweepProgress(METRIC, "max", 2, None, clock=lambda: 0.0)
    for name in "ab":
        result_of(progress, name, 0.9, 60, step_size=0.1, seed=0)
        progress.on_trial_complete(0, [], SimpleNamespace(trial_id=name, config={"step_size": 0.1}, last_result={}))
    progress.on_experiment_end([])
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 of 2 trials done, best test accuracy 90.0 %")
