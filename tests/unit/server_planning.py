"""A slow planner around servers, written from the semantics and sharing nothing with the real one but laws and records.

It keeps every message and every update there ever was, and works out what anybody knows by searching all of them. Of
workers that leave it voids what cannot reach them, and on their return what has not come of them; what they then learn
is kept as words that have come.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from ray_pcasgd.records import Read, Row
from ray_pcasgd.schedule.churn_servers import ChurningServerPlanner
from ray_pcasgd.schedule.delays import LinkTimes
from ray_pcasgd.schedule.plan_servers import ServerPlanner
from tests.unit.schedule.slow_network import Shipment, arrivals

# Who waits and who is cancelled, as section 2 of the literature tells it.
WAITING = {"sync", "k-sync", "k-async", "asgd", "quorum", "ringmaster"}
CANCELLING = {"k-sync", "k-batch-sync"}
FRESH_ONLY = {*CANCELLING, "rennala", "malenia"}
ALIKE = {"malenia", "ringleader", "ia2sgd"}


def gradients_of_one_update(gathering: Any, num_workers: int) -> int:
    match gathering.name:
        case "sync":
            return num_workers
        case "asgd" | "ringmaster":
            return 1
        case "n-softsync":
            return num_workers // int(gathering.n)
        case "malenia" | "ringleader" | "ia2sgd":
            return 0
    return int(gathering.k)


@dataclass
class Letter:
    """A gradient to a server, or a server's word to a worker."""

    kind: str
    worker: int
    server: int
    arrival: int
    number: int
    """The worker's gradient that is sent, or answered."""
    newest: int
    """The server's newest version, as the sender knows it."""
    read: int
    """The server's version that the gradient was computed at, or that the worker is to read."""
    opened: bool = False
    accepted: bool = False
    taken_by: int | None = None
    """The update that took it, or threw it away; -1: it was given up."""
    is_farewell: bool = False
    void: bool = False
    """Whether it never comes."""


@dataclass
class Task:
    """What a worker computes or has computed."""

    start: int
    ready: int
    newest: list[int]
    read: list[int]
    ended: bool = False


@dataclass
class Update:
    taken: list[Letter] = field(default_factory=list)
    begins: bool = False
    """Whether it is the first of a round of Ringleader's."""
    renewed: int | None = None
    """Whose gradient gave rise to it."""


def slow_rows(plan: ServerPlanner) -> list[Row]:
    """Return all rows of a plan."""
    return _SlowPlanner(plan).run()


