"""A slow reference of rules between peers with local steps, in float64, and the small runs that it is held against."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from ray_pcasgd.engines.base import Leaving, Pause
from ray_pcasgd.engines.local.execution import Execution
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config

Array = np.ndarray[Any, np.dtype[np.float64]]
Sent = Callable[[str, int, int, Array], Array]
"""Returns what readers get of an agent's weights or direction at a version."""

SIZE = 3


def regression(seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(120, SIZE))
    targets = inputs @ random.normal(size=(SIZE, 1)) + 0.5 + 0.1 * random.normal(size=(120, 1))
    data = TensorDataset(*(torch.tensor(part, dtype=torch.get_default_dtype()) for part in (inputs, targets)))
    return {
        "data": {"name": "custom", "train": data, "test": data},
        "model": {"name": "custom", "factory": partial(nn.Linear, SIZE, 1)},
        "loss": "mse",
        "metrics": ["mae"],
    }


SMALL: dict[str, Any] = {
    "num_agents": 3,
    "num_steps": 23,
    "evaluate_every": 7,
    "batch_size": 5,
    "links": [{"between": "clusters", "delay": "12 steps"}],
    "compute": {"law": {"name": "exponential", "mean": 1.0}},
    "step_size": {"name": "linear", "start": 0.05, "end": 0.01, "steps": 23},
    "optimizer": {"momentum": 0.9, "weight_decay": 1e-2},
    "engine": {"name": "local", "batched": "never"},
}


def planned(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | {"task": regression()} | settings))


def executed(own: Plan, *, stacked: bool = False) -> tuple[list[Any], list[StepReport]]:
    """Return the agents as the whole run leaves them, and its reports."""
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs], stacked)
    reports = [report for report in execution.reports() if isinstance(report, StepReport)]
    return list(execution.agents), reports


def gone_on(own: Plan) -> list[tuple[Any, Any]]:
    """Return each agent of a whole run with the one that goes on from a state in its middle, to the same weights."""
    whole, _ = executed(own)
    execution = Execution(own.schedule, [spec.build(own.data) for spec in own.specs], leaving=Leaving())
    state = next(report.state() for report in execution.reports() if isinstance(report, Pause))
    again = Execution(own.schedule, [spec.build(own.data) for spec in own.specs])
    again.go_on(state)
    assert len(list(again.reports())) > 0
    pairs = list(zip(whole, again.agents, strict=True))
    for one, other in pairs:
        assert torch.equal(one.weights, other.weights)
    return pairs


def eta_at(step: int) -> float:
    """Return the step size of the small runs."""
    return 0.05 + (0.01 - 0.05) * min(step, 23) / 23


def gradient_of(x: Array, inputs: Array, targets: Array) -> Array:
    """Return the gradient of the mean squared error, by the weights and then the bias."""
    wrong = inputs @ x[:SIZE] + x[SIZE] - targets[:, 0]
    return np.concatenate([2 * (wrong[:, None] * inputs).mean(0), [2 * wrong.mean()]])


class Regression:
    """A plan's linear regression in float64: where all begin, and what each agent's mini-batches say."""

    def __init__(self, own: Plan) -> None:
        self.own, config = own, own.config
        model = config.task.build_model(own.data, config.seed)
        self.start = np.concatenate([one.detach().double().numpy().ravel() for one in model.parameters()])
        self.batches = {purpose: self.stream(purpose) for purpose in ("batches", "probes")}

    def stream(self, purpose: str) -> dict[int, Any]:
        config, own = self.own.config, self.own
        return {
            spec.agent: config.task.batches(own.data, spec.shard, config.batch_size, config.seed, spec.agent, purpose)
            for spec in own.specs
            if len(spec.shard)
        }

    def batch(self, agent: int, number: int, purpose: str = "batches") -> list[Array]:
        return [part.double().numpy() for part in self.batches[purpose][agent].at(number)]

    def gradient(self, agent: int, number: int, x: Array) -> Array:
        return gradient_of(x, *self.batch(agent, number))

    def loss(self, agent: int, number: int, x: Array, purpose: str = "batches") -> float:
        inputs, targets = self.batch(agent, number, purpose)
        return float(((inputs @ x[:SIZE] + x[SIZE] - targets[:, 0]) ** 2).mean())


