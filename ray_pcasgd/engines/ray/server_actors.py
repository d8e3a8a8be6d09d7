"""What the live actors of workers and servers have in common with each other."""

from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header, Message, OnceMailbox
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.server import Server, ServerSpec
from ray_pcasgd.agents.worker import Worker, WorkerSpec
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.cuts import Restored
from ray_pcasgd.engines.ray.raw_tensors import extra_of, tensor_of
from ray_pcasgd.engines.ray.shell import Driving, Shell
from ray_pcasgd.engines.ray.transport import Contents, portable
from ray_pcasgd.engines.ray.validation import Expected, fetch_checked
from ray_pcasgd.records import Read, Row, StepReport
from ray_pcasgd.tasks.task import TaskData


class StarShell(Shell):
    """What workers and servers have in common: messages are parts of vectors, each read once."""

    mailbox: OnceMailbox[Contents]
    is_live = False
    """Whether servers answer their workers."""

    def find(self, read: Read) -> tuple[Read, Header, Contents]:
        """Return where a message lies; called with the lock held."""
        message = self.mailbox.get(read.neighbor, read.version)
        assert message is not None, read
        if message.contents is None:
            raise RunError(f"version {read.version} of agent {read.neighbor} had to be rejected; events.jsonl says why")
        return read, message.header, message.contents

    def fetch(self, read: Read, contents: Contents) -> Received:
        """Return a message's contents; called without the lock, since a fetch may take its time.

        Raises:
            RejectedError: they are not what they must be.

        """
        expected = self.expected
        received = Received(
            read,
            fetch_checked("weights", contents.weights, expected.weights, self.device),
            fetch_checked("buffers", contents.buffers, expected.buffers, self.device),
        )
        extra = contents.extra
        if extra is None:
            return received
        local = {name: tensor_of(given).to(self.device) for name, given in extra.local.items()}
        mask = None if extra.with_gradient is None else torch.from_numpy(extra.with_gradient).to(self.device)
        return received._replace(local=local, with_gradient=mask)


class WorkerActor(StarShell):
    """The actor of a worker."""

    spec: WorkerSpec

    def __init__(
        self,
        spec: WorkerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        first_call: int = 0,
    ) -> None:
        super().__init__(spec, OnceMailbox(spec.neighbors), driving, scheduler, first_call)
        self.worker = Worker(spec, data)

    def __repr__(self) -> str:
        return f"Worker({self.spec.agent})"

    @property
    def version(self) -> int:
        """The worker's version."""
        return self.worker.version

    @property
    def device(self) -> torch.device:
        """Where the worker computes."""
        return self.worker.replica.device

    @property
    def expected(self) -> Expected:
        """What the servers' messages must be; each has a part of the weights of its own."""
        size = None if self.spec.recipe.num_servers > 1 else self.worker.weights.numel()
        return Expected(self.spec.neighbors, None, size, self.worker.buffers.numel(), Answer if self.is_live else None)

    def part(self, server: int) -> slice:
        """Return the parameters of a server, which is counted as an agent."""
        return self.spec.recipe.part(server - self.spec.recipe.num_workers, self.worker.weights.numel())

    def begin(self) -> None:
        """Put the servers' first version into the mailbox."""
        for place, server in enumerate(self.spec.neighbors):
            buffers = self.worker.buffers if place == 0 else self.worker.buffers[:0]
            start = self.packed(self.worker.weights[self.part(server)].clone(), buffers)
            self.mailbox.start(Message(Header(server, 0, self.started_at, 0.0), start))

    def deliver(self, headers: dict[int, Header]) -> None:
        """Send each server its part of the worker's message."""
        for place, (server, header) in enumerate(headers.items()):
            buffers = self.worker.buffers if place == 0 else self.worker.buffers[:0]
            part = self.worker.computed[self.part(server)]
            extra = extra_of(self.worker.changed_local if place == 0 else {}, self.worker.with_gradient)
            self.outbox.send({server: header}, self.packed(part, buffers)._replace(extra=extra), may_skip=False)

    def submit(self, row: Row, loss: float | None) -> None:
        """Report a row."""
        delivered = loss is not None
        self.unsent.append(
            StepReport(
                row=row,
                progress=self.worker.progress,
                loss=float("nan") if loss is None else loss,
                measures={},
                bytes_sent=self.worker.message_bytes if delivered else 0,
                wall_seconds=self.now(),
            )
        )
        self.report()


class ServerActor(StarShell):
    """The actor of a server."""

    spec: ServerSpec

    def __init__(
        self,
        spec: ServerSpec,
        data: TaskData,
        driving: Driving,
        scheduler: ActorHandle[Any],
        restored: Restored | None = None,
    ) -> None:
        super().__init__(spec, OnceMailbox(spec.neighbors), driving, scheduler)
        self.server = Server(spec, data)
        if restored is not None:
            self.server.restore(restored.agent)
            for message in restored.messages:
                self.mailbox.start(message)

    def __repr__(self) -> str:
        return f"Server({self.spec.agent})"

    @property
    def version(self) -> int:
        """The server's version."""
        return self.server.version

    @property
    def device(self) -> torch.device:
        """Where the server computes."""
        return self.server.device

    @property
    def expected(self) -> Expected:
        """What the workers' messages must be."""
        server, is_first = self.server, self.spec.place == 0
        return Expected(
            self.spec.neighbors,
            None,
            server.weights.numel(),
            server.buffers.numel(),
            Delivery,
            forms=server.forms if is_first else {},
            num_tensors=len(server.sizes),
        )

    def submit(self, row: Row, losses: list[float], measures: dict[str, float], before: int, receivers: int) -> None:
        """Report an update; ``before`` is the server's progress before it."""
        server = self.server
        server.progress_before = before
        point = server.evaluation_point(row)
        snapshot: Any = None if point is None else ray.put(portable(server.snapshot()))
        self.unsent.append(
            StepReport(
                row=row,
                progress=server.progress if point is None else point,
                loss=sum(losses) / len(losses),
                measures=measures,
                bytes_sent=server.message_bytes * receivers,
                wall_seconds=self.now(),
                snapshot=snapshot,
            )
        )
        self.report(flush=point is not None)
