"""(a) Steps of the ray engine against the same number of processes that each run a bare PyTorch loop."""

import multiprocessing
import time
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.measuring import Figure, paired, run_times, steps_per_second
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.tasks.task import TaskData

SKIPPED = 2


def images() -> tuple[torch.utils.data.TensorDataset, torch.utils.data.TensorDataset]:
    """Return images of CIFAR-10's shape; what is on them does not matter for speed."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, size=(2048, 3, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(random.integers(0, 10, size=2048))
    return (torch.utils.data.TensorDataset(pixels, labels), torch.utils.data.TensorDataset(pixels[:10], labels[:10]))


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures of ResNet-20 on 2 agents and of the digits' MLP on 2 and 8."""
    resnet = {"task": {"data": images(), "model": "resnet-20"}, "batch_size": 64, "num_steps": 14, "num_agents": 2}
    digits = {"num_steps": 300}
    cases = [
        ("ResNet-20, batch 64, 2 agents, planned", resnet, "planned"),
        ("ResNet-20, batch 64, 2 agents, live", resnet, "live"),
        ("digits MLP, batch 16, 2 agents, planned", digits | {"num_agents": 2}, "planned"),
        ("digits MLP, batch 16, 8 agents, planned", digits | {"num_agents": 8}, "planned"),
        ("digits MLP, batch 16, 8 agents, live", digits | {"num_agents": 8}, "live"),
    ]
    return [_case(name, changes, mode, repeats) for name, changes, mode in cases]


def _case(name: str, changes: dict[str, Any], mode: str, repeats: int) -> Figure:
    engine = {"name": "ray", "mode": mode}
    return paired(
        f"pc-asgd, {name}",
        lambda: steps_per_second(run_times(**changes, engine=engine), SKIPPED),
        lambda: steps_per_second(_bare_times(changes), SKIPPED),
        "agent-steps/s",
        "bare PyTorch loops in as many processes",
        repeats,
    )


def _bare_times(changes: dict[str, Any]) -> list[list[float]]:
    context = multiprocessing.get_context("spawn")
    config = load_config(None, changes={"engine": "local", **changes})
    data = config.task.load()
    barrier, queue = context.Barrier(config.num_agents), context.Queue()
    arguments = (config, data, barrier, queue)
    processes = [context.Process(target=_bare_loop, args=arguments) for _ in range(config.num_agents)]
    for process in processes:
        process.start()
    times = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return times


def _bare_loop(config: Any, data: TaskData, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(1)
    model = config.task.build_model(data, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    random = torch.Generator().manual_seed(0)
    barrier.wait()
    times = []
    for _ in range(config.num_steps):
        chosen = torch.randint(len(data.train), (config.batch_size,), generator=random)
        inputs, targets = data.train.take(chosen)
        optimizer.zero_grad()
        loss = config.task.loss(model(data.normalization(inputs)), targets)
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter())
    queue.put(times)
