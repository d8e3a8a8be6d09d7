"""(g) What an agent's process takes up in memory, against a bare PyTorch process that trains the same model."""

import multiprocessing
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.engine import bare_step, images
from experiments.benchmarks.measuring import Figure
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config

LOOKED_AT = 12
"""The step at which agents are looked at: late versions have been read by then."""


def benchmark(repeats: int) -> Iterator[Figure]:
    """Yield the memory of one of two agents, next to a bare loop's: the digits' MLP and ResNet-20 and ResNet-18."""
    vision = {"data": images()}
    tasks: dict[str, dict[str, Any]] = {
        "digits MLP": {},
        "ResNet-20, 0.27 M parameters": {"task": vision | {"model": "resnet-20"}, "batch_size": 16},
        "ResNet-18, 11.2 M parameters": {
            "task": vision | {"model": {"name": "custom", "factory": RESNET_18}},
            "batch_size": 16,
        },
    }
    for task, changes in tasks.items():
        settings = {"num_agents": 2, "num_steps": 16, "evaluate_every": 10**6, **changes}
        for kind in ("Rss", "Pss"):
            pairs = [(_agent(settings, kind), _bare(settings, kind)) for _ in range(repeats)]
            ratios = [ours / bare for ours, bare in pairs]
            ours, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
            yield Figure(
                f"an agent's memory, {MEANINGS[kind]}, pc-asgd, planned, {task}",
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                ours,
                bare,
                "MB",
                "a bare PyTorch process's",
            )


RESNET_18 = "experiments.resnet18.network:cifar_resnet18"
MEANINGS = {"Rss": "all of it", "Pss": "shared pages in equal parts"}


def _megabytes(process: int | str, kind: str) -> float:
    found = re.search(rf"^{kind}:\s+(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def _agent(settings: dict[str, Any], kind: str) -> float:
    """Return the memory of agent 0 in a run, as it is at one step."""
    plan = make_plan(load_config(None, changes=settings | {"engine": {"name": "ray"}}))
    process, found = 0, 0.0
    for report in plan.engine().run(plan.specs, plan.data):
        if isinstance(report, Event) and report.kind == "agent_started" and report.agent == 0:
            said = re.match(r"process (\d+)", report.detail)
            assert said
            process = int(said[1])
        elif isinstance(report, StepReport) and report.row.agent == 0 and report.row.step <= LOOKED_AT:
            found = max(found, _megabytes(process, kind))
    return found


def _bare(settings: dict[str, Any], kind: str) -> float:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_bare_process, args=(settings, kind, queue))
    process.start()
    found = float(queue.get())
    process.join()
    return found


def _bare_process(settings: dict[str, Any], kind: str, queue: Any) -> None:
    torch.set_num_threads(1)
    config = load_config(None, changes=settings | {"engine": "local"})
    step = bare_step(config, config.task.load())
    for _ in range(LOOKED_AT):
        step()
    queue.put(_megabytes("self", kind))
