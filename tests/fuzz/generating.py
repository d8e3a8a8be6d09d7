"""Random settings: of every family, with every setting, plausible or nasty; a seed and a number make a case."""

import copy
import datetime
import types
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ray_pcasgd.base.curves import Curve
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.runs.settings.reference import kind_of, kinds_in
from ray_pcasgd.tasks.task import Task

NASTY: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 100, 10**6, 2**31, 2**63, 10**18, 10**30, 10**400, -(10**18), -0.0, 0.5, 1.5, 0.1, 1e-3, 1e-9),
    *(1e-12, 1e-308, 5e-324, 1e9, 1e12, 1e30, 1e300, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
    *(True, False, None, "", " ", "x", "0.1", "1e9", "nan", "yes", "null", "x" * 300, "x" * 5000, "π-名字", "a\nb"),
    *("\x00", "\ud800", "../x", "/", ".", "~", "nowhere/at/all.csv", "s3://", "file://", "://", "nope://x", ":"),
    *("module:thing", "math:pi", "200ms", "pareto(2, 1s)", "pareto(0.1, 1)", "outage(1e-9, 1e-9)", "constant(1e9)"),
    *("uniform(0, 1e9)", "10 steps", "log-normal(1, 20)", "pc-asgd", "server", "ring", "custom", "constant", "auto"),
    *([], {}, [[]], [0], [-1], [[0]], [[0, 0]], [[0, 1], [1]], [[0, 10**18]], [None], [1e308, 1e308], [0, 1, 2], ["a"]),
    *([[0], [1]], {"name": "x"}, {"name": None}, {"name": []}, {"value": 1}, {0: 1}, {-1: 1}, {"0": 2}, {"a": 1}),
    *({None: 1}, {10**18: 1}, b"bytes", datetime.date(2024, 5, 1), {1, 2}, (1, 2), 1 + 2j),
]
"""Values that stand where others should."""

UNWRITABLE = ("s3://", "file://", "://", "nope://x", "", "\x00", "\ud800", "x" * 5000)
"""Places of run folders that are none; other texts would be made into folders outside of the case's own."""

AVERAGING = ("d-psgd", "d-asgd", "c-asgd", "p-asgd", "pc-asgd", "pc-asgd-pv")
IN_PARTS = (*AVERAGING, "diloco", "fedasync", "elastic-averaging")
"""Whose messages may hold a part of the model."""

CHANGING = ("one-peer-exponential", "hierarchical")
"""Topologies for rules that average weights alone."""

NUMBERS = [0, 1, 2, 3, 4, 5, 8, 0.05, 0.1, 0.3, 0.5, 0.9, 1.5, 10, 60]


class Case(NamedTuple):
    """What is tried."""

    tree: dict[str, Any]
    """Settings as a file or Python would have them."""
    assignments: list[str]
    """Changes by the command line."""


class Resources(NamedTuple):
    """What settings may name."""

    folder: Path
    """A folder with a text, images, delays and so on."""
    schedules: tuple[Path, ...]
    """Schedules that were recorded."""


def make_case(seed: int, number: int, resources: Resources) -> Case:
    """Return one case; the same each time."""
    random = Random(f"{seed}:{number}")
    tree = _fitted(random, _Generator(random, resources).config())
    for _ in range(random.choice([0, 0, 0, 0, 0, 1, 1, 1, 2, 5])):
        _spoil(random, tree)
    if isinstance(tree.get("storage_path", 0), str) and tree["storage_path"] not in UNWRITABLE:
        tree["storage_path"] = str(resources.folder / "runs")
    assignments = []
    while random.random() < 0.2:
        path, value = random.choice(_leaves({key: tree[key] for key in tree if key != "storage_path"}) or [("seed", 1)])
        if random.random() < 0.3:
            value = _nasty(random)
        try:
            assignments.append(f"{path}={write_yaml([value])[2:].strip()}")
        except Exception:
            assignments.append(f"{path}={value}")
    return Case(tree, assignments)


