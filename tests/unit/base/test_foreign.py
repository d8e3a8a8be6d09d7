"""Files of run folders that may be anybody's: what they must be, or one line; in bounded time and memory."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_pcasgd.base.foreign_files import events_of, is_number, read_mapping, read_text
from ray_pcasgd.base.foreign_tables import read_table
from ray_pcasgd.report.data import load_run
from ray_pcasgd.report.page import write_report
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.parquet import read_rows, write_rows


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {"engine": "local", "num_agents": 2, "num_steps": 4, "evaluate_every": 2}
    return Path(Trainer(tiny, name="sent", storage_path=str(tmp_path_factory.mktemp("runs"))).fit().path)


@pytest.fixture
def run(sent: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.yaml", "metrics.parquet", "schedule.parquet", "result.json", "events.jsonl"):
        if (sent / name).exists():
            (folder / name).write_bytes((sent / name).read_bytes())
    return folder


def refusal(run: Path) -> str:
    with pytest.raises(ValueError, match=r"^run = ") as caught:
        load_run(run)
    assert type(caught.value) is ValueError
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


# JSON.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not JSON"),
        (b"[1]", "holds a list; allowed is a mapping"),
        (b"\xff", "is not UTF-8"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON (Exceeds the limit"),
        (b" " * (16 * 2**20 + 1), "has more than 16,777,216 bytes"),
    ],
    ids=["empty", "list", "bytes", "deep", "deep mappings", "number", "large"],
)
def test_a_result_that_is_none(content: bytes, said: str, run: Path) -> None:
    (run / "result.json").write_bytes(content)
    assert said in refusal(run)


@pytest.mark.parametrize("key", ["wall_seconds", "agent_steps_per_second", "final", "error", "schedule_hash"])
@pytest.mark.parametrize("value", ["x", [1], {"a": [2]}, True, 1e308, float("nan"), 10**300, "\x1b[2J<b>"], ids=repr)
def test_a_result_whose_parts_are_of_another_kind_makes_a_page_all_the_same(key: str, value: Any, run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key: value}))
    found = load_run(run)
    assert found.final("averaged", "test_accuracy") is None or key != "final"
    assert is_number(found.result.get("wall_seconds", 0.0))
    assert found.error is None or found.error.isprintable()


def test_events_that_are_none_are_left_out(tmp_path: Path) -> None:
    good = {"time": 1.5, "kind": "agent_lost", "agent": 1, "step": 3, "detail": "gone"}
    lines = [
        json.dumps(good),
        "[1, 2]",
        "null",
        "5",
        '{"detail": "no kind"}',
        '{"kind": 7}',
        '{"kind": "a", "kind": "b", "agent": "x", "step": [1], "detail": {"deep": 1}, "more": "' + "y" * 100 + '"}',
        '{"kind": "c", "detail": "\\u001b[31m red\\nline", "time": NaN, "agent": 1e400}',
        "[" * 50_000,
        '{"kind": "long", "detail": "' + "z" * 2_000_000 + '"}',
        '{"kind": "d", "step": ' + "1" * 5000 + "}",
        json.dumps(good)[:-9],
    ]
    path = tmp_path / "events.jsonl"
    path.write_text("\n".join(lines))
    assert list(events_of(path)) == [good, {"kind": "b"}, {"kind": "c", "detail": "[31m red line"}]
    assert list(events_of(tmp_path / "nowhere.jsonl")) == []


def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            read_text(path)
        with pytest.raises(OSError, match=r"regular file|directory"):
            read_mapping(path)
        assert list(events_of(path)) == []
        with pytest.raises(ValueError, match=r"regular file|directory"):
            read_table(path)


# Settings.


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("algorithm: 5", "has no settings of the algorithm"),
        ("engine: [live]", "has no settings of the engine"),
        ("algorithm: {gathering: 3}", "has no name of algorithm.gathering"),
        ("algorithm: {correction: {}}", "has no name of algorithm.correction"),
        ("num_agents: x", "has num_agents = x"),
        ("num_agents: 1000000000", "has num_agents = 1000000000"),
        ("a: &a [*a]", "stands inside of itself"),
        ("[" * 900, "nested deeper"),
        ("- 1", "holds a list"),
        ("seed: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_settings_that_no_page_can_be_made_of(content: str, said: str, run: Path) -> None:
    (run / "config.yaml").write_text(content)
    assert said in refusal(run)


def test_nothing_of_a_folder_reaches_the_page_as_it_is(run: Path) -> None:
    evil = "<script>alert(1)</script>\x1b[31m\u202e"
    tree = {
        "algorithm": {"name": evil, "theta": evil},
        "task": {evil: {evil: [evil]}, "data": {"name": evil}},
        "engine": {"mode": evil, "name": evil},
        "topology": {"name": evil},
        "num_agents": 2,
        "seed": evil,
    }
    (run / "config.yaml").write_text(json.dumps(tree))
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"error": evil, "schedule_hash": evil}))
    (run / "events.jsonl").write_text(json.dumps({"kind": evil, "detail": evil}) + "\n")
    frame = pd.read_parquet(run / "metrics.parquet").rename(columns={"test_accuracy": f"test_{evil}"})
    frame.to_parquet(run / "metrics.parquet", index=False)
    text = write_report([run], run / "report.html", evil).read_text()
    assert "<script" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text


# Tables.


def schedule_with(run: Path, change: Callable[[pa.Table], pa.Table]) -> str:
    path = run / "schedule.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return refusal(run)


def column(name: str, values: Callable[[pa.Table], pa.Array]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values(table))


BAD_SCHEDULES: dict[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    "absent": (lambda table: table.drop_columns("kind"), "has no column kind"),
    "text": (column("agent", lambda t: pa.array(["x"] * len(t))), "has no column agent"),
    "nested": (column("agent", lambda t: pa.array([{"a": 1}] * len(t))), "has no column agent"),
    "deep": (column("neighbors", lambda t: pa.array([[[1]]] * len(t))), "has no column neighbors"),
    "kinds": (column("kind", lambda t: pa.array(["other"] * len(t))), "rows of an unknown kind"),
    "negative": (column("agent", lambda t: pa.array([-1] * len(t), pa.int32())), "numbers below 0"),
    "overflow": (column("step", lambda t: pa.array([2**40] * len(t))), "schedule.parquet: "),
    "many": (column("agent", lambda t: pa.array(range(2**30, 2**30 + len(t)), pa.int32())), "agents beyond 100,000"),
    "nan": (column("end", lambda t: pa.array([float("nan")] * len(t))), "times that are not valid"),
    "late": (column("end", lambda t: pa.array([1e300] * len(t))), "times that are not valid"),
    "nulls": (column("step", lambda t: pa.array([None] * len(t), pa.int32())), "empty fields"),
    "in lists": (column("versions", lambda t: pa.array([[None]] * len(t), t["versions"].type)), "empty fields"),
    "lengths": (column("versions", lambda t: pa.array([[]] * len(t), t["versions"].type)), "reads that are incomplete"),
    "twice": (lambda table: pa.concat_tables([table, table]), "two rows of one agent and step"),
    "names": (lambda table: table.append_column("agent", table["step"]), "columns of one name"),
}


@pytest.mark.parametrize("name", BAD_SCHEDULES)
def test_schedules_that_no_page_can_be_made_of(name: str, run: Path) -> None:
    change, said = BAD_SCHEDULES[name]
    assert said in schedule_with(run, change)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("agent", -1.0, "numbers of agents that are not valid"),
        ("agent", 0.5, "numbers of agents that are not valid"),
        ("agent", 1e300, "numbers of agents that are not valid"),
        ("step", -5.0, "steps or seconds that are not valid"),
        ("step", float("nan"), "steps or seconds that are not valid"),
        ("seconds", float("inf"), "steps or seconds that are not valid"),
    ],
)
def test_metrics_that_no_page_can_be_made_of(name: str, values: float, said: str, run: Path) -> None:
    frame = pd.read_parquet(run / "metrics.parquet").astype({name: "float64"})
    frame.loc[0, name] = values
    frame.to_parquet(run / "metrics.parquet", index=False)
    assert said in refusal(run)


def test_metrics_of_texts_and_lists_are_left_out(run: Path) -> None:
    frame = pd.read_parquet(run / "metrics.parquet")
    table = pa.Table.from_pandas(frame.drop(columns="test_loss"))
    table = table.append_column("test_loss", pa.array(["<b>"] * len(table)))
    table = table.append_column("test_list", pa.array([[1.0]] * len(table)))
    pq.write_table(table, run / "metrics.parquet")
    assert set(load_run(run).metrics.columns) == {*frame.columns} - {"test_loss"}


def test_a_file_that_stands_for_a_billion_rows_is_refused(tmp_path: Path, run: Path) -> None:
    row = pq.read_table(run / "schedule.parquet").slice(0, 1)
    many = row.take(pa.array(np.zeros(2**20, np.int32)))
    with pq.ParquetWriter(tmp_path / "bomb.parquet", many.schema) as writer:
        for _ in range(12):
            writer.write_table(many)
    assert (tmp_path / "bomb.parquet").stat().st_size < 2**20
    with pytest.raises(ValueError, match="has more than 10,000,000 rows"):
        read_table(tmp_path / "bomb.parquet", ["kind"])
    with pytest.raises(ValueError, match=r"bomb\.parquet'?: cannot be read \(it has more than"):
        read_rows(tmp_path / "bomb.parquet")


@pytest.mark.parametrize("left", ["a b", "-1", "1  2", "x" * 5000, "1" * 50])
def test_a_schedule_s_own_words_are_checked(left: str, sent: Path, tmp_path: Path) -> None:
    rows, metadata = read_rows(sent / "schedule.parquet")
    write_rows(tmp_path / "schedule.parquet", rows, metadata | {"left": left})
    with pytest.raises(ValueError, match="allowed are numbers of agents") as caught:
        read_rows(tmp_path / "schedule.parquet")
    assert len(str(caught.value)) < 500
