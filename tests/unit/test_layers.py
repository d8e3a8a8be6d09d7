"""Imports point down only and in no circle, and what takes seconds to import stays where it is needed."""

import ast
import pickle
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest

import ray_pcasgd
from ray_pcasgd.agents.mailbox import Header, Message
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.records import Row, StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config

PACKAGE = Path(ray_pcasgd.__file__).parent
LAYERS = (
    ("records", "base"),
    ("tasks", "rules"),
    ("schedule",),
    ("agents",),
    ("engines",),
    ("config",),
    ("runs",),
    ("report",),
    ("sweep",),
    ("tune",),
    ("cli",),
    ("__init__", "__main__"),
)
"""Folders and files at the top, lowest first."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
WITHOUT_RAY = (
    *("base", "tasks", "rules", "schedule", "agents", "engines/local", "engines/live"),
    *("config", "runs", "report", "engines/transport", "engines/loopback", "engines/validation", "engines/raw_tensors"),
)
AT_THE_EDGE = ("tasks/ray_stream.py", "runs/prometheus.py", "runs/trackers/ray_loggers.py")
"""Files in these that Ray is for."""
ACTORS = ("planned", "live_peer", "live_pair", "live_worker", "live_server")
"""Modules of drivers, of which an agent's process imports one."""


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(["ray_pcasgd", *path.with_suffix("").parts]).removesuffix(".__init__")


MODULES = {dotted(path): path for path in modules()}


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Yield the dotted name of all that a module of ``package`` imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # What is taken from a package may be a module of it.
            for alias in node.names:
                yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module


def package_of(path: Path) -> str:
    return ".".join(["ray_pcasgd", *path.parts[:-1]])


def imports_of(path: Path) -> set[str]:
    return set(imported_modules((PACKAGE / path).read_text(encoding="utf-8"), package_of(path)))


