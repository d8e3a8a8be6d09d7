"""A live peer's policy in virtual time, with neighbors that are made up."""

from functools import cache
from typing import Any

from ray_pcasgd.agents.mailbox import Header, Mailbox, Message
from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.engines.live.decisions import Compute, Moment, Over, Take, Wait
from ray_pcasgd.engines.live.injection import InjectedDelays
from ray_pcasgd.engines.live.peer import PeerPolicy
from ray_pcasgd.engines.live.watching import Limits
from ray_pcasgd.records import Event, Read
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.schedule.barrier import Barrier, NoBarrier
from ray_pcasgd.schedule.delays import ComputeTimes

STEP = 0.02
NUM_STEPS = 60
LIMITS = Limits(3.0, 20.0, 0.05)
WALL = 5e8
"""By how much the two clocks differ."""


@cache
def plan_of(algorithm: str, num_agents: int, engine: str = "local") -> Plan:
    settings: dict[str, Any] = {
        "engine": {"name": "ray", "mode": "live"} if engine == "live" else engine,
        "num_agents": num_agents,
        "num_steps": NUM_STEPS,
        "links": [],
        "task": {"model": {"hidden": [4]}},
        "algorithm": algorithm,
    }
    return make_plan(load_config(settings))


class Peers:
    """Agent 0 of a run with its policy, a clock, and its neighbors' messages."""

    def __init__(
        self,
        algorithm: str = "d-asgd",
        barrier: Barrier | None = None,
        num_agents: int = 3,
        limits: Limits = LIMITS,
        stragglers: dict[int, Any] | None = None,
        version: int = 0,
        is_restored: bool = False,
    ) -> None:
        plan = plan_of(algorithm, num_agents)
        spec = plan.specs[0]
        assert isinstance(spec, AgentSpec)
        compute = ComputeTimes.model_validate({"stragglers": stragglers or {}})
        self.injection = InjectedDelays(0, compute, (), plan.clusters, barrier or NoBarrier())
        self.spec = spec
        self.mailbox: Mailbox[str] = Mailbox(spec.neighbors)
        self.here: set[tuple[int, int]] = set()
        """What has been transferred."""
        self.policy = PeerPolicy(spec, self.mailbox, limits, self.injection, self.is_here, version, is_restored)
        self.policy.started_at = WALL
        self.policy.step_seconds = STEP
        self.seconds = 0.0
        self.told: list[Event] = []
        for k in spec.neighbors:
            self.mailbox.start(Message(Header(k, 0, WALL, 0.0), "start"))
            self.here.add((k, 0))

    def is_here(self, neighbor: int, version: int, with_direction: bool) -> bool:
        message = self.mailbox.get(neighbor, version)
        is_whole = message is not None and message.contents is not None and (neighbor, version) in self.here
        return is_whole and (not with_direction or self.mailbox.following(neighbor, version) is not None)

    @property
    def now(self) -> Moment:
        return Moment(WALL + self.seconds, self.seconds)

    def receive(self, sender: int, version: int, age: float = 0.0, is_here: bool = True, **more: Any) -> None:
        """Let a message come that was sent ``age`` seconds ago."""
        header = Header(sender, version, self.now.wall - age, more.pop("step_seconds", STEP), **more)
        if is_here:
            self.here.add((sender, version))
        self.mailbox.put(Message(header, None if header.isolated else "contents"), self.now.steady)
        self.policy.arrived(header, self.now)

    def begin(self, seconds: float = 0.0) -> None:
        """Compute for some seconds."""
        start = self.now.wall
        assert self.policy.decide(self.now) == Compute()
        self.seconds += seconds
        self.policy.computed(start, self.now)

    def decide(self) -> Take | Wait | Over:
        decision = self.policy.decide(self.now)
        self.told += self.policy.events()
        assert not isinstance(decision, Compute)
        return decision

    def end(self, take: Take) -> None:
        """Take the step that was decided."""
        self.policy.taken(take.reads)
        self.policy.stepped(self.policy.version + 1, self.now)

    def reads_at(self, version: int | None = None, seconds: float = 0.0) -> dict[int, Read]:
        """Return what a step reads, by neighbor, where nothing is waited for; the agent stays at its version."""
        self.policy.version = self.policy.version if version is None else version
        self.policy._due = None
        self.begin(seconds)
        take = self.decide()
        assert isinstance(take, Take)
        self.policy.taken(take.reads)
        return {read.neighbor: read for read in take.reads}

    def events(self, kind: str) -> list[str]:
        return [one.detail for one in self.told if one.kind == kind]
