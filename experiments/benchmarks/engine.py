"""(a) Steps of the ray engine against the same number of processes that each run a bare PyTorch loop."""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.measuring import Figure, paired, run_times, steps_per_second
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.tasks.precision import computing
from ray_pcasgd.tasks.task import TaskData
from ray_pcasgd.tasks.trees import moved

SKIPPED = 2


def images() -> tuple[torch.utils.data.TensorDataset, torch.utils.data.TensorDataset]:
    """Return images of CIFAR-10's shape; what is on them does not matter for speed."""
    random = np.random.default_rng(0)
    pixels = torch.from_numpy(random.integers(0, 256, size=(2048, 3, 32, 32), dtype=np.uint8))
    labels = torch.from_numpy(random.integers(0, 10, size=2048))
    return (torch.utils.data.TensorDataset(pixels, labels), torch.utils.data.TensorDataset(pixels[:10], labels[:10]))


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures of ResNet-20 on 2 agents."""
    resnet = {"task": {"data": images(), "model": "resnet-20"}, "batch_size": 64, "num_steps": 14, "num_agents": 2}
    return [case(f"ResNet-20, batch 64, 2 agents, {mode}", resnet, mode, repeats) for mode in ("planned", "live")]


def case(
    name: str, changes: dict[str, Any], mode: str, repeats: int, skipped: int = SKIPPED, bare: int | None = None
) -> Figure:
    """Return the figure of some settings, without the first steps; bare loops may take fewer of them."""
    engine = {"name": "ray", "mode": mode}
    of_bare = changes | {"num_steps": bare or changes["num_steps"]}
    return paired(
        f"{load_config(None, changes=changes).algorithm.name}, {name}",
        lambda: steps_per_second(run_times(**changes, engine=engine), skipped),
        lambda: steps_per_second(bare_times(of_bare), SKIPPED),
        "agent-steps/s",
        "bare PyTorch loops in as many processes",
        repeats,
    )


def bare_times(changes: dict[str, Any]) -> list[list[float]]:
    """Return the wall times of the steps of bare loops, one process each, on the local engine's device."""
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
    step = bare_step(config, data)
    barrier.wait()
    times = []
    for _ in range(config.num_steps):
        step()
        times.append(time.perf_counter())
    queue.put(times)


def bare_step(config: Any, data: TaskData) -> Callable[[], float]:
    """Return what takes one step of a plain PyTorch loop on the local engine's device, and returns its loss."""
    device = torch.device(config.engine.device)
    model = config.task.build_model(data, 0).to(device)
    optimizer = _optimizer(config, model)
    batches = config.task.batches(data, np.arange(len(data.train)), config.batch_size, 0, 0)

    def step() -> float:
        batch = moved(batches.next(), device)
        optimizer.zero_grad()
        with computing(config.precision, device):
            loss = config.task.loss_of(model, batch)
        loss.backward()
        if config.gradient_clipping is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping.norm)
        optimizer.step()
        return float(loss.item())

    return step


def _optimizer(config: Any, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return torch's own optimizer for settings of SGD or AdamW."""
    own = config.optimizer
    if own.name == "sgd":
        return torch.optim.SGD(model.parameters(), 0.1, own.momentum, weight_decay=own.weight_decay)
    matrices, rest = ([p for p in model.parameters() if (p.ndim > 1) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": own.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.001)
