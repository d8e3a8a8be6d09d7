"""Live workers and servers without actors: their policies in virtual time, with messages that hold no tensors.

Whatever the policies may rely on is done as their actors do it, and whatever they promise is asserted as it happens.
"""

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ray_pcasgd.agents.mailbox import Answer, Header, Message, OnceMailbox
from ray_pcasgd.engines.live.decisions import Moment, Over, Rejoin, Take, Wait
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.server import Connect, Open, ServerPolicy, Tell
from ray_pcasgd.engines.live.worker import WorkerPolicy
from ray_pcasgd.records import Event, Read
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import NoBarrier

NUM_WORKERS = 3
WAIT_SECONDS = 1e6
"""No policy may need it: where nothing else is left to happen, somebody waits for what never comes."""
STARTED_AT = 1000.0


def plan_of(algorithm: Any, **settings: Any) -> Plan:
    tree = {
        "engine": "local",
        "num_agents": NUM_WORKERS,
        "num_steps": 8,
        "links": [],
        "task": {"model": {"hidden": [4]}},
        "algorithm": algorithm,
    }
    return make_plan(load_config(tree | settings))


def injection_of(plan: Plan) -> InjectedDelays:
    return InjectedDelays(0, plan.config.compute, plan.config.links, plan.clusters, NoBarrier())


@dataclass
class WorkerRun:
    """One worker, from where it began or came back to where it is lost."""

    policy: WorkerPolicy
    reads: tuple[Read, ...] | None = None
    """What it computes at."""
    ready_at: float = 0.0
    is_over: bool = False
    reported: int = 0
    """The newest version that the driver knows."""


@dataclass
class ServerRun:
    """One server."""

    policy: ServerPolicy
    links: dict[int, int] = field(default_factory=dict)
    """By worker, to which of its lives messages are sent."""
    contents: set[int] = field(default_factory=lambda: {0})
    history: set[int] = field(default_factory=lambda: {0})
    updates: list[tuple[Read, ...]] = field(default_factory=list)
    opened: set[tuple[int, int]] = field(default_factory=set)
    told: dict[int, int] = field(default_factory=dict)
    """By worker, the version that it was told to read last."""
    events: list[Event] = field(default_factory=list)
    is_over: bool = False


