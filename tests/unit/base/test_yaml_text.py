"""YAML as settings are written in it: what numbers and texts are, and what is refused in bounded time and memory."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_pcasgd.base.yaml_text import DEEPEST, YAMLTextError, depth_of, parse_yaml, write_yaml
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config, parse_assignment, read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.5e1", 15.0),
        ("1.5e+1", 15.0),
        ("15.", 15.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-7", -7),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-05-01", "2024-05-01"),
        ("2024-05-01 10:00:00", "2024-05-01 10:00:00"),
        ("20240501", 20240501),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'0.1'", "0.1"),
        ("1e", "1e"),
        ("=", "="),
        ("[1, {a: 2.5}]", [1, {"a": 2.5}]),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("{x: &here {a: 1}, y: {<<: *here, b: 2}}", {"x": {"a": 1}, "y": {"a": 1, "b": 2}}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


TEXTS = [
    "1e5",
    "12e4567",
    "010",
    "0o17",
    "1:30",
    "2024-05-01",
    "yes",
    "~",
    "",
    "1_000",
    "<<",
    "=",
    ".5",
    "null",
    "a: b",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_written_so_that_it_stays_one(text: str) -> None:
    tree = {"name": text, "values": [text, 1e-5, 7, True, None]}
    assert parse_yaml(write_yaml(tree)) == tree
    assert yaml.safe_load(write_yaml(tree)) == tree


def laughs(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


def merged_laughs(levels: int) -> str:
    lines = ["a0: &a0 {k0: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(12), "holds more than 2,000,000 values, aliases written out"),
        (merged_laughs(12), "holds more than 2,000,000 values, aliases written out"),
        ("[" * 900 + "]" * 900, f"is nested deeper than {DEEPEST} levels"),
        ("{a: " * 900 + "1" + "}" * 900, f"is nested deeper than {DEEPEST} levels"),
        ("[" * 200_000, f"is nested deeper than {DEEPEST} levels"),
        ("\n".join(" " * n + "a:" for n in range(900)), f"is nested deeper than {DEEPEST} levels"),
        ("&a [*a]", "the alias *a stands inside of itself"),
        ("&a {b: {c: *a}}", "the alias *a stands inside of itself"),
        ("[&a 1, &a 2, *a]", "is not YAML (found duplicate anchor"),
        ("*a", "is not YAML (found undefined alias"),
        ("a: 1\nb: 2\na: 3", "a is given twice; allowed is once"),
        ("a: {b: 1, 'b': 2}", "a.b is given twice; allowed is once"),
        ("links: [{unit: steps, unit: seconds}]", "links.0.unit is given twice; allowed is once"),
        ("{1: a, 01: b}", "01 is given twice; allowed is once"),
        ("{<<: {a: 1}, <<: {b: 1}}", "<< is given twice; allowed is once"),
        ("1" + "0" * 5000, "is not YAML (a number of 5001 digits in line 1)"),
        ("!!int ten", "is not YAML ('ten' is no whole number in line 1)"),
        ("!!int 1.5", "is not YAML ('1.5' is no whole number in line 1)"),
        ("!!float ten", "is not YAML ('ten' is no number in line 1)"),
        ("!!python/object/apply:os.getcwd []", "is not YAML (could not determine a constructor for the tag"),
        ("!!python/name:os.getcwd", "is not YAML (could not determine a constructor for the tag"),
        ("!!binary aGk=", "is not YAML (could not determine a constructor for the tag"),
        ("!!set {a, b}", "is not YAML (could not determine a constructor for the tag"),
        ("!!timestamp 2024-05-01", "is not YAML (could not determine a constructor for the tag"),
        ("!mine a", "is not YAML (could not determine a constructor for the tag '!mine'"),
        ("? [a]\n: 1", "is not YAML (while constructing a mapping, found unhashable key in line 1)"),
        ("a: [1,\nb: {", "is not YAML ("),
        ("a\x00b", "is not YAML ("),
        ("a: \x1b[2J", "is not YAML ("),
        ("a: \udcff", "is not YAML (it has bytes that are no characters)"),
        ("a: 1\n--- \nb: 2", "is not YAML (expected a single document"),
        ("%TAG ! tag:yaml.org,2002:\n--- !python/none 1", "is not YAML ("),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_refused_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(YAMLTextError) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith(said)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfes\x00e\x00e\x00d\x00", "cannot be read (byte 0 is not UTF-8)"),
        (b"seed: \xff", "cannot be read (byte 6 is not UTF-8)"),
        (b"\x00" * 100, "is not YAML ("),
        (b"seed: 1\n" + b"# long\n" * 3_000_000, "cannot be read (it has more than 16,777,216 bytes)"),
        (b"- 1\n", "holds a list; allowed is a mapping of settings"),
        (b"seed: 1\nseed: 2\n", "seed is given twice; allowed is once"),
    ],
    ids=["utf-16", "latin", "zeros", "large", "list", "twice"],
)
def test_files_that_hold_no_settings(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_yaml(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_byte_order_mark_is_none_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_bytes(b"\xef\xbb\xbfseed: 1\r\n")
    assert read_yaml(tmp_path / "settings.yaml") == {"seed": 1}


def test_a_pipe_and_a_folder_hold_no_settings_of_a_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match=r"pipe: cannot be read \(it is no regular file\)"):
        read_yaml(tmp_path / "pipe")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_yaml(tmp_path)
    for pipes in (False, True):
        with pytest.raises(SettingsError, match="/dev/zero: cannot be read"):
            read_yaml(Path("/dev/zero"), pipes)


def test_settings_that_are_given_may_come_through_a_pipe() -> None:
    receiver, sender = os.pipe()
    os.write(sender, b"seed: 7\n")
    os.close(sender)
    assert load_config(f"/dev/fd/{receiver}").seed == 7
    os.close(receiver)


def test_values_on_the_command_line_are_read_alike() -> None:
    assert parse_assignment("name=2024-05-01") == {"name": "2024-05-01"}
    for value in ("[" * 900, "{a: 1, a: 2}", "1" + "0" * 5000, "!!set {a}"):
        with pytest.raises(SettingsError) as caught:
            parse_assignment(f"seed={value}")
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 500
    for key in (".".join("a" * 900), "a\x1b", "\udcff"):
        with pytest.raises(SettingsError, match="allowed is key=value") as caught:
            parse_assignment(f"{key}=1")
        assert str(caught.value).isprintable()


def test_delays_and_images_are_not_read_from_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    measured = {"name": "measured", "path": str(tmp_path / "pipe.csv")}
    with pytest.raises(SettingsError, match=r"links.0.delay.path = .*: is no file; allowed is CSV or Parquet"):
        load_config({"links": [{"delay": measured}]})
    images = {"name": "image-parquet", "train": str(tmp_path / "pipe.csv"), "test": str(tmp_path / "pipe.csv")}
    with pytest.raises(SettingsError, match=r"task.data.train = .*: no such file; allowed are Parquet files"):
        make_plan(load_config({"engine": "local", "task": {"data": images}}))


def test_trees_that_are_too_deep_are_refused_from_python_too() -> None:
    tree: dict[str, Any] = {}
    for _ in range(5000):
        tree = {"task": tree}
    with pytest.raises(SettingsError, match=f"nested deeper than {DEEPEST} levels"):
        load_config(tree)
    assert depth_of({"a": [{"b": 1}], "c": 2}) == 3
    assert depth_of(1) == 0
