"""Whatever is in a file, in settings or in a message: a clear error, or something that can be used."""

import json
import math
import string
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ray_pcasgd.agents.mailbox import Answer, Header
from ray_pcasgd.base.state import load_state
from ray_pcasgd.cli.app import app
from ray_pcasgd.config import CheckpointSettings, Config
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.ray.transport import InPieces, RayTransport
from ray_pcasgd.engines.validation import Expected, check_contents, check_header, check_times, checked_contents
from ray_pcasgd.records import Read, Row
from ray_pcasgd.report.data import load_run
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.trust import load_run_settings
from ray_pcasgd.runs.storage.state_files import StateFiles
from ray_pcasgd.runs.trainer import Trainer
from ray_pcasgd.schedule.law_text import parse_delay
from ray_pcasgd.schedule.parquet import read_rows, write_rows

NUMBER = max(300, settings.default.max_examples if settings.default else 0)
"""The same cases each time, so more of them find nothing new: the profile ``many`` searches for other ones."""
CASES = settings(max_examples=NUMBER, suppress_health_check=list(HealthCheck))

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["pc-asgd", "d-psgd", "server", "ring", "pareto", "constant", "ray", "local", "iid", "1e9", "nan"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), st.sampled_from(["name", "value", "theta"])), inner, max_size=4),
    ),
    max_leaves=8,
)


def fields(model: Any = Config) -> list[str]:
    return list(model.model_fields)


@CASES
@given(st.dictionaries(st.one_of(st.sampled_from(fields()), st.text(max_size=8)), TREES, max_size=4))
def test_any_tree_is_settings_or_an_error_with_one_line_each(tree: dict[str, Any]) -> None:
    try:
        assert isinstance(load_config(tree), Config)
    except SettingsError as error:
        assert str(error)
        assert "Traceback" not in str(error)


@CASES
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | TREES.map(yaml.safe_dump).map(str.encode))
def test_any_settings_file_is_settings_or_an_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "settings.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(load_config(path), Config)
    except SettingsError as error:
        assert str(error)


def test_a_settings_file_is_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(f"seed: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    with pytest.raises(SettingsError):
        load_config(path)
    assert not (tmp_path / "made").exists()


@CASES
@given(st.text(string.ascii_lowercase + string.digits + "(),. -", max_size=30))
def test_any_delay_in_one_word_is_a_law_or_an_error(text: str) -> None:
    try:
        written = parse_delay(text)
    except ValueError as error:
        assert "allowed" in str(error)
    else:
        assert written.unit in ("steps", "seconds")


@pytest.mark.parametrize(
    ("text", "delay", "unit"),
    [
        ("pareto(2, 0.1s)", {"name": "pareto", "shape": 2.0, "scale": 0.1}, "seconds"),
        ("constant(10)", {"name": "constant", "value": 10.0}, "steps"),
        ("uniform(100ms, 0.3s)", {"name": "uniform", "low": 0.1, "high": 0.3}, "seconds"),
        ("outage(20s, 5s)", {"name": "outage", "mean_up": 20.0, "mean_down": 5.0}, "seconds"),
        ("200ms", {"name": "constant", "value": 0.2}, "seconds"),
    ],
)
def test_delays_in_one_word(text: str, delay: dict[str, Any], unit: str) -> None:
    assert parse_delay(text) == (delay, unit)
    entry = load_config({"links": [{"delay": text}]}).links[0]
    assert entry.unit == (None if text == "constant(10)" else unit)  # bare numbers leave it to the algorithm
    assert entry.delay.model_dump() == load_config({"links": [{"delay": delay}]}).links[0].delay.model_dump()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--link", "0-1"], "--link or --between, and --law: allowed is both"),
        (["--between", "clusters"], "--link or --between, and --law: allowed is both"),
        (["--between", "x", "--law", "3s"], "allowed are clusters and all"),
        (["--between", "all", "--link", "0-1", "--law", "3s"], "allowed are clusters and all, without --link"),
        (["--link", "0-1", "--law", "pareto(2)"], "allowed is pareto(shape, scale)"),
        (["--link", "0", "--law", "3s"], "allowed are two agents"),
        (["--link", "0-0", "--law", "3s"], "allowed are two different agents"),
        (["--link", "0-1", "--law", "pareto(0, 1s)"], "allowed"),
        (["--link", "0-1", "--law", "uniform(1s, 2steps)"], "allowed is one unit"),
        ([], "allowed are --link or --between with --law, --isolate and --heal"),
    ],
    ids=str,
)
def test_wrong_delays_are_refused_before_anything_is_reached(arguments: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["delay", str(tmp_path), *arguments])
    assert isinstance(result.exception, SettingsError)
    assert said in str(result.exception)