class Reference:
    """Runs a schedule's rows one after another on linear regression; x has the weights and then the bias."""

    def __init__(
        self, own: Plan, theta: float | None, sent: Sent = lambda what, agent, version, vector: vector
    ) -> None:
        self.own, self.theta, self.sent, config = own, theta, sent, own.config
        given = config.local_steps
        self.length = list(given) if isinstance(given, tuple) else [given] * config.num_agents  # type: ignore[list-item]
        self.task = Regression(own)
        self.versions: dict[tuple[int, int], Array] = {(i, 0): self.task.start for i in range(config.num_agents)}
        self.displacement: dict[tuple[int, int], Array] = {}
        self.step_sizes: dict[tuple[int, int], float] = {}
        self.velocity = {i: np.zeros(SIZE + 1) for i in range(config.num_agents)}

    def eta(self, step: int) -> float:
        return eta_at(step)

    def compute(self, i: int, version: int, start: Array | None = None) -> None:
        """Take a round's local steps from a version, or from what combining it has come to."""
        start = self.versions[i, version] if start is None else start
        z = start.copy()
        total = 0.0
        for step in range(version * self.length[i], min((version + 1) * self.length[i], 23)):
            self.velocity[i] = 0.9 * self.velocity[i] + self.task.gradient(i, step, z) + 0.01 * z
            z = z - self.eta(step) * self.velocity[i]
            total += self.eta(step)
        self.displacement[i, version] = start - z
        self.step_sizes[i, version] = total

    def run(self) -> list[Array]:
        rows = list(self.own.schedule)
        for i in self.velocity:
            self.compute(i, 0)
        for row in rows:
            assert row is not None
            self.versions[row.agent, row.step + 1] = self.taken(row.agent, row.step, row.reads)
            if any(later is not None and later[:2] == (row.agent, row.step + 1) for later in rows):
                self.compute(row.agent, row.step + 1)
        last = [max(v for k, v in self.versions if k == i) for i in self.velocity]
        return [self.versions[i, version] for i, version in enumerate(last)]

    def taken(self, i: int, version: int, reads: Any) -> Array:
        spec = self.own.specs[i]
        weights = dict(zip(spec.neighbors, spec.mixing, strict=True))  # type: ignore[attr-defined]
        x, d = self.versions[i, version], self.displacement[i, version]
        plain = spec.own_mixing * x - d  # type: ignore[attr-defined]
        predicted, clipped = plain.copy(), plain.copy()
        for read in reads:
            k, w = read.neighbor, weights[read.neighbor]
            x_k = self.sent("weights", k, read.version, self.versions[k, read.version])
            if self.theta is None or not read.staleness:
                predicted, clipped = predicted + w * x_k, clipped + w * x_k
                continue
            missed = read.staleness * self.length[k] / self.length[i]
            mean = self.displacement[k, read.version] / self.step_sizes[k, read.version]
            mean = self.sent("direction", k, read.version, mean)
            predicted = predicted + w * (x_k - self.step_sizes[i, version] * missed * mean)
            clipped = clipped + w * x
        return clipped if self.theta is None else self.theta * predicted + (1 - self.theta) * clipped


class CombiningReference(Reference):
    """The same where agents combine first; ``combine`` is given an agent, its version and what it reads."""

    factor = 1.0
    """By what displacements are multiplied."""

    def run(self) -> list[Array]:
        last = dict.fromkeys(self.velocity, 0)
        for row in self.own.schedule:
            assert row is not None
            i, version = row.agent, row.step
            begin = self.combine(i, version, row.reads)
            self.compute(i, version, begin)
            self.versions[i, version + 1] = begin - self.factor * self.displacement[i, version]
            last[i] = version + 1
        return [self.versions[i, version] for i, version in last.items()]

    def mean(self, i: int, version: int, reads: Any) -> Array:
        """Return the mean by the mixing weights; of who is not read, the agent itself has the weight."""
        spec = self.own.specs[i]
        weights = dict(zip(spec.neighbors, spec.mixing, strict=True))  # type: ignore[attr-defined]
        others = {read.neighbor: self.versions[read.neighbor, read.version] for read in reads}
        own = 1 - sum(weights[k] for k in others)
        return own * self.versions[i, version] + sum((weights[k] * x for k, x in others.items()), np.zeros(SIZE + 1))

    def combine(self, i: int, version: int, reads: Any) -> Array:
        """Return the mean, or a blend of predicting and clipping, by the direction that led to what is read."""
        if self.theta is None:
            return self.mean(i, version, reads)
        spec = self.own.specs[i]
        weights = dict(zip(spec.neighbors, spec.mixing, strict=True))  # type: ignore[attr-defined]
        x, rate = self.versions[i, version], self.rate(i, version)
        predicted, clipped = spec.own_mixing * x, spec.own_mixing * x  # type: ignore[attr-defined]
        for read in reads:
            k, w = read.neighbor, weights[read.neighbor]
            x_k = self.sent("weights", k, read.version, self.versions[k, read.version])
            if not read.staleness:
                predicted, clipped = predicted + w * x_k, clipped + w * x_k
                continue
            moved = np.zeros(SIZE + 1)
            if read.version:
                before = k, read.version - 1
                moved = self.sent("direction", k, read.version - 1, self.displacement[before] / self.step_sizes[before])
            predicted = predicted + w * (x_k - rate * read.staleness * self.length[k] / self.length[i] * moved)
            clipped = clipped + w * x
        return self.theta * predicted + (1 - self.theta) * clipped

    def rate(self, i: int, version: int) -> float:
        """Return the sum of the step sizes of the round that begins at a version."""
        steps = range(version * self.length[i], min((version + 1) * self.length[i], 23))
        return sum(self.eta(step) for step in steps)


