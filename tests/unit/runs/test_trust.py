"""A stranger's folder runs no code and joins no cluster, whatever its settings say; one's own goes on as it did."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from ray_pcasgd.base.imports import CallableOrPath, ObjectOrPath
from ray_pcasgd.cli.app import main
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.trust import load_run_settings, note_settings
from ray_pcasgd.runs.trainer import Trainer, resume
from ray_pcasgd.sweep import running as sweep
from tests.unit.recorded_runs import once, placed

TINY: dict[str, Any] = {"engine": "local", "num_agents": 2, "num_steps": 2, "evaluate_every": 2}
MODULE = """
from pathlib import Path
from torch import nn
Path({mark!r}).touch()
def make(width=8):
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))
"""


RULES = """
from typing import Literal
from ray_pcasgd.rules.base import Rule, averaged_step
from ray_pcasgd.records import Update

class Plain(Rule):
    name: Literal["plain"] = "plain"
    share: float = 1.0

    def step(self, state, own, reads, probe=None):
        return state, Update(averaged_step(own.mixing, reads.mixing, own, reads), {})
"""


@pytest.fixture(autouse=True)
def state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield what a module makes that is imported, in whose folder the test works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    monkeypatch.setattr("ray_pcasgd.base.imports._places", [])
    mark = tmp_path / "imported"
    (tmp_path / "my_models_of_a_test.py").write_text(MODULE.format(mark=str(mark)))
    yield mark
    sys.modules.pop("my_models_of_a_test", None)


FACTORY = {"name": "custom", "factory": "my_models_of_a_test:make", "arguments": {"width": 6}}


def stranger(tmp_path: Path, **settings: Any) -> Path:
    """Return a run folder that somebody else has sent: with these settings, as far as they are kept."""
    recorded, _ = once(lambda folder: Trainer(TINY, name="first", storage_path=str(folder)).fit(), "a stranger's", TINY)
    run = placed(recorded, tmp_path / "sent")
    tree = yaml.safe_load((run / "config.yaml").read_text()) | settings
    (run / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return run


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


MAKER = "my_models_of_a_test:make"


def of(key: str) -> dict[str, Any]:
    return {"name": "custom", key: MAKER}


ADDRESS = {"name": "ray", "mode": "planned", "address": "192.0.2.1:6379"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"task": {"model": FACTORY}}, "task.model.factory = 'my_models_of_a_test:make': it names code"),
        ({"task": {"model": {"name": "custom", "factory": "os:mkdir"}}}, "task.model.factory = 'os:mkdir': it names"),
        ({"task": {"loss": {"name": "custom", "function": "os:abort"}}}, "task.loss.function = 'os:abort': it names"),
        (
            {"task": {"metrics": [{"name": "custom", "function": "os:abort"}]}},
            "task.metrics.0.function = 'os:abort': it names code",
        ),
        (
            {"task": {"data": {"name": "custom", "train": "os:abort", "test": "os:abort"}}},
            "task.data.train = 'os:abort': it names code",
        ),
        (
            {"task": {"data": {"name": "cifar10", "download": True}}},
            "task.data.download = true: it writes to task.data",
        ),
        ({"engine": ADDRESS}, "engine.address = '192.0.2.1:6379': joining a cluster runs its code here"),
        ({"algorithm": of("rule")}, f"algorithm.rule = {MAKER!r}: it names code"),
        ({"algorithm": of("rule") | {"settings": 5}}, f"algorithm.rule = {MAKER!r}: it names code"),
        ({"algorithm": of("rule") | {"settings": {1: 2}}}, f"algorithm.rule = {MAKER!r}: it names code"),
        (
            {"algorithm": {"name": "server", "gathering": of("policy")}},
            f"algorithm.gathering.policy = {MAKER!r}: it names code",
        ),
        (
            {"algorithm": {"name": "server", "correction": of("correction")}},
            f"algorithm.correction.correction = {MAKER!r}: it names code",
        ),
        ({"topology": of("topology")}, f"topology.topology = {MAKER!r}: it names code"),
        ({"mixing": of("mixing")}, f"mixing.mixing = {MAKER!r}: it names code"),
        ({"optimizer": of("optimizer")}, f"optimizer.optimizer = {MAKER!r}: it names code"),
        ({"optimizer": {"name": "torch", "optimizer": MAKER}}, f"optimizer.optimizer = {MAKER!r}: it names code"),
        ({"links": [{"delay": of("law")}]}, f"links.0.delay.law = {MAKER!r}: it names code"),
        ({"compute": {"law": of("law")}}, f"compute.law.law = {MAKER!r}: it names code"),
        ({"compute": {"stragglers": {0: of("law")}}}, f"compute.stragglers.0.law = {MAKER!r}: it names code"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_a_stranger_s_settings_name_is_not_followed(
    settings: dict[str, Any], said: str, tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stranger(tmp_path, **settings)
    (run / "result.json").unlink()
    with pytest.raises(SettingsError) as caught:
        resume(run)
    assert str(caught.value).startswith(said)
    assert str(caught.value).splitlines()[0].endswith("not known as this user's; allowed with --trust (trust=True)")
    if "engine" not in settings:
        with pytest.raises(SystemExit):
            main(["replay", str(run)])
        assert capsys.readouterr().err.startswith(f"error: {said}")
    with pytest.raises(SystemExit):
        main(["replay", str(run), "--engine", "ray"])
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not mark.exists()


@pytest.mark.usefixtures("without_pictures")
def test_who_trusts_a_stranger_says_so(tmp_path: Path, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stranger(tmp_path, task={"model": FACTORY})
    assert "--trust" in refused(capsys, "replay", str(run))
    assert not mark.exists()
    main_ended(["replay", str(run), "--name", "again", "--trust"])
    assert mark.exists()
    # Now they are known.
    main_ended(["replay", str(run), "--name", "once-more"])


def test_a_rule_that_this_user_has_run_is_known_and_another_one_is_not(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "my_rules_of_a_test.py").write_text(RULES)
    sys.path.insert(0, str(tmp_path))
    rule = {"name": "custom", "rule": "my_rules_of_a_test:Plain"}
    own = Path(Trainer(TINY, algorithm=rule, name="own", storage_path=str(tmp_path / "runs")).fit().path)
    assert load_run_settings(own, ["algorithm.settings.share=0.5"]).algorithm.name == "plain"
    tree = yaml.safe_load((own / "config.yaml").read_text())
    (own / "config.yaml").write_text(yaml.safe_dump(tree | {"algorithm": of("rule")}))
    with pytest.raises(SettingsError, match="it names code"):
        load_run_settings(own)
    # A run of the same task by the package's own rule is not one by this rule.
    Trainer(TINY, name="other", storage_path=str(tmp_path / "runs")).fit()
    with pytest.raises(SettingsError, match="it names code"):
        load_run_settings(own)
    assert not mark.exists()
    sys.modules.pop("my_rules_of_a_test", None)


def main_ended(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_one_s_own_run_is_known_wherever_it_lies(tmp_path: Path, mark: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    own = Trainer(TINY, task={"model": FACTORY}, name="own", storage_path=str(tmp_path / "runs")).fit()
    shutil.move(own.path, tmp_path / "moved")
    assert load_run_settings(tmp_path / "moved").task.model.name == "custom"
    # Other settings than the task's and the cluster's make no difference: they run no code.
    assert load_run_settings(tmp_path / "moved", ["seed=3"], {"name": None}).seed == 3
    tree = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())
    tree["task"]["model"]["arguments"] = {"width": 7}
    (tmp_path / "moved" / "config.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(SettingsError, match="it names code, and these settings are not known"):
        load_run_settings(tmp_path / "moved")


def test_a_run_with_an_object_s_import_path_is_known_too(tmp_path: Path, mark: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    import my_models_of_a_test  # type: ignore[import-not-found]

    own = Trainer(TINY, task={"model": my_models_of_a_test.make}, storage_path=str(tmp_path / "runs")).fit()
    assert load_run_settings(Path(own.path)).task.model.name == "custom"


def test_a_run_whose_name_looks_like_a_number_is_read_again(tmp_path: Path) -> None:
    own = Trainer(TINY, name="12e4567", storage_path=str(tmp_path)).fit()
    assert load_run_settings(Path(own.path)).name == "12e4567"


@pytest.mark.usefixtures("without_pictures")
def test_settings_that_are_given_are_like_scripts(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**TINY, "task": {"model": FACTORY}}))
    main_ended(["train", str(tmp_path / "mine.yaml")])
    assert mark.exists()


def test_nothing_is_remembered_of_settings_without_code(tmp_path: Path, state: Path) -> None:
    Trainer(TINY, storage_path=str(tmp_path)).fit()
    # The folder, empty again, is that of the runs whose drivers are running.
    found = sorted(path.relative_to(state).as_posix() for path in state.rglob("*"))
    assert found == ["ray-pcasgd", "ray-pcasgd/driving"]


def test_a_run_goes_on_where_nothing_can_be_remembered(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    sys.path.insert(0, str(tmp_path))
    own = Trainer(TINY, task={"model": FACTORY}, storage_path=str(tmp_path / "runs")).fit()
    assert own.error is None
    with pytest.raises(SettingsError, match="allowed with --trust"):
        load_run_settings(Path(own.path))


def test_a_module_that_lies_where_the_command_is_given_is_not_imported(
    tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stranger(tmp_path)
    for name in ("sitecustomize", "pandas", "safetensors", "my_models_of_a_test"):
        (run / f"{name}.py").write_text(MODULE.format(mark=str(mark)))
    monkeypatch.chdir(run)
    path = list(sys.path)
    for command in (["report", "."], ["replay", ".", "--name", "again"]):
        main_ended(command)
    assert "no run here that is running" in refused(capsys, "status", ".")
    assert sys.path == path
    assert not mark.exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_replay_lies_beside_the_recorded_run_not_where_its_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stranger(tmp_path, storage_path=str(tmp_path / "elsewhere"))
    main_ended(["replay", str(run), "--name", "again"])
    assert (tmp_path / "sent" / "again" / "result.json").is_file()
    assert not (tmp_path / "elsewhere").exists()


def test_trust_has_no_meaning_beside_settings_that_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train", "--trust").startswith("--trust: allowed with --resume")
    assert refused(capsys, "sweep", "sweep.yaml", "--trust").startswith("--trust: allowed with --resume")


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-a-sweep",)


def test_a_stranger_s_sweep_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pickle

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "sweep"
    folder.mkdir()
    (folder / "sweep.yaml").write_text("space: {step_size: [0.1, 0.2]}\n")
    (folder / "base.yaml").write_text(yaml.safe_dump(load_config(TINY).model_dump(mode="json")))
    (folder / "started_in").write_text(str(tmp_path))
    (folder / "tuner.pkl").write_bytes(pickle.dumps(Harmful()))
    said = f"{folder}: a sweep's files may run code, and this sweep is not known as started by this user here"
    assert refused(capsys, "sweep", str(folder), "--resume").startswith(said)
    with pytest.raises(SettingsError, match="not known as started by this user here"):
        sweep.resume(folder)
    assert not (tmp_path / "made-by-a-sweep").exists()


def fields_with_code(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Yield where, in settings, import paths may stand."""
    marks = {id(mark) for kind in (CallableOrPath, ObjectOrPath) for mark in get_args(kind)[1:]}
    for name, field in model.model_fields.items():
        if any(id(mark) in marks for mark in [*field.metadata, *marks_in(field.annotation)]):
            yield f"{path}{name}"
        for inner in models_in(field.annotation):
            yield from fields_with_code(inner, f"{path}{name}.")


