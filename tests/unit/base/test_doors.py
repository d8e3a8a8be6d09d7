"""Classes that are not the package's own, wherever settings have several kinds of something."""

import pathlib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, TypeAdapter, model_validator

from ray_pcasgd.agents.optimizer import SGD, OwnOptimizer
from ray_pcasgd.base.doors import DOORS, Door, name_of
from ray_pcasgd.base.imports import unreadable
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.cli.settings_page import markdown
from ray_pcasgd.config import Config
from ray_pcasgd.records import Update
from ray_pcasgd.rules.base import Rule, averaged_step
from ray_pcasgd.rules.correction import Correction
from ray_pcasgd.rules.gathering import Gathering
from ray_pcasgd.rules.server import Delivered, ServerRule
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.runs.settings.reference import places, takes_whole_numbers_alone
from ray_pcasgd.schedule.law_base import Sampler
from ray_pcasgd.schedule.law_own import OwnLaw
from ray_pcasgd.schedule.laws import ConstantLaw, Law
from ray_pcasgd.schedule.topology import Complete, OwnMixing, OwnTopology, Topology

LOCAL: dict[str, Any] = {"engine": "local", "num_agents": 4, "num_steps": 4, "evaluate_every": 4}


class Slower(Rule):
    """D-ASGD with a smaller step."""

    name: Literal["slower"] = "slower"
    strength: float = Field(0.5, gt=0, le=1)
    """Share of the step."""
    period: int = Field(1, ge=1)
    """A whole number."""

    def step(self, state: Any, own: Any, reads: Any, probe: Any = None) -> Any:
        own = own._replace(step_size=self.strength * own.step_size)
        return state, Update(averaged_step(own.mixing, reads.mixing, own, reads), {})


class MeanServer(ServerRule):
    name: Literal["mean-server"] = "mean-server"
    workers_step: ClassVar[bool] = False

    def gather(self, state: Any, center: torch.Tensor, delivered: Any) -> Any:
        first: Delivered = delivered[0]
        return state, first.late.gradient + 0.0


class Half(Gathering):
    name: Literal["half"] = "half"
    waits: ClassVar[bool] = True

    def num_gradients(self, num_workers: int) -> int:
        return max(1, num_workers // 2)


class Damped(Correction):
    name: Literal["damped"] = "damped"
    by: float = 0.5

    def apply(self, state: Any, worker: int, late: Any) -> Any:
        return state, self.by * late.gradient


class Jumps(OwnLaw):
    name: Literal["jumps"] = "jumps"
    high: float = Field(0.5, ge=0)
    steps: int = 2

    def draws(self, random: np.random.Generator) -> Sampler:
        return lambda moment: self.high if random.random() < 0.5 else 0.0

    def expectation(self) -> float:
        return self.high / 2


class Path(OwnTopology):
    name: Literal["path"] = "path"

    def edges(self, num_agents: int, random: np.random.Generator) -> Iterator[tuple[int, int]]:
        return ((agent, agent + 1) for agent in range(num_agents - 1))


class Lazy(OwnMixing):
    name: Literal["lazy"] = "lazy"
    share: float = 0.1

    def weights(self, neighbors: Any) -> Any:
        matrix = np.zeros((len(neighbors), len(neighbors)))
        for agent, others in enumerate(neighbors):
            matrix[agent, list(others)] = self.share
            matrix[agent, agent] = 1 - self.share * len(others)
        return matrix


class Signs(OwnOptimizer):
    name: Literal["signs"] = "signs"
    size: float = 0.1

    def update(self, state: Any, weights: torch.Tensor, gradient: torch.Tensor) -> Any:
        return state, self.size * gradient.sign()


FAMILIES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("algorithm", "rule", Slower(strength=0.25), {}),
    ("algorithm", "rule", MeanServer(gathering="sync"), {}),
    ("algorithm.gathering", "policy", Half(), {"algorithm": {"name": "server"}}),
    ("algorithm.correction", "correction", Damped(by=0.25), {"algorithm": {"name": "server"}}),
    ("links.0.delay", "law", Jumps(high=3), {"links": [{"delay": 1}]}),
    ("compute.law", "law", Jumps(high=3), {}),
    ("compute.stragglers.1", "law", Jumps(high=3), {"compute": {"stragglers": {1: 2}}}),
    ("topology", "topology", Path(), {}),
    ("mixing", "mixing", Lazy(share=0.2), {}),
    ("optimizer", "optimizer", Signs(size=0.01), {}),
]
every_family = pytest.mark.parametrize(("path", "key", "value", "around"), FAMILIES, ids=lambda v: str(v)[:30])


