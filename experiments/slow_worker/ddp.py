"""The same training by Ray Train's ``TorchTrainer``: DistributedDataParallel over gloo, one process a worker."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch.nn.utils import parameters_to_vector

from experiments.slow_worker.track import Noted, Step, Track
from ray_pcasgd.config import Config
from ray_pcasgd.runs.plan.plan import make_plan

STOP_EVERY = 4
"""Steps after which the workers agree on whether time is up."""


def run_ddp(config: Config, seconds: float) -> Track:
    """Train for so many seconds after the first step; the algorithm is DDP's, all else is the configuration's."""
    plan = make_plan(config)
    with tempfile.TemporaryDirectory() as folder:
        called = time.time()
        trainer = TorchTrainer(
            train,
            train_loop_config={
                "config": config,
                "data": ray.put(plan.data),
                "shards": [spec.shard for spec in plan.specs[: config.num_agents]],
                "extra_seconds": [config.compute.extra_sampler(config.seed, k)(0) for k in range(config.num_agents)],
                "seconds": seconds,
                "folder": folder,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.num_agents, use_gpu=False, resources_per_worker={"CPU": 0.5}
            ),
            torch_config=TorchConfig(backend="gloo"),
            run_config=ray.train.RunConfig(storage_path=folder, name="ddp"),
        )
        cpu_before = time.process_time()
        trainer.fit()
        cpu = time.process_time() - cpu_before
        ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(config.num_agents)]
    steps = [Step(k, end, end - start) for k, rank in enumerate(ranks) for start, end, _ in rank["steps"]]
    together = zip(*[rank["steps"] for rank in ranks], strict=True)
    updates = [(max(end for _, end, _ in one), sum(loss for *_, loss in one) / len(one)) for one in together]
    noted = [Noted(0, at, weights) for at, weights in ranks[0]["noted"]]
    return Track(ranks[0]["started_at"] - called, steps, updates, noted, cpu / seconds)


def train(settings: dict[str, Any]) -> None:
    """Train as one of the workers: the same weights to begin with, the same mini-batches, the same step size."""
    config: Config = settings["config"]
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(1)
    data = ray.get(settings["data"])
    model = prepare_model(config.task.build_model(data, config.seed))
    batches = config.task.batches(data, settings["shards"][rank], config.batch_size, config.seed, rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.step_size.at(0))
    steps: list[tuple[float, float, float]] = []
    noted: list[tuple[float, torch.Tensor]] = []
    dist.barrier()
    started_at = time.time()
    while not (len(steps) % STOP_EVERY == 0 and is_over(started_at + settings["seconds"])):
        began = time.time() - started_at
        if extra := settings["extra_seconds"][rank]:
            time.sleep(extra)
        inputs, targets = batches.next()
        optimizer.zero_grad()
        loss = config.task.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        steps.append((began, time.time() - started_at, loss.item()))
        if rank == 0 and len(steps) % config.evaluate_every == 0:
            noted.append((time.time() - started_at, parameters_to_vector(model.parameters()).detach().clone()))
    result = {"started_at": started_at, "steps": steps, "noted": noted, "process": os.getpid()}
    torch.save(result, Path(settings["folder"]) / f"{rank}.pt")


def is_over(deadline: float) -> bool:
    """Return whether time is up for any worker; all of them ask."""
    flag = torch.tensor(float(time.time() > deadline))
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)