class _Generator:
    """Plausible settings, from the types that pydantic knows."""

    def __init__(self, random: Random, resources: Resources) -> None:
        self.random = random
        self.resources = resources
        self.num_agents = random.choice([1, 2, 3, 3, 4, 4, 5, 6, 8])
        self.chosen: dict[str, Callable[[], Any]] = {
            "num_agents": lambda: self.num_agents,
            "num_steps": lambda: self.random.randint(1, 5),
            "num_epochs": lambda: self.random.choice([0.01, 0.02, 1e-9]),
            "batch_size": lambda: self.random.choice([1, 2, 4, 16, 200]),
            "evaluate_every": lambda: self.random.choice([1, 2, 3, 50]),
            "seed": lambda: self.random.randint(0, 5),
            "warmup_steps": lambda: self.random.choice([0, 1, 3]),
            "mixed_buffers": lambda: self.random.choice(["statistics", "all", "none", ["statistics"], ["*mean"], []]),
            "clusters": self.clusters,
            "schedule": lambda: str(self.random.choice(self.resources.schedules)) if self.resources.schedules else None,
            "name": lambda: self.random.choice([None, "a", "20240501", "a.b-c_1", "x" * 100]),
            "storage_path": lambda: str(self.resources.folder / "runs"),
            "task": self.task,
            "engine": self.engine,
            "mixing": self.mixing,
            "topology.edges": self.edges,
            "topology.rows": lambda: 1,
            "topology.columns": lambda: self.num_agents,
            "topology.degree": lambda: self.random.choice([1, 2, max(1, self.num_agents - 1)]),
            "topology.groups": lambda: self.random.choice([None, self.groups()]),
            "links.links": self.edges,
            "links.bandwidth": self.bandwidth,
            "hosts.agents": lambda: self.random.choice([[0], list(range(self.num_agents))]),
            "hosts.up": self.bandwidth,
            "hosts.down": self.bandwidth,
            "membership": self.membership,
            "regions": self.regions,
            "links.between": lambda: self.random.choice(
                ["all", "all", "clusters", "clusters", [[0], [self.num_agents - 1]], self.groups()]
            ),
            "algorithm.theta": lambda: self.random.choice([0, 0.3, 1, [0.5] * self.num_agents, self.curve()]),
            "algorithm.candidates": lambda: self.random.choice([[0, 1], [0, 0.5, 1], [0.2, 0.3]]),
            "algorithm.period": lambda: self.random.choice([1, 2, 4]),
            "algorithm.alpha": lambda: self.random.choice([0.01, 0.1, 0.12]),
            "step_size": lambda: self.random.choice([0, 0.01, 0.1, 0.5, 30, 1e6, self.curve(), self.curve()]),
            "curve.at_steps": lambda: self.random.choice([[1, 3], [2], []]),
            "curve.values": lambda: self.random.choice([[0.1, 0.2, 0.05], [0.1]]),
            "checkpoint.score": lambda: self.random.choice([None, "loss", "accuracy"]),
            "checkpoint.state_seconds": lambda: self.random.choice([None, 0, 0, 60]),
            "accumulate": lambda: self.random.choice([1, 1, 1, 2]),
            "gradient_clipping": lambda: self.random.choice([None, {"norm": 1e-3}, {"value": 1}]),
            "optimizer.betas": lambda: self.random.choice([[0, 0], [0.9, 0.99]]),
            "optimizer.momentum": lambda: self.random.choice([0, 0.5, 0.99]),
            "gathering.every_seconds": lambda: self.random.choice([0.0005, 1e-6, 0.5, 3, 1e9]),
        }

    def config(self) -> dict[str, Any]:
        tree = self.fields(Config, "")
        if "num_epochs" not in tree or self.random.random() < 0.5:
            tree.pop("num_epochs", None)
            tree["num_steps"] = self.chosen["num_steps"]()
        else:
            tree.pop("num_steps", None)
        tree["num_agents"] = self.num_agents
        tree["task"] = self.task()
        tree["engine"] = self.engine()
        return tree

    def fields(self, owner: type[Settings], path: str) -> dict[str, Any]:
        values = {}
        likely = 0.35 if owner is Config else 0.5
        for name, field in owner.model_fields.items():
            if name == "name" and owner is not Config:
                values["name"] = kind_of(owner)
            elif field.is_required() or self.random.random() < likely:
                values[name] = self.field(owner, name, field, f"{path}{name}")
        return values

    def field(self, owner: type[Settings], name: str, field: FieldInfo, path: str) -> Any:
        for known in (path, f"{path.rsplit('.', 2)[-2]}.{name}" if path.count(".") > 1 else path):
            if known in self.chosen:
                return self.chosen[known]()
        if kinds_in(field.annotation) and type(None) in get_args(field.annotation) and self.random.random() < 0.3:
            return None
        return self.of_type(field.annotation, field.metadata, path)

    def of_type(self, annotation: Any, metadata: Any, path: str) -> Any:
        origin, arguments, random = get_origin(annotation), get_args(annotation), self.random
        if origin is Annotated:
            return self.of_type(arguments[0], [*arguments[1:], *metadata], path)
        if origin in (Union, types.UnionType):
            kinds = kinds_in(annotation)
            others = [one for one in arguments if not kinds_in(one)]
            if kinds and (not others or random.random() < 0.7):
                kind = random.choice(kinds)
                values = self.fields(kind, f"{path}.")
                return values["name"] if set(values) == {"name"} and random.random() < 0.5 else values
            return self.of_type(random.choice(others), metadata, path)
        if origin is Literal:
            return random.choice(arguments)
        if origin is tuple:
            if arguments[-1] is Ellipsis:
                return [self.of_type(arguments[0], (), path) for _ in range(random.randint(0, 3))]
            return [self.of_type(one, (), path) for one in arguments]
        if origin is dict:
            keys = [
                random.randrange(self.num_agents) if arguments[0] is int else random.choice("abc") for _ in range(2)
            ]
            return {key: self.of_type(arguments[1], (), path) for key in keys[: random.randint(0, 2)]}
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            return self.fields(annotation, f"{path}.")
        if annotation in (int, float):
            return self.number(annotation, metadata)
        if annotation is bool:
            return random.random() < 0.5
        if annotation is Path:
            return str(self.resources.folder / random.choice(["text.txt", "delays.csv", "nowhere"]))
        return None if annotation is type(None) else random.choice(["loss", "delay", "x"])

    def number(self, kind: Any, metadata: Any) -> Any:
        limits = {name: getattr(part, name) for item in metadata for part in getattr(item, "metadata", [item])
                  for name in ("ge", "gt", "le", "lt") if hasattr(part, name)}  # fmt: skip
        fitting = [
            value
            for value in NUMBERS
            if (kind is float or isinstance(value, int))
            and value >= limits.get("ge", value)
            and value <= limits.get("le", value)
            and ("gt" not in limits or value > limits["gt"])
            and ("lt" not in limits or value < limits["lt"])
        ]
        return self.random.choice(fitting or [limits.get("ge", limits.get("le", 1))])

    def curve(self) -> Any:
        return self.of_type(Curve, (), "curve")

    def clusters(self) -> Any:
        return self.random.choice([None, 1, min(2, self.num_agents), self.num_agents, self.groups()])

    def bandwidth(self) -> str:
        return self.random.choice(["20 Mbit/s", "1 Gbit/s", "25MB/s", "1 bit/s", "0.5 kB/s"])

    def membership(self) -> Any:
        last = self.num_agents - 1
        times = sorted(self.random.sample([0, 0.5, 1, 1.5, 2, 3.25, 4], 3))
        once = {"agent": last, "leaves": times[0], "returns": f"{times[1]}s"}
        late = {"agents": list(range(self.num_agents)), "returns": times[0] + 0.1}
        forms = [[once], once, [once, {"agent": last, "leaves": times[2]}], [late], [late, once]]
        return self.random.choice([[], [], *forms, {"trace": str(self.resources.folder / "there.csv")}])

    def regions(self) -> Any:
        halves = dict(zip(("Oregon", "Frankfurt"), self.groups(), strict=True))
        return self.random.choice([{}, {}, {}, {"Tokyo": [0]}, {"Ohio": [0], "London": [self.num_agents - 1]}, halves])

    def groups(self) -> list[list[int]]:
        agents = list(range(self.num_agents))
        cut = self.random.randint(0, self.num_agents)
        return [agents[:cut], agents[cut:]]

    def edges(self) -> list[list[int]]:
        path = [[i, i + 1] for i in range(self.num_agents - 1)]
        return self.random.choice([path, [*path, [self.num_agents - 1, 0]], path[:1], []])

    def mixing(self) -> Any:
        even = [[1 / self.num_agents] * self.num_agents] * self.num_agents
        return self.random.choice(["metropolis", "uniform", {"name": "matrix", "rows": even}])

    def engine(self) -> Any:
        local = {"name": "local", "batched": self.random.choice(["auto", "always", "never"])}
        if self.random.random() < 0.1:
            return self.fields(RaySettings, "engine.")
        return self.random.choice(["local", "local", local, local | {"threads": 2, "device": "cpu"}])

    def task(self) -> Any:
        random = self.random
        if random.random() < 0.1:
            return self.fields(Task, "task.")
        own = "tests.fuzz.objects:"
        folder = self.resources.folder
        text = {
            "data": {"name": "text", "path": str(folder / "text.txt"), "context": 8},
            "model": {"name": "char-lm", "width": 8, "layers": 1, "heads": 2},
        }
        pairs = {"data": {"name": "custom", "train": f"{own}classes", "test": f"{own}few_classes"}}
        numbers = {
            "data": {"name": "custom", "train": f"{own}regression", "test": f"{own}regression"},
            "model": {"name": "custom", "factory": f"{own}layers", "arguments": {"outputs": 1}},
            "loss": random.choice(["mse", {"name": "custom", "function": f"{own}absolute"}]),
            "metrics": random.choice([[], ["mae"], ["mse", "mae"]]),
        }
        images = {
            "data": {"name": "custom", "train": f"{own}images", "test": f"{own}images"},
            "model": random.choice(
                [{"name": "small-cnn", "channels": [4, 4], "batch_norm": random.random() < 0.5}, "mlp"]
            ),
            "augmentation": {"crop_padding": random.choice([0, 1, 2]), "flip": random.random() < 0.5},
        }
        normalized = pairs | {
            "model": {"name": "custom", "factory": f"{own}layers", "arguments": {"normalized": random.random() < 0.5}}
        }
        parquet = {
            "data": {
                "name": "image-parquet",
                "train": str(folder / "images.parquet"),
                "test": str(folder / "images.parquet"),
                "image_column": "image",
            }
        }
        task: dict[str, Any] = random.choice([{}, {}, {}, pairs, normalized, numbers, images, text, parquet])
        if random.random() < 0.1:
            task = task | {"validation_share": random.choice([0.01, 0.5, 0.99])}
        if not task and random.random() < 0.5:
            task = {"model": {"name": "mlp", "hidden": random.choice([[], [4], [8, 8]]), "activation": "tanh"}}
        if not task and random.random() < 0.2:
            task = {"data": {"name": "digits", "test_share": random.choice([1e-9, 0.001, 0.5, 0.999, 0.9999999])}}
        return task


