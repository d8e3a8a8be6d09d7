"""The actors of AD-PSGD: planned, where partners send each other what they were before they average, and live."""

import time
from typing import Any

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError

from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.checking import Expected, RejectedError, check_contents, check_header, fetch_checked
from ray_pcasgd.engines.ray.injection import Injection
from ray_pcasgd.engines.ray.shell import Driving, Shell, StoppedError
from ray_pcasgd.engines.ray.transport import Contents, pack, portable
from ray_pcasgd.mailbox import Header, Mailbox
from ray_pcasgd.pairs import PairAgent, PairSpec
from ray_pcasgd.records import Event, Read, Row, StepReport, Version
from ray_pcasgd.schedule.pair_planner import draw_partner
from ray_pcasgd.schedule.reading import OwnTimes
from ray_pcasgd.tasks.task import TaskData


class PairActor(Shell):
    """The actor of an agent that averages in pairs."""

    spec: PairSpec

    def __init__(self, spec: PairSpec, data: TaskData, driving: Driving, scheduler: ActorHandle[Any]) -> None:
        super().__init__(spec, Mailbox(spec.neighbors), driving, scheduler)
        self.agent = PairAgent(spec, data)

    @property
    def version(self) -> int:
        """The agent's version."""
        return self.agent.version

    @property
    def device(self) -> torch.device:
        """Where the agent computes."""
        return self.agent.replica.device

    @property
    def expected(self) -> Expected:
        """What the agent's messages must be; its partners' averagings count as versions, without a bound."""
        return Expected(self.spec.neighbors, None, self.agent.weights.numel(), self.agent.buffers.numel())

    def header(self) -> Header:
        """Return the header of the agent's present version."""
        return Header(self.spec.agent, self.agent.version, time.time(), 0.0)

    def contents(self) -> Contents:
        """Return the agent's present version, as it travels."""
        return Contents(pack(self.agent.weights), pack(self.agent.buffers), None)

    def open(self, contents: Contents) -> Version:
        """Return a partner's version, fetched."""
        expected = self.expected
        return Version(
            fetch_checked("weights", contents.weights, expected.weights, self.device),
            fetch_checked("buffers", contents.buffers, expected.buffers, self.device),
        )

    def submit(self, row: Row, loss: float) -> None:
        """Report a row, with an evaluation where the recipe asks for one."""
        agent = self.agent
        evaluates = row.kind == "step" and self.spec.recipe.evaluates_at(agent.progress)
        snapshot: Any = ray.put(portable(agent.snapshot())) if evaluates else None
        report = StepReport(
            row=row,
            progress=agent.progress,
            loss=loss,
            measures={},
            bytes_sent=agent.message_bytes * len(row.reads),
            wall_seconds=self.now(),
            snapshot=snapshot,
            evaluation=agent.evaluate() if evaluates else None,
        )
        with self.changed:
            self.unsent.append(report)
            self.report(flush=evaluates)


class PlannedPairActor(PairActor):
    """Takes its rows in order; for each averaging it sends what it is, and waits for what its partner is."""

    def take_steps(self) -> None:
        """Execute the agent's rows."""
        agent = self.agent
        loss = agent.check_finite(agent.compute())
        for row in self.rows():
            partner = self.meet(row.reads[0]) if row.reads else None
            if row.kind == "passive":
                assert partner is not None
                agent.answer(partner)
                self.submit(row, float("nan"))
                continue
            agent.step(partner)
            self.submit(row, loss)
            if agent.steps < self.spec.recipe.num_steps:
                loss = agent.check_finite(agent.compute())

    def meet(self, read: Read) -> Version:
        """Send the partner the present version, and wait for its own."""
        self.outbox.send({read.neighbor: self.header()}, self.contents(), may_skip=False)
        with self.changed:
            self.wait_until(
                lambda: self.mailbox.get(read.neighbor, read.version) is not None,
                lambda: f"version {read.version} of agent {read.neighbor}",
            )
            message = self.mailbox.get(read.neighbor, read.version)
            self.mailbox.discard(read.neighbor, read.version)
        assert message is not None
        if message.contents is None:
            # Who averages must be averaged with: there is no going on without it.
            raise RunError(f"agent {self.spec.agent} was sent a message by agent {read.neighbor} that it had to reject")
        return self.open(message.contents)