@pytest.mark.parametrize("command", [["status"], ["delay", "--heal"], ["leave", "--agent", "1"]])
def test_a_run_that_is_not_on_its_way_is_an_error(command: list[str], tmp_path: Path) -> None:
    name, *options = command
    for noted in ("", '{"kind": "cluster_joined", "detail": "127.0.0.1:9"}\n'):
        (tmp_path / "events.jsonl").write_text(noted)
        result = CliRunner().invoke(app, [name, str(tmp_path), *options], env={"RAY_ADDRESS": ""})
        assert isinstance(result.exception, SettingsError)
        assert str(tmp_path) in str(result.exception)


# Schedules.


@pytest.fixture(scope="module")
def schedule(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rows = [
        Row(agent, step, float(step), step + 1.0, step + 1.0, (Read(1 - agent, step, 0, 0),))
        for step in range(6)
        for agent in range(2)
    ]
    path = tmp_path_factory.mktemp("schedule") / "schedule.parquet"
    write_rows(path, rows, {"mode": "planned"})
    return path.read_bytes()


@CASES
@given(data=st.data())
def test_any_schedule_file_is_a_schedule_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, schedule: bytes, data: st.DataObject
) -> None:
    content = bytearray(schedule)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.parquet"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        rows, _ = read_rows(path)
    except ValueError as error:
        assert "schedule = " in str(error)
    else:
        assert all(isinstance(row, Row) for row in rows)


NUMBERS = st.integers(-3, 9)


@CASES
@given(
    rows=st.lists(
        st.builds(
            Row,
            agent=NUMBERS,
            step=NUMBERS,
            start=st.floats(),
            ready=st.floats(),
            end=st.floats(),
            reads=st.lists(st.builds(Read, NUMBERS, NUMBERS, NUMBERS, NUMBERS), max_size=3).map(tuple),
            kind=st.sampled_from(["step", "cancelled", "passive", "rejoined"]),
            held=st.lists(NUMBERS, max_size=2).map(tuple),
        ),
        max_size=6,
    ),
    other=st.booleans(),
)
def test_any_rows_are_a_schedule_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], other: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    write_rows(path, rows, {})
    if other and rows:
        table = pq.read_table(path)
        kinds = pa.array([*table["kind"].to_pylist()[:-1], "other"], table.schema.field("kind").type)
        pq.write_table(table.set_column(table.schema.get_field_index("kind"), table.schema.field("kind"), kinds), path)
    try:
        read, _ = read_rows(path)
    except ValueError as error:
        assert "schedule = " in str(error)
    else:
        assert read == rows
        assert not (other and rows)
        assert all(row.start <= row.ready <= row.end < math.inf for row in read)


# Run folders.


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {"engine": "local", "num_agents": 2, "num_steps": 4, "evaluate_every": 2}
    return Path(Trainer(tiny, name="sent", storage_path=str(tmp_path_factory.mktemp("runs"))).fit().path)


def damaged(whole: bytes, data: st.DataObject) -> bytes:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    return bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)


def changed(tree: Any, data: st.DataObject) -> Any:
    """Return a tree with something else in one place."""
    if isinstance(tree, dict) and tree and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(tree)))
        return tree | {key: changed(tree[key], data)}
    return data.draw(TREES)


@settings(CASES, max_examples=NUMBER // 4)
@given(data=st.data())
def test_any_run_folder_is_read_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, sent: Path, data: st.DataObject
) -> None:
    run = tmp_path_factory.getbasetemp() / "folder"
    run.mkdir(exist_ok=True)
    names = ["config.yaml", "result.json", "metrics.parquet", "schedule.parquet"]
    for name in names:
        (run / name).write_bytes((sent / name).read_bytes())
    name = data.draw(st.sampled_from([*names, "config.yaml", "events.jsonl"]))
    whole = (sent / name).read_bytes() if name != "events.jsonl" else b'{"kind": "agent_lost", "agent": 1}\n'
    if name.endswith("parquet") or data.draw(st.booleans()):
        (run / name).write_bytes(damaged(whole, data))
    else:
        (run / name).write_text(json.dumps(changed(yaml.safe_load(whole), data)))
    for act in (load_run, load_run_settings):
        try:
            act(run)
        except ValueError as error:
            assert type(error) in (ValueError, SettingsError)
            assert all(line.isprintable() for line in str(error).splitlines())
            assert isinstance(error, SettingsError) or len(str(error).splitlines()) == 1