def top_of(module: str) -> str | None:
    """Return the folder or file at the top that a dotted name lies in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ray_pcasgd" and len(parts) > 1 and parts[1] in LEVEL else None


def upward_imports(source: str, package: str, own: str) -> list[str]:
    tops = {top for module in imported_modules(source, package) if (top := top_of(module))}
    return sorted(top for top in tops if LEVEL[top] > LEVEL[own])


def test_there_are_ten_folders_and_two_files() -> None:
    tops = {path.parts[0].removesuffix(".py") for path in modules()}
    assert tops == set(LEVEL)
    assert sum((PACKAGE / top).is_dir() for top in tops) == 10


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_down(path: Path) -> None:
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert upward_imports(source, package_of(path), path.parts[0].removesuffix(".py")) == []


@pytest.mark.parametrize("folder", WITHOUT_RAY)
def test_ray_stays_at_the_edge(folder: str) -> None:
    inside = [path for path in modules() if path.as_posix().startswith(folder) and path.as_posix() not in AT_THE_EDGE]
    assert inside
    assert [path for path in inside if any(module.split(".")[0] == "ray" for module in imports_of(path))] == []


def test_no_import_is_part_of_a_circle() -> None:
    graph = {name: {module for module in imports_of(path) if module in MODULES} for name, path in MODULES.items()}
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    # A package's own file is run before its modules, and may name them; its names are used by nobody within.
    own = {name: found - packages for name, found in graph.items() if name not in packages}
    assert list(TopologicalSorter(own).static_order())


@pytest.mark.parametrize(
    "source",
    [
        "import ray_pcasgd.runs.trainer",
        "from ray_pcasgd.runs.trainer import Trainer",
        "from ray_pcasgd.runs import trainer",
        "from ..runs.trainer import Trainer",
        "from ..runs import trainer",
        "def later():\n    from ray_pcasgd.runs.trainer import Trainer",
    ],
)
def test_an_upward_import_is_found_in_every_form(source: str) -> None:
    assert upward_imports(source, "ray_pcasgd.tasks", "tasks") == ["runs"]


WITHOUT_NEED = (
    "ray_pcasgd",
    "ray_pcasgd.engines.ray.settings",
    "ray_pcasgd.runs.trainer",
    "ray_pcasgd.sweep.settings",
    "ray_pcasgd.cli.terminal",
)


def test_none_of_these_imports_ray() -> None:
    """In one process, one after another: the first that imports it is the first that is named."""
    code = (
        f"import importlib, sys\nfor name in {WITHOUT_NEED!r}:\n    importlib.import_module(name)\n"
        "    print(name, 'ray' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [f"{name} False" for name in WITHOUT_NEED]


def test_an_agents_process_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """What it does not need would take memory in each of them, of which there may be hundreds."""
    absent = [
        *("torchvision", "sklearn", "scipy", "pandas", "pyarrow", "matplotlib", "networkx", "torch._dynamo"),
        *("typer", "rich", *(f"ray_pcasgd.{name}" for name in ("config", "runs", "report", "sweep", "cli"))),
    ]
    actors = ", ".join(f"ray_pcasgd.engines.ray.{name}" for name in ACTORS)
    plan = make_plan(load_config({"num_steps": 3}))
    (tmp_path / "spec").write_bytes(pickle.dumps((plan.specs[0], plan.data)))
    code = (
        f"import pickle, sys, {actors}; pickle.load(open('spec', 'rb')); "
        f"print(*[name for name in {absent!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.split() == []


@pytest.mark.parametrize("algorithm", ["pc-asgd", "sgp", "gossip-pull", "gossip-push", "ad-psgd", "server"])
def test_the_schedulers_process_needs_no_torch(algorithm: str, tmp_path: Path) -> None:
    """It deals rows out: without torch it is there sooner, and in a third of the memory."""
    plan = make_plan(load_config({"num_steps": 3, "algorithm": {"name": algorithm}, "links": []}))
    message = Message(Header(0, 1, 0.0, 0.0), Contents(np.zeros(3, np.float32), np.zeros(0, np.float32), None))
    row = Row(0, 0, 0.0, 1.0, 1.0, ())
    said = (StepReport(row, 1, 0.5, {}, 0, 1.0), AgentState(0, 1, 1, None, (message,)))
    (tmp_path / "made").write_bytes(pickle.dumps((plan.schedule, said)))
    code = (
        "import pickle, sys, ray_pcasgd.engines.ray.scheduler_actor as home; "
        "schedule, said = pickle.load(open('made', 'rb')); actor = home.SchedulerActor(schedule, 9); "
        "dealt = actor.deal(0, 1); actor.record(0, 0, 0, said); "
        "absent = 'torch', 'scipy', 'pandas'; "
        "print(len(dealt), len(actor.drain(0)), *[name for name in absent if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.split() == ["1", "1"]


SLOW = ["torch", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn", "networkx", "ray", "ray_pcasgd.config"]


@pytest.mark.parametrize(
    ("arguments", "status", "printed"),
    [
        (["--help"], 0, "Usage:"),
        (["train", "--help"], 0, "Usage:"),
        (["sweep", "--help"], 0, "Usage:"),
        (["--version"], 0, "ray-pcasgd "),
        (["status", "no-such-run"], 2, "error: no-such-run: no such folder"),
        (["watch", "no-such-run"], 2, "error: no-such-run: no such folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_the_status_of_no_run_import_nothing_that_is_slow(
    arguments: list[str], status: int, printed: str, tmp_path: Path
) -> None:
    code = (
        "import sys, ray_pcasgd.cli\ntry:\n    ray_pcasgd.cli.main(sys.argv[1:])\nexcept SystemExit as ended:\n"
        f"    print('status', ended.code, *[name for name in {SLOW!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    *_, last = ended.stdout.splitlines()
    assert last == f"status {status}"
    assert printed in ended.stdout + ended.stderr
