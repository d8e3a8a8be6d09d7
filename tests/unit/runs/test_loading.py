"""One tree of settings, however it is given: YAML, command line or Python; and what a run writes loads again."""

import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_pcasgd.base.settings import Settings
from ray_pcasgd.config import Config
from ray_pcasgd.rules import PCASGD
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, merge, parse_assignment
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.tasks.datasets import CustomData
from ray_pcasgd.tasks.models import CustomModel

MATRIX = [[0.5, 0.25, 0.25], [0.25, 0.75, 0.0], [0.25, 0.0, 0.75]]
VARIED: list[dict[str, Any]] = [
    {},
    {"algorithm": "d-psgd", "topology": "ring", "barrier": "all", "step_size": 0.05},
    {"algorithm": "d-asgd", "topology": {"name": "torus", "rows": 2, "columns": 4}, "barrier": "none"},
    {
        "algorithm": {"name": "c-asgd", "clipping": "renormalize"},
        "topology": {"name": "erdos-renyi", "probability": 0.5},
        "barrier": {"name": "bounded", "staleness": 3},
        "step_size": {"name": "cosine", "start": 0.1, "steps": 30},
        "links": [],
    },
    {
        "algorithm": {"name": "p-asgd", "compensation": {"name": "adaptive", "decay": 0.9}, "oldest_age": 9},
        "topology": "hypercube",
        "barrier": {"name": "sampled", "beta": 2, "base": {"name": "bounded", "staleness": 1}},
        "links": [{"delay": {"name": "uniform", "low": 0, "high": 4}}, {"delay": 3, "links": [[0, 1]], "from_step": 5}],
        "reliability": "declared",
        "clusters": [[0, 2, 4, 6], [1, 3, 5, 7]],
    },
    {
        "algorithm": {"name": "pc-asgd", "theta": [0.1, 0.2, 0.3]},
        "num_agents": 3,
        "topology": {"name": "edges", "edges": [[0, 1], [0, 2]]},
        "mixing": {"name": "matrix", "rows": MATRIX},
        "compute": {
            "law": {"name": "shifted-exponential", "shift": 1, "mean": 0.5},
            "agents": {0: {"name": "pareto", "shape": 2, "scale": 1}},
            "stragglers": {2: {"name": "log-normal", "median": 1, "sigma": 0.1}},
        },
    },
    {
        "algorithm": {"name": "pc-asgd", "theta": {"name": "linear", "start": 1, "end": 0.25, "steps": 7}},
        "topology": "star",
        "links": [{"delay": {"name": "outage", "mean_up": 5, "mean_down": 2}, "unit": "seconds", "from_second": 1.5}],
        "step_size": {"name": "multi-step", "start": 0.1, "at_steps": [10, 20]},
        "engine": {"name": "local", "batched": "never"},
    },
    {
        "algorithm": {"name": "pc-asgd-pv", "condition": "descent", "candidates": [0, 0.5, 1]},
        "topology": {"name": "regular", "degree": 3},
        "links": [{"delay": {"name": "exponential", "mean": 2}, "between": [[0, 1], [2, 3]]}],
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-5},
        "task": {
            "data": {"name": "image-parquet", "train": "a", "test": "b", "mean": [0.5], "std": [0.25]},
            "model": {"name": "custom", "factory": "torch.nn:Linear", "arguments": {"in_features": 3}},
            "loss": {"name": "custom", "function": "torch.nn.functional:mse_loss"},
            "metrics": ["accuracy", {"name": "top-accuracy", "k": 3}],
        },
        "checkpoint": {"every_evaluations": 2, "num_to_keep": 3, "score": "accuracy"},
        "on_non_finite_loss": "isolate",
        "name": "a.b-c_1",
        "seed": 3,
    },
    {
        "topology": "exponential",
        "task": {"data": {"name": "text", "path": "some/text.txt"}, "model": {"name": "char-lm", "width": 8}},
        "engine": {"name": "ray", "mode": "live", "resources_per_agent": {"special": 0.5}, "cpus_per_agent": 0.5},
        "max_failures": -1,
        "schedule": "some/schedule.parquet",
    },
]


@pytest.mark.parametrize("given_settings", VARIED)
def test_a_run_s_config_file_loads_to_the_same_settings(given_settings: dict[str, Any], tmp_path: Path) -> None:
    config = load_config(given_settings | {"storage_path": str(tmp_path)})
    folder = RunFolder.create(config)
    assert load_config(folder.path / "config.yaml") == config


