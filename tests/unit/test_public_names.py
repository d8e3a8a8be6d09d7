"""``__all__`` promises what ``from ray_pcasgd import name`` gives, whatever else has been imported before."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import ray_pcasgd

EVERYTHING = """
import importlib, pkgutil, sys
import ray_pcasgd
for module in pkgutil.walk_packages(ray_pcasgd.__path__, "ray_pcasgd."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from ray_pcasgd import *
print(*(type(globals()[name]).__name__ for name in ray_pcasgd.__all__))
"""


def test_no_module_takes_the_place_of_a_public_name() -> None:
    modules = {module.name for module in pkgutil.iter_modules(ray_pcasgd.__path__)}
    assert modules.isdisjoint(ray_pcasgd.__all__)


def test_a_public_name_is_a_class_or_a_function_after_every_module_was_imported() -> None:
    ended = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=True)
    kinds = dict(zip(ray_pcasgd.__all__, ended.stdout.split(), strict=True))
    assert "module" not in kinds.values()
    assert kinds["compare"] == kinds["load_config"] == "function"


@pytest.mark.parametrize("name", ray_pcasgd.__all__)
def test_a_public_name_comes_from_the_module_that_defines_it(name: str) -> None:
    found = getattr(ray_pcasgd, name)
    assert found.__name__ == name
    assert found.__module__ == f"ray_pcasgd.{ray_pcasgd._HOMES[name]}"
    assert name in dir(ray_pcasgd)


def test_type_checkers_see_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse(Path(ray_pcasgd.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module for node in imports for alias in node.names}
    assert homes == {name: f"ray_pcasgd.{home}" for name, home in ray_pcasgd._HOMES.items()}
    assert sorted(homes) == sorted(ray_pcasgd.__all__)


def test_an_unknown_name_is_an_error_of_attributes_and_of_imports() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        importlib.import_module("ray_pcasgd").nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from ray_pcasgd import nothing")
