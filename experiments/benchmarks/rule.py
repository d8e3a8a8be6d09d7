"""(c) The PC-ASGD rule against reading and writing the bytes that it must touch."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from experiments.benchmarks.measuring import Figure, paired
from ray_pcasgd.base.randomness import torch_generator
from ray_pcasgd.records import Own, Reads
from ray_pcasgd.rules import PCASGD

RELIABLE, STALE = 3, 4


def benchmark(repeats: int, size: int = 10_000_000) -> list[Figure]:
    """Return the figures for one and two threads."""
    return [_case(threads, repeats, size) for threads in (1, 2)]


def _case(threads: int, repeats: int, size: int) -> Figure:
    torch.set_num_threads(threads)
    step, touched = prepared(size)

    def ours() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    def bytes_alone() -> float:
        target = torch.empty_like(touched[0])
        target.copy_(touched[0])
        began = time.perf_counter()
        for vector in touched:
            target.copy_(vector)
        # A copy writes as much as it reads: n + 1 vectors are touched where 2 n were.
        return (time.perf_counter() - began) * (len(touched) + 1) / (2 * len(touched))

    ours()
    name = f"pc-asgd rule, D = {size:.0e}, 7 neighbors, {threads} thread{'s' if threads > 1 else ''}"
    figure = paired(name, ours, bytes_alone, "s", "reading and writing its bytes", repeats)
    torch.set_num_threads(1)
    return figure


def prepared(size: int, device: str = "cpu") -> tuple[Callable[[], Any], list[torch.Tensor]]:
    """Return what takes one step by the rule of 7 neighbors, and the vectors that it has to read."""
    rule, (own, reads) = PCASGD(theta=0.3), _inputs(size)
    # Numbers stay on the CPU, as an agent hands them to this rule.
    own, reads = (
        type(part)(*tree_map_only(torch.Tensor, lambda t: t.to(device) if t.numel() == size else t, tuple(part)))
        for part in (own, reads)
    )
    state = rule.init(own.weights, RELIABLE + STALE)
    # Own weights and direction, the neighbors' weights, of the stale ones direction and drift; one vector is written.
    touched = [own.weights, own.direction, *reads.weights, *reads.directions[RELIABLE:], *reads.drift[RELIABLE:]]
    return partial(rule.step, state, own, reads), touched


def _inputs(size: int) -> tuple[Own, Reads]:
    random = torch_generator(0, "benchmark")
    vectors = [torch.empty(size).normal_(generator=random) for _ in range(2 + RELIABLE + 3 * STALE)]
    own_weights, direction, *rest = vectors
    zeros = torch.zeros(size)
    weights, stale = rest[: RELIABLE + STALE], rest[RELIABLE + STALE :]
    number = RELIABLE + STALE
    own = Own(
        own_weights,
        direction,
        torch.tensor(1 / (number + 1)),
        torch.tensor(0.1),
        {"lambda_0": torch.tensor(0.04), "theta": torch.tensor(0.3)},
    )
    staleness = torch.tensor([0.0] * RELIABLE + [10.0] * STALE)
    reads = Reads(
        tuple(weights),
        (*[zeros] * RELIABLE, *stale[:STALE]),
        (*[zeros] * RELIABLE, *stale[STALE:]),
        torch.full((number,), 1 / (number + 1)),
        staleness,
        staleness,
        staleness == 0,
    )
    return own, reads
