"""What servers' runs say, and refuse: what an update takes, what is ignored, and what a schedule settles."""

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from ray_pcasgd import Trainer
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.report.page import write_report
from ray_pcasgd.rules.gathering_base import FirstK
from ray_pcasgd.rules.svrg import SVRG
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.result import Result
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.parquet import read_rows, write_rows

TINY: dict[str, Any] = {
    "num_agents": 4,
    "num_steps": 6,
    "evaluate_every": 6,
    "links": [],
    "task": {"model": {"hidden": [4]}},
    "engine": "local",
}


def server(**settings: Any) -> dict[str, Any]:
    return {"algorithm": {"name": "server", **settings}}


def page_of(run: Result) -> str:
    file = Path(run.path) / "page.html"
    write_report([Path(run.path)], file, "run")
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            server(gathering={"name": "adversarial", "delay": 24}),
            "algorithm.gathering.delay = 24: allowed with num_steps = 6 and num_agents = 4 are 1 to 23",
        ),
        (
            server(gathering={"name": "rennala", "k": 25}),
            "algorithm.gathering.name = 'rennala': takes 25 gradients for one update; allowed with num_steps = 6 and "
            "num_agents = 4 are up to 24, which are the whole run",
        ),
        (
            server(gathering={"name": "malenia", "target": 7}),
            "algorithm.gathering.name = 'malenia': takes 28 gradients for one update; allowed with num_steps = 6 and",
        ),
        (
            server(gathering={"name": "malenia", "target": 1001}),
            "algorithm.gathering.target = 1001: allowed are values up to 1000",
        ),
        (
            {"algorithm": "d-asgd", "topology": {"name": "hierarchical", "inside": 6}},
            "topology.inside = 6: allowed with num_steps = 6 are 1 to 5, so that groups exchange anything",
        ),
        (
            {"algorithm": "d-asgd", "topology": "hierarchical", "clusters": 1},
            "clusters = [[0, 1, 2, 3]]: is one group; allowed with topology.name = 'hierarchical' are several",
        ),
        (
            {"algorithm": "d-asgd", "topology": {"name": "hierarchical", "groups": [[0, 1, 2, 3]]}},
            "topology.groups = [[0, 1, 2, 3]]: is one group; allowed are several",
        ),
        (
            server(nesterov={"name": "momentum-compensation"}) | {"optimizer": {"momentum": 0.9}},
            "optimizer.momentum = 0.9: allowed with algorithm.nesterov.name = 'momentum-compensation' is sgd without",
        ),
        (
            {"algorithm": {"name": "bridge", "late": "keep", "reach": 5}},
            "algorithm.reach = 5: allowed with late = 'keep' is the default",
        ),
        (server(correction="kardam") | {"num_agents": 3}, "algorithm.correction.attackers = 1: allowed is 0, below"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_could_not_be_is_refused_in_one_line(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(TINY, changes=changes))
    line = str(caught.value)
    assert line.startswith(told)
    assert "\n" not in line


def test_epochs_need_no_name_where_there_is_no_other_gathering() -> None:
    config = load_config(TINY, changes={"algorithm": {"name": "svrg", "gathering": {"updates": 200}}})
    assert isinstance(config.algorithm, SVRG)
    assert config.algorithm.gathering.model_dump() == {"name": "epochs", "updates": 200}


def test_a_schedule_settles_what_an_update_takes(tmp_path: Path) -> None:
    recorded = Trainer(TINY | server(), storage_path=str(tmp_path), name="recorded").fit()
    schedule = f"{recorded.path}/schedule.parquet"
    again = Trainer(TINY | server(correction="dampened"), storage_path=str(tmp_path), schedule=schedule).fit()
    assert again.schedule_hash == recorded.schedule_hash
    for changes in (server(gathering="malenia"), {"algorithm": "fedglomo"}):
        with pytest.raises(SettingsError) as caught:
            Trainer(TINY | changes, storage_path=str(tmp_path), schedule=schedule).fit()
        line = str(caught.value)
        assert line.startswith('algorithm.gathering = {"name": ')
        assert line.index('is {"name": "asgd"}') > line.index("allowed with schedule = ")


class OwnGathering(FirstK):
    """One of a user's own, whose field no file can hold."""

    name: Literal["own"] = "own"
    waits: ClassVar[bool] = True
    what: Any = None


class OtherGathering(OwnGathering):
    """Another one, of the same name."""


def test_a_gathering_of_ones_own_is_told_apart_by_its_class_or_not_at_all(tmp_path: Path) -> None:
    one = Trainer(TINY | server(gathering=OwnGathering(k=2)), storage_path=str(tmp_path)).fit()
    schedule = f"{one.path}/schedule.parquet"
    again = Trainer(TINY | server(gathering=OwnGathering(k=2)), storage_path=str(tmp_path), schedule=schedule).fit()
    assert again.schedule_hash == one.schedule_hash
    with pytest.raises(SettingsError, match=r"^algorithm\.gathering = .*OtherGathering.*OwnGathering"):
        Trainer(TINY | server(gathering=OtherGathering(k=2)), storage_path=str(tmp_path), schedule=schedule).fit()
    odd = Trainer(TINY | server(gathering=OwnGathering(k=2, what=object())), storage_path=str(tmp_path)).fit()
    assert odd.error is None
    # What cannot be written cannot be told apart, and is taken.
    both = Trainer(TINY | server(), storage_path=str(tmp_path), schedule=f"{odd.path}/schedule.parquet").fit()
    assert both.schedule_hash == odd.schedule_hash


def test_epochs_are_known_by_their_rows_whether_their_length_was_given_or_not(tmp_path: Path) -> None:
    run = Trainer(TINY | {"algorithm": "svrg"}, storage_path=str(tmp_path)).fit()
    for updates in (None, 2 * 4 * 23):
        algorithm = {"name": "svrg", "gathering": {"name": "epochs", "updates": updates}}
        again = Trainer(
            TINY | {"algorithm": algorithm}, storage_path=str(tmp_path), schedule=f"{run.path}/schedule.parquet"
        ).fit()
        assert again.schedule_hash == run.schedule_hash


def test_what_a_stranger_s_file_says_of_its_gathering_is_told_in_one_short_line(tmp_path: Path) -> None:
    run = Trainer(TINY | server(), storage_path=str(tmp_path)).fit()
    rows, metadata = read_rows(Path(run.path) / "schedule.parquet")
    odd = tmp_path / "odd.parquet"
    told = {name: text for name, text in metadata.items() if name != "format"} | {
        "gathering": "\x1b[2J\n" + "x" * 10_000
    }
    write_rows(odd, rows, told)
    with pytest.raises(SettingsError, match=r"^algorithm\.gathering = ") as caught:
        Trainer(TINY | server(), storage_path=str(tmp_path), schedule=str(odd)).fit()
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 1000


def test_gradients_that_came_too_late_are_counted(tmp_path: Path) -> None:
    times = {"compute": {"law": {"name": "exponential", "mean": 1.0}}}
    for gathering, cancels in (
        ({"name": "ringmaster", "delay_threshold": 1}, False),
        ({"name": "k-sync", "k": 2}, True),
    ):
        run = Trainer(TINY | times | server(gathering=gathering), storage_path=str(tmp_path)).fit()
        rows, _ = read_rows(Path(run.path) / "schedule.parquet")
        found = json.loads((Path(run.path) / "result.json").read_text(encoding="utf-8"))["gradients"]
        assert found["taken"] == sum(len(row.reads) for row in rows if row.agent == 4) == 24
        assert found["computed"] == sum(row.kind == "step" for row in rows if row.agent < 4)
        assert found["cancelled"] == sum(row.kind == "cancelled" for row in rows)
        assert (found["cancelled"] > 0) == cancels
        assert found["computed"] > 24 or cancels
        line = f"24 of {found['computed']} messages of workers were taken"
        assert line in page_of(run)
    plain = Trainer(TINY | times | server(), storage_path=str(tmp_path)).fit()
    assert "gradients" not in json.loads((Path(plain.path) / "result.json").read_text(encoding="utf-8"))


def test_more_attackers_than_are_stood_are_told(tmp_path: Path) -> None:
    faults = {"faults": {"agents": [1, 2], "attack": "noise"}}
    cases = [
        (
            {"algorithm": {"name": "bridge", "screen": "trimmed-mean"}},
            ("faults.agents = [1, 2]: 2 attack among the neighbors of agent 0; algorithm.attackers = 1 are stood",),
        ),
        (
            server(correction="kardam"),
            ("faults.agents = [1, 2]: 2 attack; algorithm.correction.attackers = 1 are stood",),
        ),
        ({"algorithm": "d-asgd"}, ()),
        # No agent of a ring of four has both 0 and 1 for neighbors.
        (
            {"algorithm": {"name": "bridge", "screen": "centered-clipping", "attackers": 0}, "topology": "ring"},
            ("faults.agents = [1, 2]: 1 attack among the neighbors of agent 0; algorithm.attackers = 0 are stood",),
        ),
    ]
    for changes, told in cases:
        assert make_plan(load_config(TINY, changes=changes | faults)).remarks == told


def test_the_total_momentum_stands_in_the_result_and_on_the_page(tmp_path: Path) -> None:
    run = Trainer(TINY | server() | {"optimizer": "yellowfin", "evaluate_every": 3}, storage_path=str(tmp_path)).fit()
    frame = run.metrics_dataframe
    last = frame[frame["agent"] == 4].iloc[-1]
    assert math.isfinite(run.metrics["total_momentum"])
    for name in ("momentum", "total_momentum"):
        assert run.metrics[name] == last[name] == frame[frame["agent"].isna()].iloc[-1][name]
    assert "Total momentum" in page_of(run)
    plain = Trainer(TINY | server(), storage_path=str(tmp_path)).fit()
    assert "total_momentum" not in plain.metrics
    assert "Total momentum" not in page_of(plain)