class LivePairActor(PairActor):
    """An active agent asks, and waits for the answer; a passive one answers at once, whatever it is doing."""

    def __init__(
        self, spec: PairSpec, data: TaskData, driving: Driving, scheduler: ActorHandle[Any], injection: Injection
    ) -> None:
        super().__init__(spec, data, driving, scheduler)
        self.extra_seconds = injection.compute.extra_sampler(injection.seed, spec.agent)
        self.set_links(injection)
        self.partners: dict[int, ActorHandle[Any]] = {}
        self.own_times = OwnTimes(1, [])
        self.has_begun = False
        self.is_over = False

    def set_links(self, injection: Injection) -> None:
        """Take in what an injection says of links."""
        agent = self.spec.agent
        self.links = {(agent, k): times for k, times in injection.links_from(agent, self.spec.neighbors).items()}
        self.links |= {(k, agent): injection.links_from(k, (agent,))[agent] for k in self.spec.neighbors}

    def begin(self) -> None:
        """Let those who ask know what the time is; called with the lock held."""
        self.has_begun = True
        self.changed.notify_all()

    def connect(self, neighbors: dict[int, ActorHandle[Any]]) -> None:
        """Take in the neighbors' actors."""
        super().connect(neighbors)
        self.partners = neighbors if self.spec.is_active else {}

    @ray.method(concurrency_group="mail")
    def exchange(self, header: Header, contents: Contents) -> tuple[int, Contents]:
        """Average with whoever asks; return the version before that, and what it held."""
        check_header(self.expected, header)
        check_contents(self.expected, header, contents)
        asking = self.open(contents)
        with self.changed:
            self.changed.wait_for(lambda: self.has_begun, self.driving.wait_seconds)
            moment, version, before = self.now(), self.agent.version, self.contents()
            self.agent.answer(asking)
            age = self.own_times.steps_since(header.sent_at)
            self.own_times.sent_at.append(time.time())
            read = Read(header.sender, header.version, 0, age)
            self.submit(Row(self.spec.agent, version, moment, moment, moment, (read,), "passive"), float("nan"))
            if self.is_over:
                # Nobody else would hand it in, and the run ends once those who ask have what they asked for.
                self.report(flush=True)
                ray.get([call.answer for call in self.handed_in])
        return version, before

    def take_steps(self) -> None:
        """Take all own steps as fast as partners answer."""
        while self.agent.steps < self.spec.recipe.num_steps:
            if self.stopped:
                raise StoppedError
            self.take_step()
        with self.changed:
            self.report(flush=True)
            self.is_over = True

    def take_step(self) -> None:
        """Compute, ask a partner where there is one, and take the step."""
        agent, start = self.agent, self.now()
        loss = agent.check_finite(agent.compute())
        self.pause(self.extra_seconds(start))
        ready = self.now()
        found = self.ask()
        with self.changed:
            partner, reads = (None, ()) if found is None else (found[1], (found[0],))
            version, end = agent.version, self.now()
            agent.step(partner)
            self.own_times.sent_at.append(time.time())
        self.submit(Row(self.spec.agent, version, start, ready, end, reads), loss)

    def ask(self) -> tuple[Read, Version] | None:
        """Ask a random partner that is alive, and return what it was; nothing where there is none."""
        agent = self.spec.agent
        while (k := draw_partner(self.spec.recipe.seed, agent, self.agent.steps, tuple(self.partners))) is not None:
            self.pause(self.links[agent, k].latency_seconds(self.agent.version, self.now()))
            try:
                exchange: Any = self.partners[k].exchange
                answer = exchange.remote(self.header(), self.contents())
                version, contents = ray.get(answer, timeout=self.driving.wait_seconds)
            except RejectedError as error:
                self.reject(k, self.agent.version, error)
                return None
            except (RayActorError, GetTimeoutError) as error:
                # One that hangs is ended by the driver: should it still average with this agent, it does so alone.
                del self.partners[k]
                waited = f" for {self.driving.wait_seconds:g} s" if isinstance(error, GetTimeoutError) else ""
                detail = f"agent {k} does not answer{waited}; it is asked no more"
                self.unsent.append(Event("neighbor_lost", agent, self.agent.version, detail))
                continue
            self.pause(self.links[k, agent].latency_seconds(version, self.now()))
            return Read(k, version, 0, 0), self.open(contents)
        return None

    def pause(self, seconds: float) -> None:
        """Wait for so many injected seconds, unless the run is stopped."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while seconds > 0 and (left := deadline - time.monotonic()) > 0:
                if self.stopped:
                    raise StoppedError
                self.changed.wait(left)
