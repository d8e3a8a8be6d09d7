"""Agents' processes are forked of one that has imported torch; without it they start plainly."""

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from experiments.faults.injecting import Fault, kill
from ray_pcasgd.engines.ray.forkserver.owner import ForkServerProcess, fork_server
from ray_pcasgd.engines.ray.settings import RaySettings
from ray_pcasgd.records import Event
from ray_pcasgd.runs.trainer import Trainer
from tests.ray.crawling import Release


@ray.remote(num_cpus=0)
class Witness:
    """Says what its process is like."""

    def seen(self) -> dict[str, Any]:
        import locale
        import random

        import numpy as np

        return {
            "parent": os.getppid(),
            "number": os.getpid(),
            "keeps what it frees": "libjemalloc" in Path("/proc/self/maps").read_text(),
            "drawn": (random.random(), np.random.random(), torch.initial_seed()),  # noqa: NPY002 - the global ones
            "alike": {
                "leads its group": os.getpgid(0) == os.getpid(),
                "session": os.getsid(0),
                "niceness": os.getpriority(os.PRIO_PROCESS, 0),
                "out of memory": Path("/proc/self/oom_score_adj").read_text(),
                "signals": [line for line in Path("/proc/self/status").read_text().splitlines() if "Sig" in line],
                "variables": {k: v for k, v in os.environ.items() if k != "RAY_JOB_ID"},  # of workers kept ready
                "path": sys.path,
                "folder": str(Path.cwd()),
                "script": (sys.argv[0], sys.modules["__main__"].__dict__["__file__"], sys.executable, sys.prefix),
                "streams": [(f.encoding, f.errors, f.line_buffering) for f in (sys.stdin, sys.stdout, sys.stderr)],
                "flags": str(sys.flags),
                "locale": locale.setlocale(locale.LC_ALL),
                "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
                "uses a GPU": torch.cuda.is_initialized(),
                "title": Path("/proc/self/cmdline").read_text().split(".")[0],
            },
        }


def witness(interpreter: str | None = None) -> Any:
    options: dict[str, Any] = {} if interpreter is None else {"runtime_env": {"py_executable": interpreter}}
    return Witness.options(**options).remote()  # type: ignore[attr-defined]


def gone(process: int) -> bool:
    """Wait until a process that was given as a descriptor has ended."""
    return bool(select.select([process], [], [], 60)[0])


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def server() -> Iterator[ForkServerProcess]:
    server = ForkServerProcess(1)
    yield server
    server.close()


@pytest.mark.usefixtures("ray_cluster")
def test_a_forked_process_is_like_a_plain_one_and_outlives_its_server(server: ForkServerProcess) -> None:
    actors = [witness(server.interpreter), witness(server.interpreter), witness()]
    first, second, plain = ray.get([actor.seen.remote() for actor in actors])
    assert first["parent"] == second["parent"] == server.number != plain["parent"]
    assert first["alike"] == second["alike"] == plain["alike"]
    assert first["keeps what it frees"]
    assert not plain["keeps what it frees"]
    assert all(len(set(drawn)) == 3 for drawn in zip(first["drawn"], second["drawn"], plain["drawn"], strict=True))
    forked = os.pidfd_open(first["number"])
    ray.kill(actors[0])
    assert gone(forked)
    ended = os.pidfd_open(server.number)
    os.kill(server.number, signal.SIGKILL)
    assert gone(ended)
    assert ray.get(actors[1].seen.remote())["number"] == second["number"]
    later = witness(server.interpreter)
    assert ray.get(later.seen.remote())["parent"] == plain["parent"]
    for actor in (*actors[1:], later):
        process = os.pidfd_open(ray.get(actor.seen.remote())["number"])
        ray.kill(actor)
        assert gone(process)


class Parents(Fault):
    """Notes whose child each agent's process was when it had started, one after another."""

    def __init__(self) -> None:
        super().__init__(20, self.take_away)
        self.parents: list[int] = []

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if event.kind == "agent_started":
            self.parents.append(parent_of(self.processes[event.agent]))

    @staticmethod
    def take_away(fault: Fault) -> None:
        os.kill(fork_server(RaySettings()).number, signal.SIGKILL)
        kill(1)(fault)


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_whose_server_is_killed_goes_on_and_lost_agents_come_back_plainly(tmp_path: Path) -> None:
    parents = Parents()
    came_back = Release(tmp_path / "gate", lambda _: len(parents.parents) > 2)
    settings: dict[str, Any] = {"num_agents": 2, "num_steps": 80, "evaluate_every": 20, "task": came_back.task}
    settings |= {"checkpoint": {"state_seconds": 0}, "max_failures": 1}
    server = fork_server(RaySettings())
    run = Trainer(settings, storage_path=str(tmp_path / "ray"), engine="ray", callbacks=[parents, came_back]).fit()
    local = Trainer(settings, storage_path=str(tmp_path / "local"), engine={"name": "local", "batched": "never"}).fit()
    assert run.error is None
    first, second, *after = parents.parents
    assert first == second == server.number
    assert len(set(after)) == 1
    assert server.number not in after
    assert run.checkpoint is not None
    assert local.checkpoint is not None
    weights = local.checkpoint.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.checkpoint.state_dict().items())
