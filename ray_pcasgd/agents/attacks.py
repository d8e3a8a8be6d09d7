"""Attacks: what agents that are no honest ones send in place of what they have computed.

An attacker trains as the others do and lies where it publishes, so that a lie follows from its settings, its own
version and what its row has read: it is the same in every engine and in a replay. Version 0, from which all start, is
known to everybody, and is not lied about. Directions, which go along with weights where rules predict, stay honest.

A server's workers read nothing of each other. Lies that look at others are told there where the server takes them, and
so follow from its rows (``ServedAttackers``).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor

from ray_pcasgd.base.randomness import generator
from ray_pcasgd.base.settings import Settings, from_name
from ray_pcasgd.base.state import State


class Sight(NamedTuple):
    """What an attacker knows where it publishes a version."""

    own: Tensor
    """What an honest agent would send, shape (D,)."""
    honest: tuple[Tensor, ...]
    """What it knows of its honest neighbors, or of a server's honest workers, in their order; each of shape (D,)."""
    old: Tensor
    """What it would have sent where its present period began, shape (D,)."""
    random: np.random.Generator
    """The random stream of the version."""


class AnyAttack(Settings, ABC):
    """A kind of attack; pure."""

    reads_others: ClassVar[bool] = False
    """Whether it looks at what the attacker knows of others."""
    flips_labels: ClassVar[bool] = False
    """Whether it acts in training, and all that is sent is as it was computed."""

    @property
    def repeats(self) -> int:
        """Versions from one that ``Sight.old`` is about to the next."""
        return 1

    @abstractmethod
    def lie(self, sight: Sight) -> Tensor:
        """Return what is sent, shape (D,)."""


class SignFlip(AnyAttack):
    """``-s x`` in place of ``x``."""

    name: Literal["sign-flip"] = "sign-flip"
    scale: float = Field(1.0, gt=0, le=1e6)
    """s, above 0."""

    def lie(self, sight: Sight) -> Tensor:
        """Return ``-s x``."""
        return -self.scale * sight.own


class Noise(AnyAttack):
    """Normal noise in place of what was computed, drawn anew for each version."""

    name: Literal["noise"] = "noise"
    std: float = Field(1.0, gt=0, le=1e6)
    """Standard deviation of each number, above 0. Kardam's experiments have 200, for gradients."""

    def lie(self, sight: Sight) -> Tensor:
        """Return the noise."""
        drawn = sight.random.standard_normal(sight.own.shape[-1], dtype=np.float32)
        return (self.std * torch.from_numpy(drawn)).to(sight.own.device).expand(sight.own.shape).clone()


class Uniform(AnyAttack):
    """Uniform noise in place of what was computed, drawn anew for each version, as in BRIDGE's experiments."""

    name: Literal["uniform"] = "uniform"
    low: float = Field(-1.0, ge=-1e6, le=1e6)
    """Least value of each number, below ``high``."""
    high: float = Field(0.0, ge=-1e6, le=1e6)
    """Each number is this at most."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g}: allowed are values below high = {self.high:g}")
        return self

    def lie(self, sight: Sight) -> Tensor:
        """Return the noise."""
        drawn = sight.random.random(sight.own.shape[-1], dtype=np.float32)
        noise = self.low + (self.high - self.low) * torch.from_numpy(drawn)
        return noise.to(sight.own.device).expand(sight.own.shape).clone()


class ALittleIsEnough(AnyAttack):
    """ALIE: ``mu - z sigma``, the honest mean less z deviations of each number (Baruch, Baruch, Goldberg 2019).

    **Choice**: mean and deviation (of a sample) are those of what the attacker has computed itself and has read of its
    honest neighbors, since it lies where it publishes, and does not see what they are going to send. Among a server's
    workers: of its own and of what the server has taken last of each honest worker, in this update or before.
    """

    name: Literal["alie"] = "alie"
    reads_others: ClassVar[bool] = True
    z: float = Field(1.5, gt=0, le=1e6)
    """Standard deviations by which each number is off, above 0."""

    def lie(self, sight: Sight) -> Tensor:
        """Return ``mu - z sigma``."""
        known = (sight.own, *sight.honest)
        mean = mean_of(known)
        square = torch.zeros_like(mean)
        for vector in known:
            square = square + (vector - mean) * (vector - mean)
        return mean - self.z * (square / max(1, len(known) - 1)).sqrt()


class InnerProduct(AnyAttack):
    """Inner-product manipulation: ``-s mu``, mu the honest mean as for ALIE (Xie, Koyejo, Gupta, UAI 2019)."""

    name: Literal["inner-product"] = "inner-product"
    reads_others: ClassVar[bool] = True
    scale: float = Field(2.0, gt=0, le=1e6)
    """s, above 0."""

    def lie(self, sight: Sight) -> Tensor:
        """Return ``-s mu``."""
        return -self.scale * mean_of((sight.own, *sight.honest))


class Mimic(AnyAttack):
    """What it has read last of one honest neighbor, the first, so that this one counts twice (Karimireddy et al. 2022).

    Among a server's workers: what the server has taken last of the first honest one. Until there is any, what it has
    computed itself.
    """

    name: Literal["mimic"] = "mimic"
    reads_others: ClassVar[bool] = True

    def lie(self, sight: Sight) -> Tensor:
        """Return the neighbor's."""
        return (*sight.honest, sight.own)[0]


class LabelFlip(AnyAttack):
    """Trains on ``C - 1 - y`` in place of the class y of C, and sends what comes of it."""

    name: Literal["label-flip"] = "label-flip"
    flips_labels: ClassVar[bool] = True

    def lie(self, sight: Sight) -> Tensor:
        """Return what was computed."""
        return sight.own


