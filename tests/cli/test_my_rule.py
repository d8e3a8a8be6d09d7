"""The example package of ``docs/adding_a_rule.md``, installed and used from the command line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from ray_pcasgd.runs.storage.checkpoints import Checkpoint

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_rule"
PACKAGE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example where nothing else is, without a network."""
    folder = tmp_path_factory.mktemp("environment")
    sources = shutil.copytree(EXAMPLE, folder / "sources")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder / "site"), str(sources)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with the example's settings alone: the module is where it was installed."""
    for name in ("run.yaml", "sweep.yaml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    return tmp_path


def command(site: Path, work: Path, *arguments: str, fails: bool = False) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(PACKAGE)]), "NO_COLOR": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "ray_pcasgd", *arguments], cwd=work, env=environment, capture_output=True, text=True
    )
    assert (ended.returncode != 0) == fails, ended.stderr
    return ended.stderr if fails else ended.stdout


def result(work: Path, name: str) -> dict[str, object]:
    return dict(yaml.safe_load((work / "runs" / name / "result.json").read_text()))


def test_an_installed_rule_runs_under_its_own_name(site: Path, work: Path) -> None:
    command(site, work, "train", "run.yaml", "--engine", "local", "--set", "num_steps=4", "--name", "one")
    settings = yaml.safe_load((work / "runs" / "one" / "config.yaml").read_text())
    assert settings["algorithm"] == {"name": "fading", "half_life": 4.0}
    assert result(work, "one")["error"] is None


@pytest.mark.slow
def test_an_installed_rule_is_named_in_help_and_errors(site: Path, work: Path) -> None:
    assert "Steps of staleness after which" in command(site, work, "settings", "algorithm.fading.half_life")
    said = command(site, work, "train", "run.yaml", "--set", "algorithm.name=fadin", fails=True)
    assert "elastic-averaging, fading, custom; did you mean fading?" in said
    said = command(site, work, "train", "run.yaml", "--set", "algorithm.half_life=0", fails=True)
    assert said == "error: algorithm.half_life = 0: allowed are values above 0\n"


@pytest.mark.slow
def test_both_engines_give_the_same_bits(site: Path, work: Path) -> None:
    for engine in ("local", "ray"):
        command(site, work, "train", "run.yaml", "--engine", engine, "--set", "num_steps=8", "--name", engine)
    local, on_ray = (Checkpoint(str(work / "runs" / engine)).state_dict() for engine in ("local", "ray"))
    assert local.keys() == on_ray.keys()
    assert all(torch.equal(value, on_ray[name]) for name, value in local.items())
    assert result(work, "local")["schedule_hash"] == result(work, "ray")["schedule_hash"]


@pytest.mark.slow
def test_it_is_compared_and_swept(site: Path, work: Path) -> None:
    small = ["--set", "num_steps=4", "--set", "evaluate_every=4", "--set", "engine=local"]
    methods = ["--algorithm", "pc-asgd", "--algorithm", "fading,half_life=1"]
    command(site, work, "compare", "run.yaml", *small, *methods, "--seeds", "1", "--name", "compared")
    compared = pd.read_parquet(work / "runs" / "compared" / "comparison.parquet")
    assert list(compared["label"]) == ["d-psgd without delay", "pc-asgd", "fading,half_life=1"]
    assert compared["error"].isna().all()

    sweep = yaml.safe_load((work / "sweep.yaml").read_text())
    sweep["config"] = yaml.safe_load((work / "run.yaml").read_text()) | {"num_steps": 4, "engine": "local"}
    (work / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    command(site, work, "sweep", "sweep.yaml", "--name", "swept")
    trials = pd.read_parquet(work / "runs" / "swept" / "trials.parquet")
    assert sorted(trials["algorithm.half_life"].astype(float)) == [1, 4, 16]
