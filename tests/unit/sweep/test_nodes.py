"""Whether nodes see a sweep's folder."""

from pathlib import Path

import pytest

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.sweep.nodes import Mark, refusal, unseeing


def test_a_folder_of_the_same_name_elsewhere_is_another_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    mark, other = Mark.put(tmp_path / "one"), Mark.put(tmp_path / "two")
    assert mark.is_seen()
    mark.require()
    (tmp_path / "one").rename(tmp_path / "aside")
    assert not mark.is_seen()
    # On another machine, a sweep of this name may have been run before.
    (tmp_path / "two").rename(tmp_path / "one")
    assert not mark.is_seen()
    with pytest.raises(RunError, match=r"^node [0-9.]+ does not see the sweep's folder /.*one; allowed are a folder"):
        mark.require()
    (tmp_path / "one").rename(tmp_path / "two")
    assert other.is_seen()
    other.remove()
    assert list((tmp_path / "two").iterdir()) == []


def test_each_node_that_does_not_see_the_folder_is_named() -> None:
    nodes = {"b": "10.0.0.1", "a": "10.0.0.2", "c": "10.0.0.3"}
    assert unseeing(nodes, dict.fromkeys(nodes, True)) == []
    blind = unseeing(nodes, {"a": False, "b": True, "c": "no answer within 60 seconds"})
    assert blind == ["10.0.0.2", "10.0.0.3 (no answer within 60 seconds)"]
    assert refusal("/home/me/runs", blind) == (
        "storage_path = '/home/me/runs': the sweep's folder is not seen by 2 nodes (10.0.0.2, 10.0.0.3 (no answer "
        "within 60 seconds)), whose runs would be lost; allowed are a folder that all nodes share, and remote storage, "
        "as s3://bucket/sweeps"
    )
