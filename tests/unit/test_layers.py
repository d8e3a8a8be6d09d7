"""Imports point down only, and what takes seconds to import stays where it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ray_pcasgd

PACKAGE = Path(ray_pcasgd.__file__).parent
LAYERS = [
    "settings scalars law_text vocabulary wording own_state foreign_files foreign_tables reaching records own_files "
    "plain_json folder_lock run_state numerics randomness curves",
    "laws topology timing rules optimizer",
    "commands status pace schedule mailbox tasks reliability",
    "module_tensors sample_checks replica local_tensors displacement server_rules learner agent variants server pairs "
    "consensus",
    "engines",
    "config settings_reference hints misspelling tryout explanation yaml_text loading roster server_plan pair_plan "
    "peer_plan plan variant_plan",
    "watching exporter event_log trainer run run_record run_states run_files run_ending run_folder remote_storage "
    "interrupting executable_rows result checkpoint state_files model_file monitor trust ray_train sweep_settings",
    "theory report comparison terminal progress sweep_states sweep_packs sweep_budget sweep_progress sweep_trials "
    "sweep_results sweep_tuner sweep cli_control settings_text settings_page starter cli_settings cli",
    "__init__ __main__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}


def imported_modules(source: str, package: str) -> Iterator[str]:
    """Yield the dotted name of all that a module of ``package`` imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            # What is taken from a package may be a module of it.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str | None:
    """Return which of our layers' names a dotted name belongs to."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ray_pcasgd" and len(parts) > 1 and parts[1] in LEVEL else None


def upward_imports(source: str, package: str, own: str) -> list[str]:
    layers = {layer for module in imported_modules(source, package) if (layer := layer_of(module))}
    return sorted(layer for layer in layers if LEVEL[layer] > LEVEL[own])


def modules() -> list[Path]:
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def test_every_module_has_a_layer() -> None:
    assert {path.parts[0].removesuffix(".py") for path in modules()} == set(LEVEL)


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_point_down(path: Path) -> None:
    package = ".".join(["ray_pcasgd", *path.parts[:-1]])
    own = path.parts[0].removesuffix(".py")
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert upward_imports(source, package, own) == []
    at_the_edge = path.parts[:2] in (("engines", "ray"), ("tasks", "ray_stream.py")) or own == "exporter"
    if not at_the_edge and (own == "sweep_settings" or not own.startswith("sweep")):
        assert not [module for module in imported_modules(source, package) if module.split(".")[0] == "ray"]


@pytest.mark.parametrize(
    "source",
    [
        "import ray_pcasgd.trainer",
        "from ray_pcasgd.trainer import Trainer",
        "from ray_pcasgd import trainer",
        "from ..trainer import Trainer",
        "from .. import trainer",
        "def later():\n    from ray_pcasgd.trainer import Trainer",
    ],
)
def test_an_upward_import_is_found_in_every_form(source: str) -> None:
    assert upward_imports(source, "ray_pcasgd.tasks", "tasks") == ["trainer"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ray_pcasgd", ["ray"]),
        ("ray_pcasgd.cli", ["ray"]),  # which imports plan and trainer
        ("ray_pcasgd.engines.ray.settings", ["ray"]),
        ("ray_pcasgd.engines.ray.agent_actor", ["torchvision", "sklearn", "matplotlib"]),
    ],
)
def test_what_is_not_needed_is_not_imported(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