def settings_classes(annotation: Any, seen: dict[type[Settings], None]) -> dict[type[Settings], None]:
    """Gather all settings classes that stand in an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, Settings) and annotation not in seen:
        seen[annotation] = None
        for field in annotation.model_fields.values():
            settings_classes(field.annotation, seen)
    for inner in typing.get_args(annotation):
        settings_classes(inner, seen)
    return seen


def test_every_setting_says_what_it_is() -> None:
    classes = settings_classes(Config, {})
    assert len(classes) > 60
    silent = [
        f"{owner.__module__}.{owner.__name__}.{name}"
        for owner in classes
        for name in owner.model_fields
        if not owner.help_of(name).strip() and (name != "name" or owner is Config)
    ]
    assert silent == []


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the path and value of everything in a tree of settings that is no mapping and no list of mappings."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(tree, list) and tree and isinstance(tree[0], Mapping):
        for place, value in enumerate(tree):
            yield from leaves(value, (*path, str(place)))
    else:
        yield path, tree


def nested(path: tuple[str, ...], value: Any) -> Any:
    return {path[0]: nested(path[1:], value)} if path else value


DUMPS = [load_config(varied).model_dump(mode="json") for varied in VARIED]
LEAVES = [(number, *leaf) for number, dump in enumerate(DUMPS) for leaf in leaves(dump)]


@given(st.sampled_from(LEAVES))
@settings(max_examples=400)
def test_a_leaf_means_the_same_in_yaml_python_and_on_the_command_line(
    tmp_path_factory: pytest.TempPathFactory, leaf: tuple[int, tuple[str, ...], Any]
) -> None:
    number, path, value = leaf
    # Where all the other settings are those of the leaf's own tree, setting it anew must give that tree again.
    expected = load_config(DUMPS[number])
    assert load_config(DUMPS[number], [f"{'.'.join(path)}={json.dumps(value)}"]) == expected
    assert load_config(DUMPS[number], changes=nested(path, value)) == expected
    if not path[-1].isdigit() and not any(part.isdigit() for part in path) and path[-1] != "name":
        given_tree = merge({}, nested(path, value))
        for part in range(len(path) - 1, 0, -1):
            kind = _at(DUMPS[number], path[:part])
            if "name" in kind:
                given_tree = merge(nested((*path[:part], "name"), kind["name"]), given_tree)
        file = tmp_path_factory.mktemp("settings") / "some.yaml"
        file.write_text(yaml.safe_dump(given_tree), encoding="utf-8")
        assert (
            _outcome(file)
            == _outcome(given_tree)
            == _outcome(None, [f"{key}={json.dumps(v)}" for key, v in flat(given_tree)])
        )


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def flat(tree: Any) -> list[tuple[str, Any]]:
    """Return assignments for the leaves of a tree, the names first."""
    found = [(".".join(path), value) for path, value in leaves(tree)]
    return sorted(found, key=lambda item: not item[0].endswith("name"))


def _outcome(source: Any, assignments: list[str] | None = None) -> Config | str:
    try:
        return load_config(source, assignments or [])
    except SettingsError as error:
        return str(error)


def test_another_name_drops_the_settings_of_the_old_one() -> None:
    config = load_config(None, ["algorithm.theta=0.9", "algorithm=d-asgd"])
    assert config.algorithm.model_dump() == {"name": "d-asgd"}
    back = load_config(config, ["algorithm.name=pc-asgd"])
    assert back.algorithm == PCASGD()


def test_the_same_name_keeps_the_settings() -> None:
    for assignment in ("algorithm=pc-asgd", "algorithm.name=pc-asgd", "algorithm={name: pc-asgd}"):
        config = load_config(None, ["algorithm.theta=0.9", assignment])
        assert config.algorithm == PCASGD(theta=0.9)  # type: ignore[arg-type]


def test_the_run_s_own_name_drops_nothing() -> None:
    config = load_config({"num_agents": 5, "name": "first"}, ["name=second"])
    assert (config.name, config.num_agents) == ("second", 5)


def test_settings_objects_are_merged_like_mappings() -> None:
    config = load_config({"algorithm": PCASGD(theta=0.9)}, ["algorithm.oldest_age=5"])  # type: ignore[arg-type]
    assert config.algorithm == PCASGD(theta=0.9, oldest_age=5)  # type: ignore[arg-type]
    assert load_config(config, changes={"algorithm": PCASGD()}).algorithm == PCASGD()


def test_numbers_address_the_items_of_a_list() -> None:
    config = load_config({"links": [{"delay": 1}, {"delay": 2}]}, ["links.1.delay.value=7", "links.0.unit=seconds"])
    assert [(entry.delay.model_dump()["value"], entry.unit) for entry in config.links] == [(1, "seconds"), (7, None)]


@pytest.mark.parametrize(("links", "assignment"), [([{"delay": 1}], "links.1.delay=2"), ([], "links.0.delay=2")])
def test_an_item_that_is_not_there_is_named(links: list[Any], assignment: str) -> None:
    with pytest.raises(SettingsError, match=rf"^links\.{assignment[6]}: no such item; allowed are numbers below"):
        load_config({"links": links}, [assignment])


def test_agents_are_addressed_by_number_whether_the_key_is_text_or_not() -> None:
    source = {"compute": {"stragglers": {2: {"name": "uniform", "low": 1, "high": 3}}}}
    config = load_config(source, ["compute.stragglers.2.high=9", "compute.stragglers.1=4"])
    stragglers = {agent: law.model_dump() for agent, law in config.compute.stragglers.items()}
    assert stragglers == {
        2: {"name": "uniform", "low": 1.0, "high": 9.0},
        1: {"name": "constant", "value": 4.0},
    }


def test_later_assignments_win_over_earlier_ones_and_over_changes_and_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("seed: 1\nnum_steps: 11\nnum_agents: 5\n")
    config = load_config(tmp_path / "run.yaml", ["seed=3", "seed=4"], {"seed": 2, "num_steps": 12})
    assert (config.seed, config.num_steps, config.num_agents) == (4, 12, 5)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "0.001", "1.0e-3", ".001"])
def test_every_spelling_of_a_number_is_a_number(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"step_size: {text}\n")
    assert load_config(tmp_path / "run.yaml").step_size.at(0) == 0.001
    assert load_config(None, [f"step_size={text}"]).step_size.at(0) == 0.001


@pytest.mark.parametrize("text", ["e3", "1e", "resnet-20", "1.2.3", "1e3x"])
def test_what_looks_like_a_number_and_is_none_stays_text(text: str) -> None:
    assert parse_assignment(f"key={text}") == {"key": text}


def test_values_may_hold_equals_signs_and_keys_may_not_be_empty() -> None:
    assert parse_assignment("a.b=c=d") == {"a": {"b": "c=d"}}
    for text in ("a", "=1", "a..b=1", ".a=1", "a.=1"):
        with pytest.raises(SettingsError, match="allowed is key=value"):
            parse_assignment(text)


def test_nothing_that_is_given_is_changed() -> None:
    base = {"links": [{"delay": 1}], "algorithm": {"name": "pc-asgd"}}
    copy = json.loads(json.dumps(base))
    load_config(base, ["links.0.delay=5", "algorithm.theta=0.1"], {"links": {"0": {"unit": "seconds"}}})
    assert base == copy


@dataclass
class Numbers:
    """A data set that pydantic, left to itself, would turn into a mapping."""

    count: int = 4

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[float, int]:
        return float(place), 0


def test_the_user_s_own_objects_stay_what_they_are(tmp_path: Path) -> None:
    numbers, pairs, activation = Numbers(), [(0.0, 1)], torch.nn.ReLU()
    task = {
        "data": {"name": "custom", "train": numbers, "test": pairs},
        "model": {"name": "custom", "factory": torch.nn.Linear, "arguments": {"numbers": numbers, "f": activation}},
    }
    config = load_config({"task": task, "storage_path": str(tmp_path)}, ["seed=1", "algorithm.theta=0.1"], {"seed": 2})
    for loaded in (config, load_config(config), load_config(config, ["task.model.arguments.seed=3"])):
        assert isinstance(loaded.task.data, CustomData)
        assert isinstance(loaded.task.model, CustomModel)
        assert loaded.task.data.train is numbers
        assert loaded.task.data.test is pairs
        assert loaded.task.model.factory is torch.nn.Linear
        assert loaded.task.model.arguments["numbers"] is numbers
        assert loaded.task.model.arguments["f"] is activation
    written = yaml.safe_load((RunFolder.create(config).path / "config.yaml").read_text())
    assert written["task"]["model"]["factory"] == "torch.nn.modules.linear:Linear"
    assert written["task"]["model"]["arguments"]["f"] == "<torch.nn.modules.activation:ReLU>"
    assert written["task"]["data"]["train"].endswith(":Numbers>")


@pytest.mark.parametrize(
    "assignments",
    [
        ["engine=local", "engine.threads=3", "engine.name=ray"],
        ["engine=local", "engine.name=ray", "engine.threads=3"],
        ["engine.threads=2", "engine=local", "seed=1", "engine.threads=3", "engine.name=ray"],
    ],
)
def test_a_name_on_the_command_line_drops_nothing_that_is_assigned_beside_it(assignments: list[str]) -> None:
    engine = load_config(None, assignments).engine
    assert (engine.name, engine.threads) == ("ray", 3)


def test_what_is_assigned_as_a_whole_takes_the_place_of_what_came_before() -> None:
    assert load_config(None, ["engine.name=ray", "engine.threads=3", "engine=local"]).engine.name == "local"
    with pytest.raises(SettingsError, match=r"algorithm\.theta = 0\.5: no such setting"):
        load_config(None, ["algorithm.theta=0.5", "algorithm.name=d-psgd"])


@pytest.mark.parametrize(
    ("key", "allowed"), [("engine.preload", "write engine: {preload: ...}"), ("a.b.c", "write a: {b: {c: ...}}")]
)
def test_a_key_with_dots_says_how_settings_are_nested(key: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_config(None, changes={key: "auto"})
    assert str(caught.value) == f"{key} = 'auto': no such setting; {allowed}"