# States.


@CASES
@given(data=st.data())
def test_damage_never_passes_for_a_state(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "states"
    files = StateFiles(folder, CheckpointSettings(state_seconds=0, states_to_keep=1))
    state = folder / "000001" / "state.pt"
    if not state.exists():
        files.write(lambda: {"number": 1, "weights": torch.arange(8.0)})
    whole = state.read_bytes()
    content = bytearray(whole)
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        state.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        assert files.newest()[0] is None
    finally:
        state.write_bytes(whole)
    assert files.newest()[0] is not None


class Harmful:
    def __reduce__(self) -> Any:
        return Path.mkdir, (Path("made-by-a-state"),)


def test_a_state_is_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"agents": Harmful()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        load_state(tmp_path / "state.pt")
    assert not Path("made-by-a-state").exists()


# Messages.

EXPECTED = Expected((1, 2), 10, 4, 2)
TRANSPORT = RayTransport(0)
ANYTHING = st.one_of(SCALARS, st.binary(max_size=4), st.just(Answer(1, 1)), st.just(object()))
ARRAYS = st.one_of(
    ANYTHING,
    st.sampled_from([np.float32, np.float64, np.int32, np.bool_]).flatmap(
        lambda kind: st.sampled_from([(4,), (2,), (0,), (), (5,), (2, 2)]).map(lambda shape: np.ones(shape, kind))
    ),
    st.lists(st.floats(width=32), min_size=4, max_size=4).map(lambda values: np.array(values, np.float32)),
    st.lists(ANYTHING, max_size=2),
)
PIECES = st.builds(InPieces, st.one_of(st.integers(-1, 3), ANYTHING))


def likely(value: Any, other: st.SearchStrategy[Any] = ANYTHING) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(value), st.just(value), st.just(value), st.just(value), other)


@CASES
@given(
    header=st.one_of(
        ANYTHING,
        st.builds(
            Header,
            sender=likely(1),
            version=likely(3),
            sent_at=likely(1.0),
            step_seconds=likely(0.1),
            final=likely(False),
            isolated=likely(False),
            latency_seconds=likely(0.0),
            hold_steps=likely(0),
            note=likely(None),
            mass=likely(1.0),
        ),
    ),
    contents=st.one_of(
        ANYTHING,
        st.builds(
            Contents,
            likely(np.ones(4, np.float32), ARRAYS | PIECES),
            likely(np.ones(2, np.float32), ARRAYS | PIECES),
            likely(None, ARRAYS | PIECES),
        ),
    ),
    pieces=st.lists(likely(np.ones(2, np.float32), ARRAYS), max_size=3),
)
def test_a_message_is_what_it_must_be_or_rejected(header: Any, contents: Any, pieces: list[Any]) -> None:
    try:
        check_header(EXPECTED, header)
        contents = checked_contents(TRANSPORT, EXPECTED, header, contents, pieces)
    except RejectedError as error:
        assert str(error).startswith("its ") or "empty" in str(error)
        return
    assert header.sender in EXPECTED.senders
    assert 0 <= header.version <= 10
    assert all(math.isfinite(value) for value in (header.sent_at, header.latency_seconds, header.mass))
    if contents is None:
        assert header.isolated
        return
    assert contents.weights.shape == (4,)
    assert contents.weights.dtype == np.float32
    assert np.isfinite(contents.weights).all()
    assert contents.buffers.shape in ((2,), (0,))
    assert contents.direction is None or np.isfinite(contents.direction).all()


@CASES
@given(st.one_of(ANYTHING, st.tuples(likely(1.0, SCALARS), likely(2.0, SCALARS)), st.lists(ANYTHING, max_size=3)))
def test_the_times_of_who_asks_are_two_seconds_or_rejected(times: Any) -> None:
    try:
        check_times(times)
    except RejectedError as error:
        assert str(error).startswith("its times are ")
        return
    began, ready = times
    assert -1e11 <= began <= ready <= 1e11


def test_large_finite_numbers_are_taken() -> None:
    header = Header(1, 3, 1.0, 0.1)
    check_contents(TRANSPORT, EXPECTED, header, Contents(np.full(4, 3e38, np.float32), np.ones(2, np.float32), None))