def _fitted(random: Random, tree: dict[str, Any]) -> dict[str, Any]:
    """Return a tree in which fewer settings contradict each other, most of the time."""
    if random.random() < 0.1:
        return tree
    optimizer = tree.get("optimizer", {})
    if isinstance(optimizer, dict) and not optimizer.get("momentum"):
        tree["optimizer"] = {key: optimizer[key] for key in optimizer if key not in ("nesterov", "braking")}
    if isinstance(optimizer, dict) and optimizer.get("name") in ("custom", "torch") and random.random() < 0.8:
        tree["optimizer"] = {"name": "torch", "optimizer": "torch.optim:RAdam"}
    for name in ("accumulate", "callbacks", "gradient_clipping", "precision"):
        if random.random() < 0.9:
            tree.pop(name, None)
    for link in tree.get("links", []):
        link.pop("between" if "links" in link else "links", None)
        if link.get("delay") is None:
            link.pop("unit", None)
            link.setdefault("bandwidth", "20 Mbit/s")
    tree["hosts"] = [{"down": "1 MB/s"} | host for host in tree.get("hosts", [])[:1]]
    kept = tree.get("checkpoint", {})
    if not kept.get("every_evaluations"):
        tree["checkpoint"] = {key: kept[key] for key in kept if key not in ("score", "num_to_keep")}
    kind = _name_of(tree.get("algorithm"))
    if _name_of(tree.get("topology")).startswith("directed") != (kind in ("sgp", "sgp-overlap")):
        tree.pop("topology", None)
    if _name_of(tree.get("topology")) in CHANGING and kind not in ("d-psgd", "d-asgd", "c-asgd", "slowmo", "gasloc"):
        tree.pop("topology", None)
    if kind in ("server", "elastic-averaging", "ad-psgd", "d-psgd", "choco-sgd", "sgp", "gossip-push"):
        tree.pop("barrier", None)
        tree.pop("mixing", None)
    if kind in ("ad-psgd", "sgp", "sgp-overlap", "noloco", "choco-sgd"):
        tree.pop("membership", None)
    if kind == "fedglomo" and isinstance(tree["algorithm"], dict):
        tree["algorithm"].pop("gathering", None)
        tree["optimizer"] = {"weight_decay": random.choice([0, 0.1])}
    if isinstance(tree.get("wire"), dict) and (kind not in IN_PARTS or random.random() < 0.7):
        tree["wire"].pop("fragments", None)
    if random.random() < 0.9:
        tree.pop("schedule", None)
    return tree


def _nasty(random: Random) -> Any:
    return copy.deepcopy(random.choice(NASTY))  # it may be spoiled itself


def _name_of(value: Any) -> str:
    return str(value.get("name")) if isinstance(value, dict) else str(value)


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [(f"{path}{key}", value) for key, value in items]
    return [leaf for key, value in found for leaf in [(key, value), *_leaves(value, f"{key}.")]]


def _spoil(random: Random, tree: dict[str, Any]) -> None:
    """Put a nasty value, an unknown setting, or one of another kind somewhere into a tree."""
    place: Any = tree
    while True:
        inner = [
            value
            for value in (place.values() if isinstance(place, dict) else place)
            if isinstance(value, dict | list) and value
        ]
        if not inner or random.random() < 0.35:
            break
        place = random.choice(inner)
    key = random.choice(list(place)) if isinstance(place, dict) else random.randrange(len(place))
    if isinstance(place, dict) and random.random() < 0.2:
        key = random.choice([*Config.model_fields, "theta", "foo", "", 3])
    place[key] = _nasty(random)