def at(config: Config, path: str) -> Any:
    found: Any = config
    for part in path.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    return found


def with_it(path: str, value: Any, around: dict[str, Any]) -> Config:
    changes = value
    for part in reversed(path.split(".")):
        changes = {part: changes}
    return load_config(load_config(LOCAL | around), changes=changes)


@every_family
def test_an_object_stands_where_the_package_s_own_do_and_survives_a_file(
    path: str, key: str, value: Any, around: dict[str, Any]
) -> None:
    config = with_it(path, value, around)
    assert at(config, path) == value
    tree = config.model_dump(mode="json")
    written = at_tree(tree, path)
    assert written["name"] == "custom"
    assert written[key] == f"{__name__}:{type(value).__name__}"
    assert written["settings"]["name"] == value.name
    assert unreadable(tree) == []
    assert load_config(tree) == config
    assert load_config(config, ["seed=3"]).model_copy(update={"seed": 0}) == config


@every_family
def test_a_run_is_planned_with_it_and_the_same_one_each_time(
    path: str, key: str, value: Any, around: dict[str, Any]
) -> None:
    config = with_it(path, value, around)
    first, second = (list(filter(None, make_plan(config).schedule)) for _ in range(2))
    assert first == second
    assert first


@every_family
def test_its_settings_are_changed_one_by_one_and_a_wrong_one_is_named(
    path: str, key: str, value: Any, around: dict[str, Any]
) -> None:
    by_path = {"name": "custom", key: f"{__name__}:{type(value).__name__}"}
    config = with_it(path, by_path, around)
    assert type(at(config, path)) is type(value)
    with pytest.raises(SettingsError) as caught:
        load_config(config, [f"{path}.settings.xyzzy=1"])
    assert str(caught.value).startswith(f"{path}.settings.xyzzy = 1: no such setting; ")
    with pytest.raises(SettingsError) as caught:
        with_it(path, by_path | {key: "math:pi"}, around)
    assert str(caught.value).startswith(f"{path}.{key} = 'math:pi': is of the type float; allowed is a class derived ")


def at_tree(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = (
            tree[int(part)]
            if isinstance(tree, list)
            else tree.get(part, tree.get(int(part)) if part.isdecimal() else None)
        )
    return tree


CUSTOM = {"name": "custom", "rule": f"{__name__}:Slower"}


def refusal(algorithm: Any, assignments: tuple[str, ...] = ()) -> str:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config(LOCAL | {"algorithm": algorithm}, assignments))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (CUSTOM | {"settings": {"strength": "x"}}, "algorithm.settings.strength = 'x': allowed is a number"),
        (CUSTOM | {"settings": {"strength": 2}}, "algorithm.settings.strength = 2: allowed are values up to 1"),
        (
            CUSTOM | {"settings": {"strenght": 1}},
            "algorithm.settings.strenght = 1: no such setting; did you mean algorithm.settings.strength?",
        ),
        (CUSTOM | {"strength": 1}, "algorithm.strength = 1: no such setting; a setting of your own class: write "),
        (CUSTOM | {"settings": [1]}, "algorithm.settings = [1]: allowed is a mapping"),
        ({"name": "custom"}, "algorithm.rule: is required; "),
        (CUSTOM | {"rule": "no_such_module:X"}, "algorithm.rule = 'no_such_module:X': the module 'no_such_module' "),
        (CUSTOM | {"rule": f"{__name__}:X"}, f"algorithm.rule = '{__name__}:X': the module '{__name__}' has no att"),
        (
            CUSTOM | {"rule": "ray_pcasgd.rules:DPSGD"},
            "algorithm.rule = 'ray_pcasgd.rules:DPSGD': is the package's own",
        ),
        (CUSTOM | {"rule": "ray_pcasgd.rules.base:Rule"}, "algorithm.rule = 'ray_pcasgd.rules.base:Rule': does not "),
        (CUSTOM | {"rule": f"{__name__}:Jumps"}, f"algorithm.rule = '{__name__}:Jumps': is a class; allowed is a c"),
        (f"{__name__}:Slower", f"algorithm = '{__name__}:Slower': allowed are d-psgd, "),
    ],
)
def test_bad_input_is_refused_in_one_line(algorithm: Any, expected: str) -> None:
    assert refusal(algorithm).startswith(expected)