class Star:
    """A run of all workers and servers of a plan; ``random`` says how long steps take, and which gradients are lost."""

    def __init__(self, plan: Plan, random: Random, lossy: bool = False) -> None:
        self.plan = plan
        self.random = random
        self.lossy = lossy
        self.now = 0.0
        self.injection = injection_of(plan)
        self.lost: set[tuple[int, int]] = set()
        """Gradients that no server can open, by worker and version."""
        self.lives: Counter[int] = Counter()
        self.workers = {w: self.new_worker(w) for w in range(NUM_WORKERS)}
        self.servers = {spec.agent: self.new_server(spec) for spec in plan.specs[NUM_WORKERS:]}
        self.rejoined: dict[int, list[int]] = {w: [] for w in range(NUM_WORKERS)}

    @property
    def moment(self) -> Moment:
        return Moment(STARTED_AT + self.now, self.now)

    def new_worker(self, agent: int) -> WorkerRun:
        spec: Any = self.plan.specs[agent]
        mailbox: OnceMailbox[Any] = OnceMailbox(spec.neighbors)
        for server in spec.neighbors:
            mailbox.start(Message(Header(server, 0, STARTED_AT, 0.0), "whole"))
        policy = WorkerPolicy(spec, mailbox, WAIT_SECONDS, self.injection)
        policy.started_at = STARTED_AT
        return WorkerRun(policy)

    def new_server(self, spec: Any) -> ServerRun:
        policy = ServerPolicy(spec, OnceMailbox(spec.neighbors), WAIT_SECONDS, self.injection, lambda _: True)
        policy.started_at = STARTED_AT
        return ServerRun(policy, dict.fromkeys(spec.neighbors, 0))

    def lose(self, agent: int) -> None:
        """Kill a worker; its servers are told."""
        if self.workers.pop(agent, None):
            self.lives[agent] += 1
            for server in self.servers.values():
                server.policy.lost(agent)

    def bring_back(self, agent: int, reported: int) -> None:
        """Bring a lost worker back, of which the driver knows one version."""
        if agent in self.workers or any(server.policy.is_over for server in self.servers.values()):
            return
        worker = self.new_worker(agent)
        known = [server.policy.known(agent) for server in self.servers.values()]
        version = worker.policy.rejoin(known, reported + 1)
        for server in self.servers.values():
            assert version > max([0, *(v for w, v in server.opened if w == agent)])
            assert version > max([0, *(read.version for u in server.updates for read in u if read.neighbor == agent)])
            server.policy.back(agent, version)
        worker.reported = version
        self.workers[agent] = worker

    def run_until(self, end: float) -> None:
        """Let happen what happens until a moment, or until nothing happens any more."""
        while True:
            while any([self.act(w) for w in list(self.workers)] + [self.serve(s) for s in self.servers]):
                pass
            due = self.next_due()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
        if end < float("inf"):
            self.now = max(self.now, end)

    def next_due(self) -> float | None:
        """Return when something happens by itself."""
        ends = [one.ready_at for one in self.workers.values() if one.reads is not None]
        boxes = [one.policy.mailbox for one in (*self.workers.values(), *self.servers.values()) if not one.is_over]
        dues = [due for box in boxes if (due := box.next_due()) is not None]
        return min(ends + dues, default=None)

    def act(self, agent: int) -> bool:
        """Let a worker do the next thing; return whether there was one."""
        worker = self.workers[agent]
        policy = worker.policy
        if worker.reads is not None:
            return self.compute(agent, worker)
        if worker.is_over:
            return False
        match policy.decide(self.moment):
            case Wait(until, missing):
                assert until is not None
                assert "server" in missing
                return False
            case Over():
                worker.is_over = True
            case Rejoin(version, reads):
                assert version == policy.version
                self.check_reads(worker, reads, "whole")
                self.rejoined[agent].append(version)
                policy.rejoined()
                assert [event.kind for event in policy.events()] == ["agent_returned"]
            case Take(reads):
                self.check_reads(worker, reads, "whole", f"what answers {policy.version}")
                worker.reads = reads
                worker.ready_at = self.now + self.random.choice([0.0, 0.1, 1.0, self.random.random(), 7.0])
        return True

    def check_reads(self, worker: WorkerRun, reads: tuple[Read, ...], *allowed: str) -> None:
        assert [read.neighbor for read in reads] == list(self.servers)
        for read in reads:
            message = worker.policy.mailbox.get(read.neighbor, read.version)
            assert message is not None
            assert message.contents in allowed

    def compute(self, agent: int, worker: WorkerRun) -> bool:
        """Let a worker find out that its work is cancelled, or deliver it once it is done."""
        policy = worker.policy
        is_cancelled = policy.is_cancelled(self.moment)
        if not is_cancelled and self.now < worker.ready_at:
            return False
        worker.reads = None
        policy.stepped(policy.version + 1, self.moment)
        if not is_cancelled:
            if self.lossy and self.random.random() < 0.2:
                self.lost.add((agent, policy.version))
            for number, header in policy.headers(0.5, self.moment).items():
                server = self.servers[number]
                assert server.policy.admit(header) is None
                server.policy.mailbox.put(Message(header, "gradient"), self.now)
                server.policy.arrived(header, self.moment)
        worker.reported = policy.version
        return True

    def serve(self, number: int) -> bool:
        """Let a server do the next thing; return whether there was one."""
        server = self.servers[number]
        policy = server.policy
        if server.is_over:
            return False
        decision = policy.decide(self.moment)
        server.events += policy.events()
        match decision:
            case Wait():
                return False
            case Over():
                server.is_over = True
            case Open(header):
                self.open(server, header)
            case Connect(worker):
                server.links[worker] = self.lives[worker]
            case Take(reads):
                self.update(server, reads)
            case Tell(headers, whole):
                for worker, header in headers.items():
                    self.tell(server, worker, header, worker in whole)
                server.contents = {v for v in server.contents if v >= policy.oldest}
                server.history = {v for v in server.history if v in policy.kept or v == policy.version}
        return True

    def open(self, server: ServerRun, header: Header) -> None:
        key = (header.sender, header.version)
        assert key not in server.opened
        is_here = server.policy.problem(header) is None and key not in self.lost
        if is_here:
            server.opened.add(key)
            server.policy.mailbox.drop(*key)
        server.policy.opened(header, is_here, self.moment)

    def update(self, server: ServerRun, reads: tuple[Read, ...]) -> None:
        policy = server.policy
        assert list(reads) == sorted(reads)
        already = {read[:2] for update in server.updates for read in update}
        for read in reads:
            assert read[:2] in server.opened - already
            assert read[:2] in policy.losses
            assert 0 <= read.staleness == read.age
            assert policy.version - read.staleness in server.history or not policy.spec.recipe.keeps_versions
        server.updates.append(reads)
        policy.stepped(policy.version + 1, self.moment)
        server.contents.add(policy.version)
        server.history.add(policy.version)

    def tell(self, server: ServerRun, worker: int, header: Header, is_whole: bool) -> None:
        assert header.version in server.contents
        assert isinstance(header.note, Answer)
        assert server.told.get(worker, 0) <= header.version <= header.note.newest
        server.told[worker] = header.version
        if worker in self.workers and server.links[worker] == self.lives[worker]:
            run = self.workers[worker]
            if run.policy.admit(header) is not None:
                return
            is_whole |= self.plan.config.wire.fragments == 1
            contents = "whole" if is_whole else f"what answers {header.note.answers}"
            run.policy.mailbox.put(Message(header, contents), self.now)
            run.policy.arrived(header, self.moment)

    @property
    def is_over(self) -> bool:
        """Whether everybody has come to the end."""
        everybody = (*self.workers.values(), *self.servers.values())
        return all(one.is_over for one in everybody)
