"""What a run says of attackers: counted pair by pair, as honest agents have judged them."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ray_pcasgd.agents.attacks import Faults, Noise
from ray_pcasgd.records import Read, Row, StepReport, of_neighbor
from ray_pcasgd.report.page import write_report
from ray_pcasgd.runs.screening import Screening, told
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.trainer import Trainer
from tests.unit.interrupted_runs import command


def report(agent: int, reads: dict[int, tuple[int, float]], alone: float = 0.0) -> StepReport:
    """Return a step that has read neighbors of such a staleness, and left out such a share of each."""
    row = Row(agent, 0, 0.0, 1.0, 1.0, tuple(Read(k, 3, late, late) for k, (late, _) in sorted(reads.items())))
    measures = {of_neighbor("screened", k): share for k, (_, share) in reads.items()}
    return StepReport(row, 1, 0.5, {"alone": alone, **measures}, 0, 0.0)


def test_shares_are_those_of_honest_judges_by_who_was_judged_and_when() -> None:
    own = Screening(Faults(agents=(1,), attack=Noise()))
    own.take(report(0, {1: (0, 1.0), 2: (0, 0.0), 3: (5, 0.5)}))
    own.take(report(0, {1: (0, 0.5), 2: (0, 0.5), 3: (5, 1.0)}))
    own.take(report(2, {1: (4, 0.0), 3: (0, 0.25)}))
    own.take(report(1, {0: (0, 1.0)}))  # an attacker, whose judgement is not asked for
    own.take(report(3, {1: (0, 1.0), 0: (0, 1.0)}, alone=1.0))  # where nobody was judged
    summary = own.summary()
    assert summary == {
        "attack": "noise",
        "attackers": [1],
        "steps": 5,
        "steps_alone": 1,
        "screened_out": {
            "attackers": {"reads": 3, "share": 0.5},
            "honest in time": {"reads": 3, "share": 0.25},
            "honest late": {"reads": 2, "share": 0.75},
        },
    }
    assert told(summary) == [
        "attack noise by agents 1",
        "screened out: 50.0 % of 3 versions of attackers, 25.0 % of 3 versions of honest agents in time, "
        "75.0 % of 2 versions of late honest agents",
        "1 of 5 steps took in nothing of others: fewer neighbors, or gradients, were left than the screen needs",
    ]
    again = Screening(Faults(agents=(1,), attack=Noise()))
    again.restore(json.loads(json.dumps(own.state())))
    assert again.summary() == summary
    pd.testing.assert_frame_equal(again.frame(), own.frame())


def test_a_run_without_attackers_and_screens_says_nothing() -> None:
    own = Screening(None)
    row = Row(0, 0, 0.0, 1.0, 1.0, (Read(1, 0, 0, 0),))
    own.take(StepReport(row, 1, 0.5, {"theta": 1.0}, 0, 0.0))
    assert own.summary() is None
    assert own.frame().empty


AWAY: dict[str, Any] = {
    "engine": "local",
    "num_agents": 4,
    "num_steps": 12,
    "evaluate_every": 12,
    "algorithm": {"name": "bridge", "attackers": 1},
    "faults": {"agents": [1], "attack": "sign-flip"},
    "membership": [{"agent": 3, "leaves": "4.5s", "returns": "8.5s"}],
    "links": [],
}


def test_a_neighborhood_that_has_shrunk_leaves_the_local_step_and_everything_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three neighbors are what a trimmed mean of b = 1 takes; while agent 3 is away, nobody has them."""
    result = Trainer(AWAY, storage_path=str(tmp_path), name="away").fit()
    assert result.error is None
    folder = Path(result.path)
    summary = json.loads((folder / "result.json").read_text())["screening"]
    assert summary["steps"] > summary["steps_alone"] >= 3 * 3
    shares = summary["screened_out"]
    assert shares["attackers"]["share"] > 0.9 > shares["honest in time"]["share"]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "screening.parquet"), result.screening)
    page = write_report([folder], tmp_path / "page.html", "away").read_text()
    assert all(line.split(":")[0] in page for line in summary["lines"])
    status, lines, _ = command(["train", str(folder / "config.yaml"), "--name", "again"], capsys)
    assert status == 0
    assert set(summary["lines"]) <= set(lines)


def test_lines_of_a_stranger_s_folder_are_texts(tmp_path: Path) -> None:
    result = Trainer(AWAY | {"num_steps": 2, "evaluate_every": 2}, storage_path=str(tmp_path)).fit()
    file = Path(result.path) / "result.json"
    for screening in ("x", {"lines": "x"}, {"lines": [{"a": 1}, "<b>\n", 5] * 9}, 3):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"screening": screening}))
        page = write_report([Path(result.path)], tmp_path / "page.html", "x").read_text()
        assert "<b>" not in page.split("</style>")[-1].replace("<body>", "")


@pytest.mark.parametrize("topology", ["one-peer-exponential", "hierarchical"])
def test_neighbors_that_a_screen_needs_are_counted_step_by_step(topology: str) -> None:
    """Over all steps there are enough of them, at no step are there."""
    settings = {"engine": "local", "num_agents": 8, "algorithm": "bridge", "topology": topology}
    with pytest.raises(SettingsError, match=r"algorithm\.attackers = 1: allowed .* is 0; agent \d has 1 of the 3 nei"):
        Trainer(settings | {"clusters": [[0, 1], [2, 3], [4, 5], [6, 7]]}).fit()


def test_a_server_whom_workers_have_left_judges_nobody(tmp_path: Path) -> None:
    leaving = [{"agent": worker, "leaves": "5s"} for worker in (2, 3, 4, 5)]
    server = {"name": "server", "gathering": "sync", "screen": "median", "attackers": 2}
    settings = {"engine": "local", "num_agents": 6, "num_steps": 12, "links": [], "algorithm": server}
    result = Trainer(settings | {"membership": leaving}, storage_path=str(tmp_path)).fit()
    summary = json.loads((Path(result.path) / "result.json").read_text())["screening"]
    assert 0 < summary["steps_alone"] < summary["steps"]
    assert result.screening["screened"].max() < 1


def test_a_run_whose_workers_leave_kardam_with_too_few_goes_on_and_says_so(tmp_path: Path) -> None:
    """Two of four are left, where f = 1 takes three; without that, no update is without the filter."""
    settings: dict[str, Any] = {
        "engine": "local",
        "num_agents": 4,
        "num_steps": 30,
        "evaluate_every": 30,
        "links": [],
        "compute": {"law": {"name": "exponential", "mean": 1.0}},
        "algorithm": {"name": "server", "correction": "kardam"},
    }
    whole = Trainer(settings, storage_path=str(tmp_path)).fit()
    assert "updates_unfiltered" not in json.loads((Path(whole.path) / "result.json").read_text())["screening"]
    away = settings | {"membership": [{"agents": [2, 3], "leaves": "8s", "returns": "24s"}]}
    result = Trainer(away, storage_path=str(tmp_path)).fit()
    summary = json.loads((Path(result.path) / "result.json").read_text())["screening"]
    assert 0 < summary["updates_unfiltered"] < 60
    (line,) = [line for line in summary["lines"] if "frequency" in line]
    assert line == (
        f"{summary['updates_unfiltered']} updates went without Kardam's frequency filter: fewer workers were left, or "
        "kept up, than it needs"
    )
    assert set(result.screening["neighbor"]) == {0, 1, 2, 3}