class StaleReplay(AnyAttack):
    """One old version again and again, as if it were each new one (the staleness attack)."""

    name: Literal["stale-replay"] = "stale-replay"
    period: int = Field(100, ge=2, le=1_000_000)
    """Versions for which the same one is sent, from 2 on."""

    @property
    def repeats(self) -> int:
        """The period."""
        return self.period

    def lie(self, sight: Sight) -> Tensor:
        """Return the old version."""
        return sight.old


Attack = Annotated[
    Annotated[
        SignFlip | Noise | Uniform | ALittleIsEnough | InnerProduct | Mimic | LabelFlip | StaleReplay,
        Field(discriminator="name"),
    ],
    BeforeValidator(from_name),
]
"""An attack's settings, told apart by ``name``."""


class Faults(Settings):
    """Who attacks, and how."""

    agents: tuple[int, ...] = Field(min_length=1)
    """The attackers: some of the peers, or of a server's workers. They know each other."""
    attack: Attack
    """What they send: `sign-flip`, `noise`, `uniform`, `alie`, `inner-product`, `mimic`, `stale-replay`; or
    `label-flip`, by which they train on wrong labels."""

    @field_validator("agents")
    @classmethod
    def _each_once(cls, agents: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(agents)) < len(agents):
            raise ValueError(f"agents = {list(agents)}: allowed is each agent once")
        return agents


def mean_of(vectors: tuple[Tensor, ...]) -> Tensor:
    """Return the mean of vectors of shape (D,), summed in their order."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total / len(vectors)


class Attacker:
    """One attacker's memory: what it has read, and its version that it sends again."""

    def __init__(self, faults: Faults, seed: int, agent: int) -> None:
        self.attack, self._fellows, self._key = faults.attack, frozenset(faults.agents), (seed, agent)
        self._honest: dict[int, Tensor] = {}
        self._old: tuple[int, Tensor] | None = None
        """The version that it sends again, with its number."""

    @property
    def flips_labels(self) -> bool:
        """Whether it trains on wrong labels."""
        return self.attack.flips_labels

    def note(self, neighbor: int, vector: Tensor) -> None:
        """Take in what was read of a neighbor, shape (D,); it must never be changed in place."""
        if self.attack.reads_others and neighbor not in self._fellows:
            self._honest[neighbor] = vector

    @property
    def reads_others(self) -> bool:
        """Whether its lies look at others."""
        return self.attack.reads_others

    def sent(self, version: int, own: Tensor) -> Tensor:
        """Return what is sent in place of ``own``, shape (D,); asked twice for a version, the same."""
        if version == 0:
            return own
        period = version - version % self.attack.repeats
        if self._old is None or self._old[0] < period:
            self._old = version, own
        honest = tuple(self._honest[k] for k in sorted(self._honest))
        seed, agent = self._key
        return self.attack.lie(Sight(own, honest, self._old[1], generator(seed, "attack", agent, version)))

    def forget(self) -> None:
        """Begin anew."""
        self._honest, self._old = {}, None

    def state(self) -> State:
        """Return what ``restore`` goes on from."""
        return {"honest": self._honest, "old": None if self._old is None else list(self._old)}

    def restore(self, state: State, device: torch.device) -> None:
        """Go on from a state."""
        self._honest = {k: vector.to(device) for k, vector in state["honest"].items()}
        old = state["old"]
        self._old = None if old is None else (int(old[0]), old[1].to(device))


class ServedAttackers:
    """Attackers among the workers of a server, of the kind that looks at others: what the server takes in their place.

    **Choice**: they know the last message of each honest worker that the server has taken, those of the update included
    in which it takes theirs. So with a server that waits for all they know what the literature lets them know, and with
    one that takes one gradient after another no more than its past. What they know follows from the server's rows.
    """

    def __init__(self, faults: Faults, seed: int) -> None:
        self._attack, self._agents, self._seed = faults.attack, frozenset(faults.agents), seed
        self._honest: dict[int, Tensor] = {}

    def told(self, sent: Sequence[tuple[int, int, Tensor]]) -> list[Tensor]:
        """Return what an update takes of (worker, version, vector), sorted by worker and version."""
        for worker, _, vector in sent:
            if worker not in self._agents:
                self._honest[worker] = vector
        honest = tuple(self._honest[k] for k in sorted(self._honest))
        return [
            self._attack.lie(Sight(own, honest, own, generator(self._seed, "attack", worker, version)))
            if worker in self._agents
            else own
            for worker, version, own in sent
        ]

    def state(self) -> State:
        """Return what ``restore`` goes on from."""
        return {"honest": dict(self._honest)}

    def restore(self, state: State, device: torch.device) -> None:
        """Go on from a state."""
        self._honest = {k: vector.to(device) for k, vector in state["honest"].items()}


def attacker_of(faults: Faults | None, seed: int, agent: int) -> Attacker | None:
    """Return an agent's memory as an attacker; ``None`` where it is honest."""
    return Attacker(faults, seed, agent) if faults is not None and agent in faults.agents else None


def flipped(targets: Tensor, num_classes: int) -> Tensor:
    """Return ``C - 1 - y`` for each class y of some targets; what is below 0 is no class, and stays."""
    return torch.where(targets >= 0, num_classes - 1 - targets, targets)


def saved(attacker: Attacker | None) -> Mapping[str, State]:
    """Return the part of an agent's state that an attacker has, where it is one."""
    return {} if attacker is None else {"attacker": attacker.state()}