class SlowMoReference(CombiningReference):
    """Of slow momentum: the round's beginning and momentum are remembered, and ``mean`` is of all or of a pair."""

    def __init__(self, own: Plan, momentum: float, step_size: float, in_pairs: bool = False) -> None:
        super().__init__(own, None)
        self.numbers, self.in_pairs = (momentum, step_size), in_pairs
        self.begun = {i: self.versions[i, 0] for i in self.velocity}
        self.slow = {i: np.zeros(SIZE + 1) for i in self.velocity}

    def combine(self, i: int, version: int, reads: Any) -> Array:
        momentum, step_size = self.numbers
        if self.in_pairs:
            # As published: the displacements' mean, and the pull to the mean of where both began.
            others = [(self.versions[r.neighbor, r.version], self.began_at[r.neighbor, r.version]) for r in reads]
            pair = [(self.versions[i, version], self.begun[i]), *others]
            moved = np.mean([z - x for z, x in pair], axis=0)
            pull = np.mean([x for _, x in pair], axis=0) - self.begun[i]
            self.slow[i] = momentum * self.slow[i] + step_size * moved + step_size * pull
        else:
            # As published, with step size 1: x - z is what the base optimizer has taken in all.
            self.slow[i] = momentum * self.slow[i] + (self.begun[i] - self.mean(i, version, reads))
            self.begun[i] = self.begun[i] - step_size * self.slow[i]
            return self.begun[i]
        self.begun[i] = self.begun[i] + self.slow[i]
        self.began_at[i, version + 1] = self.begun[i]
        return self.begun[i]

    @property
    def began_at(self) -> dict[tuple[int, int], Array]:
        """By agent and version, where the round that led to it began."""
        return self.__dict__.setdefault("_began_at", {(i, 0): self.versions[i, 0] for i in self.velocity})


class GASLoCReference(CombiningReference):
    """Of accelerated gossip: ``theta <- z - alpha L z + gamma (z - z')``, by the matrix ``L = I - W``."""

    def __init__(self, own: Plan, gossip: float, momentum: float, step_size: float) -> None:
        super().__init__(own, None)
        self.gossip, self.momentum, self.factor = gossip, momentum, step_size

    def combine(self, i: int, version: int, reads: Any) -> Array:
        z = self.versions[i, version]
        before = self.versions[i, max(0, version - 1)]
        return z - self.gossip * (z - self.mean(i, version, reads)) + self.momentum * (z - before)


PUBLISHED = {"name": "pc-asgd", "theta": 0.6, "reach": "full", "compensation": {"lambda_0": 0.0}}


def assert_where_the_reference_is(agents: list[Any], expected: list[Array], **tolerance: float) -> None:
    for agent, x in zip(agents, expected, strict=True):
        found = agent.replica.state_dict(*agent.snapshot())
        mine = np.concatenate([found["weight"].double().numpy().ravel(), found["bias"].double().numpy()])
        np.testing.assert_allclose(mine, x, **tolerance)


def assert_refused(settings: dict[str, Any], message: str) -> None:
    """The small run is refused with these settings, in one line that begins so."""
    task = {} if "server" in str(settings) else {"task": regression()}
    with pytest.raises(SettingsError) as raised:
        make_plan(load_config(SMALL | task | settings))
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)