def marks_in(annotation: Any) -> Iterator[Any]:
    """Yield what stands beside the types within an annotation: of a path that need not be given, for instance."""
    yield from getattr(annotation, "__metadata__", ())
    if not isinstance(annotation, type):
        for inner in get_args(annotation):
            yield from marks_in(inner)


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def test_what_can_run_code_stands_where_fingerprints_look() -> None:
    found = set(fields_with_code(Config))
    assert found == {
        "task.data.train",
        "task.data.test",
        "task.model.factory",
        "task.loss.function",
        "task.metrics.function",
        "algorithm.probe_data.dataset",
        "optimizer.optimizer",
        "callbacks",
        "task.data.collate",
        "task.step",
        "task.evaluate",
    }


def test_another_s_probe_data_beside_a_task_that_is_known_imports_nothing(tmp_path: Path) -> None:
    probe_data = {"name": "custom", "dataset": "tests.engines.images:TRAIN"}
    text = yaml.safe_dump({"algorithm": {"name": "pc-asgd-pv", "probe_data": probe_data}, "task": {}})
    note_settings(text)
    (tmp_path / "config.yaml").write_text(text)
    assert load_run_settings(tmp_path).algorithm.name == "pc-asgd-pv"
    (tmp_path / "config.yaml").write_text(text.replace("tests.engines.images:TRAIN", "os:abort"))
    with pytest.raises(SettingsError, match=r"algorithm\.probe_data\.dataset = 'os:abort': it names code"):
        load_run_settings(tmp_path)


