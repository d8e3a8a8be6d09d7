"""(b) Exchanging a 50 MB message between two agents, against copying the same bytes, and against gloo."""

import multiprocessing
import time
from typing import Any

import numpy as np
import ray
import torch

from experiments.benchmarks.measuring import Figure, paired
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.transport import RayTransport

MEGABYTES = 50
EXCHANGES = 10


class Peer:
    """One side of the exchange: takes a message in and copies it into its own weights, as an agent on a GPU would."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.weights, self.buffers = torch.zeros(MEGABYTES * 250_000), torch.zeros(0)
        self.transport = RayTransport(0)

    def receive(self, contents: Contents) -> None:
        size = self.weights.numel()
        self.weights.copy_(self.transport.open("weights", contents.weights, size, "float32", torch.device("cpu")))

    def exchange(self, other: Any) -> float:
        """Return bytes a second over several messages, each taken in before the next one is sent."""
        began = time.perf_counter()
        for _ in range(EXCHANGES):
            ray.get(other.receive.remote(self.transport.publish(self.weights, self.buffers)))
        return EXCHANGES * self.weights.nbytes / (time.perf_counter() - began)


def benchmark(repeats: int) -> list[Figure]:
    """Return the two figures."""
    remote = ray.remote(num_cpus=0.5)(Peer)
    peers = [remote.remote(), remote.remote()]

    def ours() -> float:
        return float(ray.get(peers[0].exchange.remote(peers[1])))

    for _ in range(6):
        ours()  # until the whole of the object store has been touched once, as in a run of more than some seconds
    figures = [
        paired("50 MB message", ours, _copy, "bytes/s", "numpy.copyto of the same bytes", repeats),
        paired("50 MB message", ours, _gloo, "bytes/s", "torch.distributed gloo send/recv", repeats),
    ]
    for peer in peers:
        ray.kill(peer)
    return figures


def _copy() -> float:
    source = np.ones(MEGABYTES * 250_000, dtype=np.float32)
    target = np.zeros_like(source)
    began = time.perf_counter()
    for _ in range(EXCHANGES):
        np.copyto(target, source)
    return EXCHANGES * source.nbytes / (time.perf_counter() - began)


def _gloo() -> float:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    port = _free_port()
    processes = [context.Process(target=_gloo_peer, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    rate = float(queue.get())
    for process in processes:
        process.join()
    return rate


def _gloo_peer(rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    weights, answer = torch.zeros(MEGABYTES * 250_000), torch.zeros(1)
    began = 0.0
    for exchange in range(EXCHANGES + 1):
        if exchange == 1:
            began = time.perf_counter()
        if rank == 0:
            torch.distributed.send(weights, 1)
            torch.distributed.recv(answer, 1)
        else:
            torch.distributed.recv(weights, 0)
            torch.distributed.send(answer, 0)
    if rank == 0:
        queue.put(EXCHANGES * weights.nbytes / (time.perf_counter() - began))
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
