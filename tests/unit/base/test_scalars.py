"""One rule for numbers, booleans and texts: in YAML files, behind ``--set`` and in Python."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ray_pcasgd.base.scalars import number
from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, parse_assignment, read_yaml
from ray_pcasgd.runs.storage.folder import RunFolder

PLAIN: list[tuple[str, Any]] = [
    ("5", 5),
    ("+5", 5),
    ("-5", -5),
    ("010", 10),
    ("007", 7),
    ("08", 8),
    ("0x10", 16),
    ("0o17", 15),
    ("5.0", 5.0),
    ("5.", 5.0),
    (".5", 0.5),
    ("-.5", -0.5),
    ("1e-3", 0.001),
    ("1E-3", 0.001),
    ("1e3", 1000.0),
    ("1.5e1", 15.0),
    ("1.5e+1", 15.0),
    (".inf", math.inf),
    ("-.Inf", -math.inf),
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("", None),
    ("1:30", "1:30"),
    ("1_000", "1_000"),
    ("1,5", "1,5"),
    ("0b1", "0b1"),
    ("-0x1", "-0x1"),
    ("1e", "1e"),
    ("e3", "e3"),
    (".", "."),
    ("inf", "inf"),
    ("nan", "nan"),
    ("yes", "yes"),
    ("off", "off"),
    ("tRUE", "tRUE"),
    ("none", "none"),
    ("2024-05-01", "2024-05-01"),
    ("2024-05-01 10:00:00", "2024-05-01 10:00:00"),
    ("1.2.3", "1.2.3"),
    ("٣", "٣"),
    ("'5'", "5"),
    ('"1e3"', "1e3"),
    ("'true'", "true"),
]


@pytest.mark.parametrize(("text", "value"), PLAIN)
def test_a_scalar_is_the_same_in_a_file_and_behind_set(text: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(f"key: {text}\n", encoding="utf-8")
    for found in (read_yaml(tmp_path / "some.yaml")["key"], parse_assignment(f"key={text}")["key"]):
        assert found == value
        assert type(found) is type(value)


def test_not_a_number_is_one_of_the_floating_point_numbers() -> None:
    assert math.isnan(parse_assignment("key=.nan")["key"])
    assert number(".nan") is not None


@pytest.mark.parametrize("text", ["9" * 5000, "!!int x", "!!float 1:30"])
def test_what_is_no_number_in_spite_of_its_tag_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="the value is not YAML"):
        parse_assignment(f"seed={text}")


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12) | st.from_regex(r"[0-9eE.+xo_:-]{1,6}"))
def test_every_text_that_is_written_is_read_as_that_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    tree = {"key": text, text: 1}
    file = tmp_path_factory.getbasetemp() / "text.yaml"
    file.write_text(write_yaml(tree), encoding="utf-8")
    assert read_yaml(file) == tree
    assert yaml.safe_load(write_yaml(tree)) == tree  # by YAML 1.1, as others read it


@given(st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.booleans() | st.none())
def test_every_value_that_is_written_is_read_as_that_value(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "value.yaml"
    file.write_text(write_yaml({"key": value}), encoding="utf-8")
    found = read_yaml(file)["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("name", ["1e3", "0o17", "20240501", "007", "1.5e1"])
def test_a_name_that_looks_like_a_number_is_written_so_that_it_stays_a_name(name: str, tmp_path: Path) -> None:
    config = load_config({"name": name, "storage_path": str(tmp_path)})
    assert load_config(RunFolder.create(config).path / "config.yaml") == config


NUMBERS: list[tuple[str, Any, str]] = [
    ("num_agents", "'8'", "num_agents = '8': allowed is a whole number; write 8, without quotes"),
    ("num_agents", "true", "num_agents = true: allowed is a whole number"),
    ("num_agents", "1_0", "num_agents = '1_0': allowed is a whole number; write 10"),
    ("num_agents", "1:30", "num_agents = '1:30': allowed is a whole number"),
    ("num_agents", "8.5", "num_agents = 8.5: allowed is a whole number"),
    ("num_agents", "1e300", "num_agents = 1e+300: allowed is a whole number of fewer digits"),
    ("optimizer.momentum", "'0.9'", "optimizer.momentum = '0.9': allowed is a number; write 0.9, without quotes"),
    ("optimizer.momentum", "0,9", "optimizer.momentum = '0,9': allowed is a number; write 0.9"),
    ("optimizer.momentum", "false", "optimizer.momentum = false: allowed is a number"),
    ("optimizer.nesterov", "on", "optimizer.nesterov = 'on': allowed are true and false; write true"),
    ("optimizer.nesterov", "0", "optimizer.nesterov = 0: allowed are true and false; write false"),
    (
        "optimizer.nesterov",
        "'true'",
        "optimizer.nesterov = 'true': allowed are true and false; write true, without quo",
    ),
    (
        "step_size",
        "'0.1'",
        "step_size = '0.1': allowed are numbers, constant, linear, cosine, multi-step, stairs, "
        "warmup-stable-decay, one-cycle, inverse-sqrt; write",
    ),
    ("step_size", "true", "step_size = true: allowed is a number"),
    ("compute.law", "'1'", "compute.law = '1': is text; allowed is 1 without quotes, or with a unit"),
    ("algorithm.theta", "['0.1', 0.2]", "algorithm.theta.0 = '0.1': allowed is a number; write 0.1, without quotes"),
    ("clusters", "[['0', 1]]", "clusters.0.0 = '0': allowed is a whole number; write 0, without quotes"),
    ("checkpoint.state_seconds", "none", "checkpoint.state_seconds = 'none': allowed is a number; write null"),
    ("name", "20240501", "name = 20240501: allowed is text; put it in quotes"),
]


@pytest.mark.parametrize(("path", "text", "expected"), NUMBERS)
def test_a_value_of_another_kind_is_refused_wherever_it_is_given(
    path: str, text: str, expected: str, tmp_path: Path
) -> None:
    tree: Any = parse_assignment(f"{path}={text}")
    (tmp_path / "run.yaml").write_text(write_yaml(tree), encoding="utf-8")
    for source, assignments in ((tmp_path / "run.yaml", []), (tree, []), (None, [f"{path}={text}"])):
        with pytest.raises(SettingsError) as caught:
            load_config(source, assignments)
        assert str(caught.value).startswith(expected)


def test_whole_numbers_may_be_written_with_a_point_or_an_exponent_and_come_from_numpy() -> None:
    assert load_config(None, ["num_agents=5.0", "num_steps=1e3"]).num_steps == 1000
    config = load_config(
        {"num_agents": np.int64(5), "step_size": np.float32(0.5), "optimizer": {"nesterov": np.False_}}
    )
    assert (config.num_agents, config.step_size.at(0), config.optimizer.nesterov) == (5, 0.5, False)
    assert isinstance(config.num_agents, int)


def test_agents_may_be_keys_of_text_as_in_json() -> None:
    assert list(load_config({"compute": {"agents": {"3": 2.0}}}).compute.agents) == [3]