def test_another_class_drops_the_settings_of_the_one_before() -> None:
    config = load_config(LOCAL | {"algorithm": Slower(strength=0.25)})
    changed = load_config(config, [f"algorithm.rule={__name__}:MeanServer"])
    assert type(changed.algorithm) is MeanServer
    assert load_config(config, ["algorithm.settings.period=3"]).algorithm == Slower(strength=0.25, period=3)
    assert load_config(config, ["algorithm=d-asgd"]).algorithm.name == "d-asgd"


def test_ranges_of_whole_numbers_are_those_of_the_class() -> None:
    config = load_config(LOCAL | {"algorithm": Slower(), "links": [{"delay": Jumps()}]})
    names = ("algorithm.settings.period", "algorithm.settings.strength", "links.0.delay.settings.steps")
    assert [takes_whole_numbers_alone(name, config) for name in names] == [True, False, True]


def test_a_class_that_no_import_leads_to_runs_and_its_file_says_so() -> None:
    class Hidden(Slower):
        name: Literal["hidden"] = "hidden"  # type: ignore[assignment]

    config = load_config(LOCAL | {"algorithm": Hidden()})
    make_plan(config)
    assert len(unreadable(config.model_dump(mode="json"))) == 1


def test_the_schema_of_all_settings_has_each_family() -> None:
    text = str(Config.model_json_schema())
    for word in ("CustomRule", "CustomPolicy", "CustomCorrection", "CustomLaw", "CustomTopology", "CustomMixing"):
        assert word in text
    assert "CustomOptimizer" in text


class Nameless(Rule):
    def step(self, state: Any, own: Any, reads: Any, probe: Any = None) -> Any:
        return state, Update(own.weights + 0.0, {})


class Elsewhere(Nameless):
    name: Literal["../elsewhere"] = "../elsewhere"


class Two(Nameless):
    name: Literal["one", "two"] = "one"


class Raising(Nameless):
    name: Literal["raising"] = "raising"

    @model_validator(mode="after")
    def _never(self) -> "Raising":
        raise KeyError("gone")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("Nameless", "has no name; allowed is one of its own, name: Literal['nameless'] = 'nameless'"),
        ("Elsewhere", "has the name '../elsewhere'; allowed is one of its own"),
        ("Two", "has no name; "),
    ],
)
def test_names_that_could_lead_elsewhere_are_refused(kind: str, expected: str) -> None:
    assert refusal(CUSTOM | {"rule": f"{__name__}:{kind}"}).startswith(
        f"algorithm.rule = '{__name__}:{kind}': {expected}"
    )


def test_whatever_a_class_raises_of_its_settings_is_said_in_one_line() -> None:
    assert "cannot be made of them (KeyError: 'gone')" in refusal(CUSTOM | {"rule": f"{__name__}:Raising"})


def test_classes_of_installed_packages_have_their_place_in_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    offered: dict[str, type[Settings]] = {"rule": MeanServer, "policy": Half, "topology": Path}
    for door in DOORS:
        if (kind := offered.get(door.key)) is not None:
            name = str(name_of(kind))
            entry = EntryPoint(name, f"{__name__}:{kind.__name__}", door.group)
            monkeypatch.setitem(door.__dict__, "offers", {name: entry})
            monkeypatch.setitem(door.__dict__, "installed", {name: kind})
            assert door.class_offered(name) is kind  # which looks at the schema of what it finds
    text = str(Config.model_json_schema())
    assert all(f"'const': '{name_of(kind)}'" in text for kind in offered.values())