def test_another_s_optimizer_beside_a_task_that_is_known_imports_nothing(tmp_path: Path) -> None:
    text = yaml.safe_dump({"optimizer": {"name": "torch", "optimizer": "torch.optim:RAdam"}, "task": {}})
    note_settings(text)
    (tmp_path / "config.yaml").write_text(text)
    assert load_run_settings(tmp_path).optimizer.name == "torch"
    (tmp_path / "config.yaml").write_text(text.replace("torch.optim:RAdam", "os:abort"))
    with pytest.raises(SettingsError, match=r"optimizer\.optimizer = 'os:abort': it names code"):
        load_run_settings(tmp_path)


@pytest.mark.parametrize(("inside", "named"), [("", "runs/first"), ("runs", "first"), ("runs/first", ".")])
@pytest.mark.usefixtures("without_pictures")
def test_a_replay_is_named_as_the_run_was_not_by_a_path_of_this_machine(
    inside: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"engine": "local", "num_agents": 2, "num_steps": 2}
    Trainer(small, name="first", storage_path=str(tmp_path / "runs")).fit()
    monkeypatch.chdir(tmp_path / inside)
    main_ended(["replay", named, "--name", "again"])
    assert (tmp_path / "runs" / "again" / "result.json").exists()
    printed = capsys.readouterr().out
    assert (str(tmp_path) in printed) == (named == ".")
