"""Whether all nodes of a cluster see a sweep's folder: what a trial writes into another one would be lost."""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_pcasgd.base.errors import RunError
from ray_pcasgd.base.text import one_line
from ray_pcasgd.runs.settings.errors import yaml_value
from ray_pcasgd.runs.settings.loading import SettingsError

_FILE = ".mark"
_ANSWER_SECONDS = 60.0
_ALLOWED = "allowed are a folder that all nodes share, and remote storage, as s3://bucket/sweeps"


class Mark(NamedTuple):
    """A file in a sweep's folder by which other processes know that they see this folder, and none of its name."""

    folder: str
    token: str

    @classmethod
    def put(cls, folder: Path) -> "Mark":
        """Write the file; one that an interrupted sweep left is written over."""
        mark = cls(str(folder), secrets.token_hex(16))
        (folder / _FILE).write_text(mark.token, encoding="ascii")
        return mark

    def remove(self) -> None:
        """Remove the file, unless another one has taken its place, as of a sweep that goes on elsewhere."""
        if self.is_seen():
            (Path(self.folder) / _FILE).unlink(missing_ok=True)

    def is_seen(self) -> bool:
        """Return whether this process sees the folder."""
        try:
            return (Path(self.folder) / _FILE).read_text(encoding="ascii") == self.token
        except (OSError, ValueError):
            return False

    def require(self) -> None:
        """Raise ``RunError`` where a trial does not see the folder, as on a node that joined the cluster later."""
        if not self.is_seen():
            node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            raise RunError(f"node {node} does not see the sweep's folder {self.folder}; {_ALLOWED}")


def check_nodes(mark: Mark, storage_path: str) -> None:
    """See to it that each node of the cluster sees a sweep's folder, before any trial starts.

    Raises:
        SettingsError: some do not, or do not answer.

    """
    known = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in known if node["Alive"]}
    if len(nodes) > 1 and (blind := unseeing(nodes, _answers(mark, nodes))):
        raise SettingsError(refusal(storage_path, blind))


def unseeing(nodes: Mapping[str, str], answers: Mapping[str, bool | str]) -> list[str]:
    """Return in words which nodes, addresses by their ids, have not answered that they see a folder.

    An answer is whether a node sees it, or why it does not say so.
    """
    return [
        address if answers[node] is False else f"{address} ({answers[node]})"
        for node, address in sorted(nodes.items(), key=lambda one: one[1])
        if answers[node] is not True
    ]


def refusal(storage_path: str, blind: Sequence[str]) -> str:
    """Return why a sweep is refused that some nodes do not see.

    >>> print(refusal("runs", ["10.0.0.2"]).partition(";")[0])
    storage_path = 'runs': the sweep's folder is not seen by node 10.0.0.2, whose runs would be lost
    """
    who = f"node {blind[0]}" if len(blind) == 1 else f"{len(blind)} nodes ({', '.join(blind)})"
    return (
        f"storage_path = {yaml_value(storage_path)}: the sweep's folder is not seen by {who}, whose runs would be "
        f"lost; {_ALLOWED}"
    )


def _answers(mark: Mark, nodes: Mapping[str, str]) -> dict[str, bool | str]:
    """Ask every node, by a task that is bound to it and takes nothing from the trials."""
    asked: dict[Any, str] = {
        _is_seen.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(mark): node
        for node in nodes
    }
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_SECONDS)
    answers: dict[str, bool | str] = dict.fromkeys(nodes, f"no answer within {_ANSWER_SECONDS:g} seconds")
    for reference in done:
        try:
            answers[asked[reference]] = ray.get(reference)
        except Exception as error:  # whatever keeps a trial from running there, too
            answers[asked[reference]] = one_line(error, 200)
    return answers


@ray.remote(num_cpus=0, max_retries=0)
def _is_seen(mark: Mark) -> bool:
    return mark.is_seen()
