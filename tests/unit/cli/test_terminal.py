"""What the terminal says of a run is what its files and its page say."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import ray_pcasgd
from ray_pcasgd.cli.terminal import Terminal, print_final_table
from ray_pcasgd.report.page import load_groups, write_report
from ray_pcasgd.report.schedule_pictures import staleness_histogram
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.trainer import Trainer

UNEVEN = {"law": {"name": "exponential", "mean": 1}}


def run(folder: Path, **settings: Any) -> tuple[Result, str]:
    """Return a run's result, and everything that the terminal said."""
    file = io.StringIO()
    console = Console(file=file, width=300, color_system=None, _environ={})
    base = {"engine": "local", "num_steps": 21, "evaluate_every": 7, "task": {"model": {"hidden": [8]}}}
    result = Trainer(base | settings, storage_path=str(folder), callbacks=[Terminal(console)]).fit()
    assert result.error is None
    print_final_table(result, console)
    return result, file.getvalue()


def test_a_run_is_watched_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = ray_pcasgd.Terminal()
    assert isinstance(callback, Terminal)
    trainer = Trainer(engine="local", num_steps=10, evaluate_every=5, storage_path=str(tmp_path), callbacks=[callback])
    for _ in range(2):  # a callback may be used again
        assert trainer.fit().error is None
    told = capsys.readouterr().out
    assert told.count("80 agent-steps in ") == 2
    assert "step 5: test accuracy of the averaged model" in told
    assert "\x1b" not in told


def summary_of(result: Result) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((Path(result.path) / "result.json").read_text(encoding="utf-8"))
    return summary


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"algorithm": {"name": "server", "gathering": "sync"}, "num_agents": 4, "num_steps": 2}, 8),
        ({"algorithm": {"name": "server", "gathering": "asgd", "shards": 2}, "num_agents": 4, "num_steps": 2}, 8),
        ({"num_agents": 3, "num_steps": 5}, 15),
        ({"algorithm": "ad-psgd", "num_agents": 4, "num_steps": 6, "links": []}, 24),
        ({"num_agents": 1, "num_steps": 1, "clusters": 1, "links": []}, 1),
    ],
)
def test_agent_steps_are_those_of_the_agents_that_learn(tmp_path: Path, settings: Any, expected: int) -> None:
    result, told = run(tmp_path, **settings)
    summary = summary_of(result)
    assert summary["agent_steps"] == expected
    assert f"{expected} agent-steps in " in told
    (row,) = [line for line in told.splitlines() if "agent-steps in" in line]
    rate = summary["agent_steps_per_second"]
    assert row.endswith("– agent-steps/s") if rate is None else rate > 0


def test_cancelled_gradients_are_no_agent_steps(tmp_path: Path) -> None:
    gathering = {"name": "k-sync", "k": 2}
    result, told = run(tmp_path, algorithm={"name": "server", "gathering": gathering}, num_agents=4, compute=UNEVEN)
    cancelled = result.metrics_dataframe.iloc[-1]["cancelled_steps"]
    assert cancelled > 0
    steps = summary_of(result)["agent_steps"]
    assert f"{steps} agent-steps in" in told
    # Steps that were taken, of which the last ones may have been taken in by nobody.
    assert 21 * 4 <= steps <= 21 * 4 + 4


@pytest.mark.parametrize(
    "algorithm",
    [
        "pc-asgd-pv",
        {"name": "server", "gathering": "asgd"},
        {"name": "server", "gathering": {"name": "k-batch-async", "k": 3}, "shards": 2},
    ],
)
@pytest.mark.usefixtures("without_pictures")
def test_mean_staleness_is_one_figure_everywhere(tmp_path: Path, algorithm: Any) -> None:
    result, told = run(tmp_path, algorithm=algorithm, num_agents=5, compute=UNEVEN, seed=3)
    groups = load_groups([Path(result.path)])
    page = write_report([Path(result.path)], tmp_path / "page.html", "t").read_text(encoding="utf-8")
    lines = told.splitlines()
    place = next(number for number, line in enumerate(lines) if "mean staleness" in line)
    heading, model = lines[place], next(line for line in lines[place:] if line.startswith(("averaged", "server's")))
    end = heading.index("mean staleness") + len("mean staleness")
    on_terminal = model[:end].split()[-1]
    in_table = re.findall(r"<td>([^<]*)</td>", page)[re.findall(r"<th>([^<]*)</th>", page).index("mean staleness")]
    figure = staleness_histogram(groups)
    assert figure is not None
    (in_picture,) = re.findall(r"mean ([\d.]+),", figure.axes[0].get_title(loc="left"))
    in_result = f"{summary_of(result)['final']['staleness_mean']:.4g}"
    assert on_terminal == in_table == in_picture == in_result == f"{result.metrics['staleness_mean']:.4g}"
    assert float(in_result) > 1
    # It is not that of the last evaluation.
    assert f"{result.metrics_dataframe.iloc[-1]['staleness_mean']:.4g}" != in_result
    assert "Mean staleness and predicting: over all reads and steps of the run." in page
