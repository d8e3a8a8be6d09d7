"""The settings document themselves: on the terminal, as a page that is current, and for the shell's completion."""

import re
from pathlib import Path

import pytest

from ray_pcasgd.base.doors import DOORS
from ray_pcasgd.cli.settings import complete_assignment, complete_setting
from ray_pcasgd.cli.settings_page import markdown
from ray_pcasgd.cli.settings_text import told
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.settings.reference import kind_of, places, settings_classes, takes_whole_numbers_alone

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_is_current() -> None:
    """Else: ray-pcasgd settings --markdown > docs/settings.md."""
    assert PAGE.read_text(encoding="utf-8") == markdown()


SHARED = re.compile(
    r"^(compute\.(law|agents\.0|stragglers\.0)|links\.0\.delay|step_size|algorithm\.(theta|compensation|gathering))\."
)
"""Where laws, curves, compensations and gatherings stand, which the page describes once."""


def test_the_page_names_every_setting_every_kind_and_every_default() -> None:
    page = markdown()
    for place in places():
        shared = SHARED.sub("", place.path)
        listed = place.path.removesuffix(".0").replace("metrics.0", "metrics")
        assert f"`{place.path}`" in page or f"`{shared}`" in page or f"`{listed}`" in page, place.path
    for kind in map(kind_of, settings_classes()):
        assert kind is None or f"### {kind}\n" in page or f": {kind}.**" in page, kind


@pytest.mark.parametrize("path", sorted({place.path for place in places()}))
def test_every_setting_is_told_by_its_path(path: str) -> None:
    text = told(path)
    assert text.startswith(f"{path}: ")
    assert "allowed: " in text
    assert "required" in text or "default: " in text
    assert max(map(len, text.splitlines())) <= 100
    named = ("factory", "function", "data", "step", "evaluate", "callbacks", *(door.key for door in DOORS))
    assert "a Python object" not in text or any(word in path for word in named)


def test_choices_defaults_and_required_numbers_are_told() -> None:
    theta = " ".join(told("algorithm.theta").split())
    kinds = (
        "staleness | constant | linear | cosine | multi-step | stairs | warmup-stable-decay | one-cycle | inverse-sqrt"
    )
    assert f"allowed: a number, or {kinds}, or a list of numbers" in theta
    assert "default: staleness" in theta
    assert "where algorithm.name = pc-asgd" in theta
    assert "algorithm.theta.steps (required): Steps from" in theta
    assert "allowed: a whole number from 1 on\n    required\n" in told("algorithm.gathering.k")
    assert "k-sync | k-batch-sync | k-async | quorum | rennala\n" in told("algorithm.gathering.k")
    assert "PACK | SPREAD | STRICT_PACK | STRICT_SPREAD" in told("engine.placement_strategy")
    assert "hosts.0.agents (required)" in told("hosts")


def test_a_path_may_name_a_kind_an_item_or_a_kind_alone() -> None:
    assert told("algorithm.pc-asgd.theta") == told("algorithm.theta")
    assert told("links.3.delay") == told("links.delay") == told("links.0.delay")
    assert told("algorithm.name") == told("algorithm")
    assert told("num-steps") == told("num_steps")
    assert told("pareto").startswith("compute.law = pareto\n    pareto: Pareto (type I)")
    assert "algorithm.compensation.lambda_0 = 2:" in told("adaptive")
    assert told("staleness").startswith("algorithm.theta = staleness")
    assert "default: 2\n" in told("algorithm.compensation.adaptive.lambda_0")


def test_without_a_path_the_top_of_the_tree_is_told() -> None:
    assert all(f"{name} = " in told() for name in Config.model_fields)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("lr", "settings lr: no such setting; write step_size"),
        ("algorithm.thet", "did you mean algorithm.theta?"),
        ("theta", "did you mean algorithm.theta?"),
        ("capacity", "ray-pcasgd settings lists those at the top"),
        ("xyzzy", "ray-pcasgd settings lists those at the top"),
        ("..", "no such setting"),
        (".name", "no such setting"),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest(path: str, expected: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(expected)):
        told(path)


def test_the_shell_completes_settings() -> None:
    assert "algorithm.theta=" in complete_assignment("algorithm.th")
    assert complete_setting("num_") == ["num_agents", "num_steps", "num_epochs"]
    assert complete_setting("nothing") == []


def test_whole_numbers_are_told_from_others_by_the_kind_of_thing_that_is_set() -> None:
    config = Config.model_validate({"topology": {"name": "torus", "rows": 2, "columns": 4}})
    for path in ("num_agents", "topology.rows", "links.0.from_step", "task.model.hidden", "algorithm.oldest_age"):
        assert takes_whole_numbers_alone(path, config) == (path != "task.model.hidden"), path
    for path in (
        "step_size",
        "algorithm.theta",
        "links.0.delay",
        "optimizer.momentum",
        "engine.silent_steps",
        "nothing",
    ):
        assert not takes_whole_numbers_alone(path, config), path