class Twice(Jumps):
    name: Literal["twice"] = "twice"  # type: ignore[assignment]
    of: Law = ConstantLaw(value=1.0)


def test_an_installed_class_may_hold_another_one_of_its_family(monkeypatch: pytest.MonkeyPatch) -> None:
    door = next(door for door in DOORS if door.key == "law")
    monkeypatch.setitem(door.__dict__, "offers", {"twice": EntryPoint("twice", f"{__name__}:Twice", door.group)})
    monkeypatch.delitem(door.__dict__, "installed", raising=False)
    try:
        assert door.installed == {"twice": Twice}
        Config.model_json_schema()
        assert "compute.law.of" in [place.path for place in places.__wrapped__()]
        page = markdown()
        assert page.count("### twice") == 1
        assert page.count("- `of` (") == 1
        nested = {"name": "twice", "of": {"name": "twice", "of": 3}}
        config = load_config(LOCAL | {"links": [{"delay": nested}]})
        assert config.links[0].delay == Twice(of=Twice(of=ConstantLaw(value=3.0)))
    finally:
        door.__dict__.pop("installed", None)


class Between(Path):
    name: Literal["between"] = "between"  # type: ignore[assignment]
    of: Topology = Complete()


def test_the_page_of_settings_has_an_end_with_a_topology_of_topologies(monkeypatch: pytest.MonkeyPatch) -> None:
    door = next(door for door in DOORS if door.key == "topology")
    monkeypatch.setitem(door.__dict__, "offers", {"between": EntryPoint("between", f"{__name__}:Between", door.group)})
    monkeypatch.delitem(door.__dict__, "installed", raising=False)
    try:
        assert door.installed == {"between": Between}
        page = markdown()
        assert page.count("### between") == 1
        assert page.count("- `topology.of` (") == 1
        assert "topology.of.of" not in page
    finally:
        door.__dict__.pop("installed", None)


def test_a_module_that_ends_the_process_or_says_much_is_refused_in_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_that_exits.py").write_text("raise SystemExit(5)")
    (tmp_path / "module_that_talks.py").write_text("raise RuntimeError('x' * 5000)")
    monkeypatch.syspath_prepend(tmp_path)
    said = refusal(CUSTOM | {"rule": "module_that_exits:Rule"})
    assert said.endswith("the module 'module_that_exits' cannot be imported (SystemExit: 5)")
    assert len(refusal(CUSTOM | {"rule": "module_that_talks:Rule"})) < 500


def test_another_optimizer_gives_way_to_sgd_by_its_name_alone() -> None:
    config = load_config(LOCAL | {"optimizer": Signs()})
    assert load_config(config, ["optimizer={name: sgd, momentum: 0.9}"]).optimizer == SGD(momentum=0.9)
    assert load_config(LOCAL | {"optimizer": {"momentum": 0.9}}).optimizer == SGD(momentum=0.9)
    with pytest.raises(SettingsError, match=r"optimizer\.momentum = 0.9: no such setting"):
        load_config(config, ["optimizer.momentum=0.9"])


class Failing(Slower):
    name: Literal["failing"] = "failing"  # type: ignore[assignment]

    def check(self, num_agents: int) -> None:
        raise TypeError("no")


def test_whatever_a_class_raises_of_the_run_is_said_in_one_line() -> None:
    assert refusal(Failing()).startswith("algorithm: its check fails (TypeError: no")


def test_one_door_lets_in_nothing_of_another_family() -> None:
    with pytest.raises(SettingsError, match="topology"):
        load_config(LOCAL | {"topology": Slower()})


def test_a_family_without_installed_packages_reads_no_metadata_for_its_own_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(self: Door) -> None:
        raise AssertionError

    monkeypatch.setattr(Door, "class_offered", forbidden)
    config = load_config(LOCAL | {"algorithm": "pc-asgd"})
    assert TypeAdapter(Config).validate_python(config.model_dump(mode="json")) == config