class _SlowPlanner:
    def __init__(self, plan: ServerPlanner) -> None:
        self.plan = plan
        self.k = gradients_of_one_update(plan.gathering, plan.num_workers)
        self.waits = plan.gathering.name in WAITING
        self.cancels = plan.gathering.name in CANCELLING or getattr(plan.gathering, "stops", False)
        self.most = getattr(plan.gathering, "delay_threshold", 1 if plan.gathering.name in FRESH_ONLY else math.inf)
        """How many updates a gradient may be late, plus one."""
        self.grace = round(1e9 * plan.gathering.grace_seconds) if plan.gathering.name == "quorum" else 0
        self.graces: list[tuple[int, int, int]] = []
        """When a server's grace ends, the server, and how many updates it had made when that began."""
        self.replies: list[tuple[int, int, int, int]] = []
        """When workers are answered whose older work nobody takes; the worker, server and gradient."""
        self.begun: set[tuple[int, int]] = set()
        """Servers and their versions whose graces have begun, and those whose are over."""
        self.ended: set[tuple[int, int]] = set()
        away = plan.away if isinstance(plan, ChurningServerPlanner) else ()
        self.away = {one.agent for one in away if one.leaves == 0}
        self.gone = [set(self.away) for _ in range(plan.num_servers)]
        """Of each server, the workers of which it knows that they have left."""
        self.changes = [(round(1e9 * one.leaves), 0, one.agent) for one in away if one.leaves > 0]
        self.changes += [(round(1e9 * one.returns), 1, one.agent) for one in away if one.returns < math.inf]
        self.learned: list[Letter] = []
        """What workers knew as they came back."""
        self.seconds = [plan.compute.sampler(plan.seed, i) for i in range(plan.num_workers)]
        agents = range(plan.num_workers + plan.num_servers)
        self.times = {
            (i, j): LinkTimes(plan.links, plan.clusters, plan.seed, i, j)
            for i in agents
            for j in agents
            if (i < plan.num_workers) != (j < plan.num_workers)
        }
        self.letters: list[Letter] = []
        self.shipments: list[Shipment] = []
        self.has_bytes = bool(plan.hosts) or any(link.bandwidth for link in plan.links)
        self.tasks: list[list[Task]] = [[] for _ in range(plan.num_workers)]
        self.updates: list[list[Update]] = [[] for _ in range(plan.num_servers)]
        self.returned: list[tuple[int, int, int]] = []
        """Servers, workers that came back, and how many updates the server had made then."""
        self.told: dict[tuple[int, int], list[int]] = {}
        self.result: list[Row] = []

    def run(self) -> list[Row]:
        for worker in range(self.plan.num_workers):
            if worker not in self.away:
                self.begin(worker, 0)
        servers = range(self.plan.num_servers)
        while not all(self.progress(server) >= self.plan.num_steps for server in servers) and self.one_event():
            pass
        return self.result

    def one_event(self) -> bool:
        """Of all that is to come let the first happen; return whether there was anything.

        At one moment come words, gradients, what becomes ready, answers that waited for all of these, what ends a
        grace, who leaves, who comes back.
        """
        coming: list[tuple[int, int, int, int, int]] = [
            (letter.arrival, 0 if letter.kind == "word" else 1, letter.worker, letter.server, place)
            for place, letter in enumerate(self.letters)
            if not letter.opened and not letter.void
        ]
        for worker, tasks in enumerate(self.tasks):
            if tasks and not tasks[-1].ended:
                coming.append((tasks[-1].ready, 2, worker, 0, 0))
        for place, (moment, worker, server, _) in enumerate(self.replies):
            coming.append((moment, 3, worker, server, place))
        for place, (moment, server, _) in enumerate(self.graces):
            coming.append((moment, 4, 0, server, place))
        coming += [(moment, 5 + is_back, worker, 0, 0) for moment, is_back, worker in self.changes]
        if not coming:
            return False
        now, rank, worker, _, place = min(coming)
        if rank > 4:
            self.change(now)
        elif rank == 4:
            self.end_grace(*self.graces.pop(place))
        elif rank == 3:
            _, worker, server, number = self.replies.pop(place)
            self.answer(server, worker, number, now)
        elif rank == 2:
            self.finish(worker, now)
        else:
            letter = self.letters[place]
            letter.opened = True
            if rank == 0:
                self.hear(worker, now)
            elif letter.is_farewell:
                self.gone[letter.server].add(worker)
                self.consider(letter.server, now, None)
            else:
                self.take_in(letter, now)
        return True

    # Membership.

    def change(self, now: int) -> None:
        """Let everybody leave and come back whose moment it is; nobody knows of it before all have."""
        due = sorted((is_back, worker) for moment, is_back, worker in self.changes if moment == now)
        self.changes = [one for one in self.changes if one[0] != now]
        for is_back, worker in due:
            if is_back:
                self.come_back(worker, now)
                continue
            self.away.add(worker)
            if self.tasks[worker] and not self.tasks[worker][-1].ended:
                self.tasks[worker].pop()
            for letter in self.letters:
                letter.void |= letter.kind == "word" and letter.worker == worker and not letter.opened
            for server in range(self.plan.num_servers):
                number = len(self.tasks[worker])
                self.send("gradient", worker, server, now, number, 0, 0, number)
                self.letters[-1].is_farewell = True

    def come_back(self, worker: int, now: int) -> None:
        self.away.discard(worker)
        number = len(self.tasks[worker]) + 1
        newest = [len(updates) for updates in self.updates]
        read = [max(0, one - self.plan.reads_before) for one in newest]
        for letter in self.letters:
            if letter.kind == "gradient" and letter.worker == worker:
                letter.void |= not letter.opened
                if self.waits and letter.accepted and letter.taken_by is None:
                    letter.taken_by = -1
        for server in range(self.plan.num_servers):
            self.gone[server].discard(worker)
            self.returned.append((server, worker, newest[server]))
            word = Letter("word", worker, server, now, number, newest[server], read[server], opened=True)
            self.learned.append(word)
            self.told.setdefault((server, worker), [0]).append(read[server])
        self.tasks[worker].append(Task(now, now, newest, read, ended=True))
        self.write_row(worker, now, "rejoined")
        self.begin(worker, now)

    # Workers.

    def words(self, worker: int, server: int) -> list[Letter]:
        letters = [*self.letters, *self.learned]
        return [x for x in letters if (x.kind, x.worker, x.server, x.opened) == ("word", worker, server, True)]

    def newest_known(self, worker: int, server: int) -> int:
        return max([0, *(word.newest for word in self.words(worker, server))])

    def begin(self, worker: int, now: int) -> None:
        seconds = 0.0
        for _ in range(self.plan.local_steps[worker]):
            seconds += self.seconds[worker](now / 1e9 + seconds)
        servers = range(self.plan.num_servers)
        newest = [self.newest_known(worker, server) for server in servers]
        read = [max([0, *(word.read for word in self.words(worker, server))]) for server in servers]
        self.tasks[worker].append(Task(now, now + round(seconds * 1e9), newest, read))

    def hear(self, worker: int, now: int) -> None:
        task = self.tasks[worker][-1]
        moved_on = [self.newest_known(worker, s) - task.newest[s] >= self.most for s in range(self.plan.num_servers)]
        if not task.ended and self.cancels and all(moved_on):
            task.ended = True
            self.write_row(worker, now, "cancelled")
        if task.ended:
            delivered = len(self.tasks[worker])
            answered = [
                any(word.number == delivered for word in self.words(worker, s)) or (self.cancels and moved_on[s])
                for s in range(self.plan.num_servers)
            ]
            if all(answered):
                self.begin(worker, now)

    def finish(self, worker: int, now: int) -> None:
        task = self.tasks[worker][-1]
        task.ended = True
        self.write_row(worker, now, "step")
        number = len(self.tasks[worker])
        for server in range(self.plan.num_servers):
            self.send("gradient", worker, server, now, number, task.newest[server], task.read[server], number)

    def write_row(self, worker: int, now: int, kind: Any) -> None:
        task = self.tasks[worker][-1]
        reads = tuple(
            Read(self.plan.num_workers + server, read, newest - read, 0)
            for server, (newest, read) in enumerate(zip(task.newest, task.read, strict=True))
        )
        self.result.append(
            Row(worker, len(self.tasks[worker]) - 1, task.start / 1e9, now / 1e9, now / 1e9, reads, kind)
        )

    def send(
        self, kind: str, worker: int, server: int, now: int, number: int, newest: int, read: int, version: int
    ) -> None:
        ends = (worker, self.plan.num_workers + server)
        times = self.times[ends if kind == "gradient" else ends[::-1]]
        before = [x.arrival for x in self.letters if (x.kind, x.worker, x.server) == (kind, worker, server)]
        latency = round(times.latency_seconds(version, now / 1e9) * 1e9)
        self.letters.append(Letter(kind, worker, server, max([now + latency, *before]), number, newest, read))
        if self.has_bytes:
            sizes = self.plan.gradient_bytes if kind == "gradient" else self.plan.weights_bytes
            link = ends if kind == "gradient" else ends[::-1]
            bandwidth = times.bandwidth(version, now / 1e9)
            self.shipments.append(Shipment(now, *link, sizes[server], latency, bandwidth))
            for letter, arrival in zip(self.letters, arrivals(self.shipments, self.plan.hosts), strict=True):
                letter.arrival = arrival

    # Servers.

    def steps_at(self, server: int, version: int) -> int:
        """Return how many mini-batches for each worker had been taken at a version."""
        batches = sum(
            self.plan.local_steps[x.worker] for update in self.updates[server][:version] for x in update.taken
        )
        return batches // self.plan.num_workers

    def progress(self, server: int) -> int:
        return self.steps_at(server, len(self.updates[server]))

    def take_in(self, letter: Letter, now: int) -> None:
        server, updates = letter.server, self.updates[letter.server]
        is_over = self.progress(server) >= self.plan.num_steps
        letter.accepted = not is_over and len(updates) - letter.newest < self.most
        before = len(updates)
        if not self.consider(server, now, letter) and not (self.waits and letter.accepted):
            if self.plan.gathering.name in ("rennala", "malenia"):
                self.replies.append((now, letter.worker, server, letter.number))
                return
            stays = self.plan.gathering.name == "ringleader" and len(updates) == before
            self.answer(server, letter.worker, letter.number, now, stays)

    def consider(self, server: int, now: int, letter: Letter | None) -> bool:
        """Update and answer if it is time, after a gradient has come or ``None``; else let a grace begin if it is."""
        version = len(self.updates[server])
        if self.progress(server) >= self.plan.num_steps or (letter is not None and not letter.accepted):
            return False
        waiting = [x for x in self.letters if x.accepted and x.server == server and x.taken_by is None]
        # In the order of their arrival, which is not that of their sending.
        waiting.sort(key=lambda x: (x is letter, x.arrival, x.worker, x.number))
        delivered = {x.worker for x in waiting}
        there = [w for w in range(self.plan.num_workers) if w not in self.gone[server] or w in delivered]
        if self.plan.gathering.name in ALIKE:
            self.consider_alike(server, now, letter, waiting)
            return False
        needed = max(1, min(self.k, len(there))) if self.waits else self.k
        if len(waiting) < needed:
            return False
        if self.grace and len(waiting) < len(there) and (server, version) not in self.ended:
            if (server, version) not in self.begun:
                self.begun.add((server, version))
                self.graces.append((now + self.grace, server, version))
            return False
        taken = waiting if self.grace else waiting[:needed]
        self.update(server, taken, now)
        if self.cancels:
            mine = [x for x in [*self.letters, *self.learned] if (x.kind, x.server) == ("word", server)]
            for worker in range(self.plan.num_workers):
                told = max([0, *(word.newest for word in mine if word.worker == worker)])
                numbers = [x.number for x in taken if x.worker == worker]
                if numbers or len(self.updates[server]) - told >= self.most:
                    self.answer(server, worker, max(numbers, default=0), now)
        elif self.waits:
            for one in taken:
                self.answer(server, one.worker, one.number, now)
        else:
            return False
        return True

    def consider_alike(self, server: int, now: int, letter: Letter | None, waiting: list[Letter]) -> None:
        """Update if it is time, under a policy under which all workers count alike."""
        name, updates = self.plan.gathering.name, self.updates[server]
        there = set(range(self.plan.num_workers)) - self.gone[server]
        first = max((place for place, update in enumerate(updates) if update.begins), default=-1)
        has_new = {update.renewed for update in updates[first:]} if first >= 0 else set()
        has_new |= {worker for place, worker, number in self.returned if place == server and number > first >= 0}
        in_round = name == "ringleader" and first >= 0 and not there <= has_new
        if in_round or (name == "ia2sgd" and updates):
            taken = [letter] if letter and not (in_round and letter.worker in has_new) else []
        else:
            counts = [sum(x.worker == worker for x in waiting) for worker in range(self.plan.num_workers)]
            given = [count for count in counts if count]
            is_missing = any(counts[worker] == 0 for worker in there)
            common = math.lcm(*given) if given else 1
            target = getattr(self.plan.gathering, "target", 1)
            is_enough = len(given) * common >= target * sum(common // count for count in given)
            taken = waiting if waiting and is_enough and not is_missing else []
        if taken:
            self.update(server, taken, now)
            updates[-1].begins, updates[-1].renewed = not in_round, letter.worker if letter else None

    def end_grace(self, now: int, server: int, version: int) -> None:
        if len(self.updates[server]) == version and self.progress(server) < self.plan.num_steps:
            self.ended.add((server, version))
            self.consider(server, now, None)

    def update(self, server: int, taken: list[Letter], now: int) -> None:
        version = len(self.updates[server])
        reads = sorted(Read(x.worker, x.number, version - x.read, version - x.read) for x in taken)
        for one in taken:
            one.taken_by = version
        self.updates[server].append(Update(taken))
        moment = now / 1e9
        self.result.append(Row(self.plan.num_workers + server, version, moment, moment, moment, tuple(reads)))

    def answer(self, server: int, worker: int, number: int, now: int, stays: bool = False) -> None:
        if worker in self.away:
            return
        newest, steps = len(self.updates[server]), self.progress(server)
        hold = self.times[self.plan.num_workers + server, worker].hold_steps(steps, now / 1e9)
        old_enough = [v for v in range(newest + 1) if hold <= 0 or self.steps_at(server, v) <= steps - hold]
        told = self.told.setdefault((server, worker), [0])
        told.append(max(told[-1], min(max(old_enough, default=0), newest - self.plan.reads_before) if not stays else 0))
        self.send("word", worker, server, now, number, newest, told[-1], newest)


def check_rows(rows: list[Row], num_workers: int) -> None:
    """Assert what holds in every schedule with servers, whoever wrote it."""
    steps: dict[int, int] = {}
    kinds: dict[tuple[int, int], str] = {}
    computed_at: dict[tuple[int, int, int], int] = {}
    taken: set[tuple[int, int, int]] = set()
    for row in rows:
        assert row.step == steps.get(row.agent, 0)
        assert row.start <= row.ready == row.end
        for read in row.reads:
            # What is read was published before.
            assert 0 <= read.version <= steps.get(read.neighbor, 0)
            assert (read.neighbor < num_workers) != (row.agent < num_workers)
            if row.agent < num_workers:
                assert 0 <= read.staleness <= steps.get(read.neighbor, 0) - read.version
                computed_at[row.agent, row.step + 1, read.neighbor] = read.version
            else:
                assert kinds[read.neighbor, read.version] == "step"
                assert (row.agent, read.neighbor, read.version) not in taken
                taken.add((row.agent, read.neighbor, read.version))
                late = row.step - computed_at[read.neighbor, read.version, row.agent]
                assert read.staleness == read.age == late
        steps[row.agent] = row.step + 1
        kinds[row.agent, row.step + 1] = row.kind
