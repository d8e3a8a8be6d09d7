"""(f) Four live agents, and PyTorch's own ways to train together, against bare loops with the same sleeps."""

import math
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from experiments.benchmarks.live import longest_gap_after_a_kill
from experiments.benchmarks.measuring import Figure, run_times, steps_per_second
from ray_pcasgd.runs.settings.loading import load_config

AGENTS, FAST, SLOW = 4, 0.02, 0.22
PERIOD = 8
"""Steps between two averages of LocalSGD."""
STEPS = 150
"""Of the fast ones; then a run is over."""
SHORT_STEPS = 40
"""Of what waits for a slow one."""
SKIPPED = 10
OURS: dict[str, Any] = {
    "pc-asgd": "pc-asgd",
    "d-asgd": "d-asgd",
    "ad-psgd": "ad-psgd",
    "ad-psgd with A2CiD2": {"name": "ad-psgd", "acceleration": "acid"},
}
TOGETHER: dict[str, Any] = {"topology": "ring", "links": []}
"""Nothing is injected on links, whose default delay would be 10 seconds between pairs."""
WAITING = ("DDP", "LocalSGD, every 8 steps", "gossip with both neighbors of a ring")

Step = Callable[[], None]


def benchmark(repeats: int) -> Iterator[Figure]:
    """Yield the steps a second of three fast agents: with a fourth that is as fast, then with one that is slow."""
    fourths = {"four agents of 20 ms a step": FAST, "three of 20 ms a step beside one of 220 ms": SLOW}
    for name, fourth in fourths.items():
        rounds = [_round(fourth) for _ in range(repeats)]
        for way in (*OURS, *WAITING):
            ratios = [rates[way] / rates["bare"] for rates in rounds]
            ours, bare = (statistics.median(rates[key] for rates in rounds) for key in (way, "bare"))
            yield Figure(
                f"{way}{', live' if way in OURS else ' (gloo)'}, {name}",
                statistics.median(ratios),
                min(ratios),
                max(ratios),
                ours,
                bare,
                "agent-steps/s",
                "bare loops with the same sleeps",
            )


def gaps_after_a_kill(repeats: int) -> dict[str, dict[str, float]]:
    """Return by algorithm the longest time between two steps of the fast agents that live on, beside a slow one.

    Who is killed is agent 1, one of those that answer in AD-PSGD: others wait for what it was asked.
    """
    sleeps = [FAST] * (AGENTS - 1) + [SLOW]
    rounds = [
        {
            name: longest_gap_after_a_kill(sleeps, killed=1, watched=(0, 2), algorithm=algorithm, **TOGETHER)
            for name, algorithm in OURS.items()
        }
        for _ in range(repeats)
    ]
    found = {name: [gaps[name] for gaps in rounds] for name in OURS}
    return {name: {"median": statistics.median(gaps), "max": max(gaps)} for name, gaps in found.items()}


def _round(fourth: float) -> dict[str, float]:
    """Return the steps a second of the three fast agents, by each way in turn."""
    sleeps = [FAST] * (AGENTS - 1) + [fourth]
    rates = {"bare": _fast_rate(_times_of_processes("bare", sleeps))}
    for name, algorithm in OURS.items():
        rates[name] = _fast_rate(
            run_times(
                watched=range(AGENTS - 1),
                engine={"name": "ray", "mode": "live"},
                algorithm=algorithm,
                **TOGETHER,
                num_agents=AGENTS,
                num_steps=STEPS,
                compute={"stragglers": dict(enumerate(sleeps))},
            )
        )
    return rates | {name: _fast_rate(_times_of_processes(name, sleeps)) for name in WAITING}


def _fast_rate(times: list[list[float]]) -> float:
    """Return the first three agents' steps a second, as long as all of these train."""
    fast = times[: AGENTS - 1]
    end = min(own[-1] for own in fast)
    return steps_per_second([[moment for moment in own if moment <= end] for own in fast], SKIPPED)


def _times_of_processes(way: str, sleeps: list[float]) -> list[list[float]]:
    """Return the times at which steps ended, of one process for each sleep."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(AGENTS), context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    steps = [SHORT_STEPS if way in WAITING and sleeps[-1] > FAST else STEPS] * AGENTS
    if way == "bare":  # as many as it takes in the time of the others
        steps[-1] = math.ceil(STEPS * FAST / sleeps[-1]) + SKIPPED
    arguments = (way, sleeps, port, barrier, queue)
    processes = [context.Process(target=_process, args=(rank, steps[rank], *arguments)) for rank in range(AGENTS)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(AGENTS)]


def _process(rank: int, steps: int, way: str, sleeps: list[float], port: int, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if way != "bare":
        dist.init_process_group("gloo", rank=rank, world_size=AGENTS)
    step = _step_of(way, rank)
    barrier.wait()
    times = []
    for _ in range(steps):
        time.sleep(sleeps[rank])
        step()
        times.append(time.perf_counter())
    queue.put((rank, times))
    barrier.wait()  # nobody waits for one who is gone
    if way != "bare":
        dist.destroy_process_group()


def _step_of(way: str, rank: int) -> Step:
    """Return what takes one step on the digits' MLP, and shares it with the others in one of PyTorch's ways."""
    config = load_config(None, changes={"engine": "local"})
    data = config.task.load()
    model = config.task.build_model(data, 0)
    module = DistributedDataParallel(model) if way == "DDP" else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = config.task.batches(data, np.arange(len(data.train)), config.batch_size, 0, rank)
    averager = PeriodicModelAverager(period=PERIOD) if way.startswith("LocalSGD") else None

    def step() -> None:
        batch = batches.next()
        optimizer.zero_grad()
        loss = config.task.loss_of(module, batch)
        loss.backward()
        optimizer.step()
        loss.item()
        if averager is not None:
            averager.average_parameters(model.parameters())
        elif way.startswith("gossip"):
            _gossip(model, rank)

    return step


def _gossip(model: torch.nn.Module, rank: int) -> None:
    """Average with both neighbors on a ring."""
    with torch.no_grad():
        own = parameters_to_vector(model.parameters())
        neighbors = [(rank + 1) % AGENTS, (rank - 1) % AGENTS]
        read = [torch.empty_like(own) for _ in neighbors]
        under_way = [dist.isend(own, k) for k in neighbors] + [
            dist.irecv(into, k) for into, k in zip(read, neighbors, strict=True)
        ]
        for one in under_way:
            assert one is not None
            one.wait()
        vector_to_parameters((own + read[0] + read[1]) / 3, model.parameters())
