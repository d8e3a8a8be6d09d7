"""(b) A 50 MB message from one agent to others of its host, against copying the same bytes, and against gloo."""

import multiprocessing
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import ray
import torch

from experiments.benchmarks.measuring import Figure, paired
from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents
from ray_pcasgd.engines.ray.transport import RayTransport
from ray_pcasgd.engines.shared.door import Door

MEGABYTES = 50
EXCHANGES = 10

Way = Literal["shared", "object-store"]


class Agent:
    """One side of the exchange: opens what it is sent, as a rule reads it."""

    def __init__(self, way: Way) -> None:
        torch.set_num_threads(1)
        self.weights, self.buffers = torch.zeros(MEGABYTES * 250_000), torch.zeros(0)
        door = Door(ray.get_runtime_context().get_actor_id() or "", self) if way == "shared" else None
        self.transport = RayTransport(0, door)
        self.opened: Any = None

    def connect(self, others: Sequence[Any]) -> None:
        """Take in to whom is sent."""
        self.outbox = self.transport.outbox(dict(enumerate(others)))
        self.headers = dict.fromkeys(range(len(others)), Header(0, 1, 0.0, 0.0))

    @ray.method(concurrency_group="mail")
    def receive(self, header: Header, contents: Contents) -> None:
        self.take_in(header, contents)

    def take_in(self, header: Header, contents: Contents | None) -> None:
        assert contents is not None
        size = self.weights.numel()
        self.transport.check("weights", contents.weights, size)
        self.opened = self.transport.open("weights", contents.weights, size, "float32", torch.device("cpu"))

    def note_mark(self, neighbor: int, cut: int, sent: int) -> None:
        """Take nothing in."""

    def send(self) -> float:
        """Return bytes a second of several versions, each of which all have opened before the next one is sent."""
        began = time.perf_counter()
        for _ in range(EXCHANGES):
            self.outbox.send(self.headers, self.transport.publish(self.weights, self.buffers), may_skip=False)
            self.outbox.flush()
        return EXCHANGES * self.weights.nbytes / (time.perf_counter() - began)


def benchmark(repeats: int) -> list[Figure]:
    """Return the figures of one reader and of seven, and of Ray's object store."""
    copy, gloo = "numpy.copyto of the same bytes", "torch.distributed gloo send/recv"
    return [
        _figure("50 MB message, shared memory", "shared", 1, _copy, copy, repeats),
        _figure("50 MB message to 7 readers, shared memory", "shared", 7, _copy, copy, repeats),
        _figure("50 MB message, object store", "object-store", 1, _copy, copy, repeats),
        _figure("50 MB message, shared memory", "shared", 1, _gloo, gloo, repeats),
    ]


def _figure(name: str, way: Way, readers: int, reference: Any, against: str, repeats: int) -> Figure:
    remote: Any = ray.remote(num_cpus=0, concurrency_groups={"mail": 1})(Agent)
    agents = [remote.remote(way) for _ in range(1 + readers)]
    ray.get([agent.connect.remote([]) for agent in agents[1:]])
    ray.get(agents[0].connect.remote(agents[1:]))

    def ours() -> float:
        return float(ray.get(agents[0].send.remote()))

    try:
        for _ in range(3):
            ours()  # until the memory has been touched once, as in a run of more than some seconds
        return paired(name, ours, reference, "bytes/s", against, repeats)
    finally:
        for agent in agents:
            ray.kill(agent)


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
