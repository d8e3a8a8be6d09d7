"""One agent against plain PyTorch: ``torch.optim.SGD`` for its direction, and the rules' formulas written out."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.records import Read, Row
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config

ALGORITHMS = ["d-psgd", "d-asgd", "c-asgd", "p-asgd", "pc-asgd", "pc-asgd-pv"]
OPTIMIZERS = [
    {},
    {"momentum": 0.9, "weight_decay": 1e-3},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
]
SMALL: dict[str, Any] = {"num_steps": 20, "batch_size": 8, "engine": "local", "task": {"model": {"hidden": [12]}}}


def plan(**settings: Any) -> Plan:
    return make_plan(load_config(SMALL | settings))


def only_agent(**settings: Any) -> Peer:
    own = plan(num_agents=1, clusters=1, links=[], **settings)
    return Peer(own.specs[0], own.data)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def batches(own: Plan, agent: int) -> Any:
    config = own.config
    return config.task.batches(own.data, own.specs[agent].shard, config.batch_size, config.seed, agent)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_agent_alone_is_plain_sgd_to_the_bit(algorithm: str, optimizer: dict[str, Any]) -> None:
    own = plan(num_agents=1, clusters=1, links=[], algorithm=algorithm, optimizer=optimizer, step_size=0.125)
    agent = Peer(own.specs[0], own.data)
    model = own.config.task.build_model(own.data, own.config.seed)
    assert torch.equal(agent.weights, flat(model))
    # A power of two: PyTorch multiplies by the step size and subtracts with one rounding, the rules with two.
    sgd = torch.optim.SGD(model.parameters(), lr=0.125, **optimizer)
    for inputs, targets in (batches(own, 0).at(number) for number in range(20)):
        sgd.zero_grad()
        expected = nn.functional.cross_entropy(model(inputs), targets)
        expected.backward()
        sgd.step()
        loss, _ = agent.step([])
        assert loss == expected.item()
        assert torch.equal(agent.weights, flat(model))


class Reference:
    """All agents of a run in float64, one parameter vector each, by the formulas of the papers."""

    def __init__(self, own: Plan) -> None:
        config = own.config
        self.plan = own
        self.models = [config.task.build_model(own.data, config.seed).double() for _ in own.specs]
        options = config.optimizer.model_dump(exclude={"name", "decay", "braking"})
        self.optimizers = [torch.optim.SGD(model.parameters(), lr=1.0, **options) for model in self.models]
        self.batches = [batches(own, agent) for agent in range(len(own.specs))]
        self.weights = [[flat(model)] for model in self.models]
        self.directions: list[list[Tensor]] = [[] for _ in self.models]

    def compute(self, i: int) -> float:
        """Append u_i of the next mini-batch: what SGD of step size 1 subtracts."""
        model, x = self.models[i], self.weights[i][-1]
        nn.utils.vector_to_parameters(x.clone(), model.parameters())  # it makes views
        inputs, targets = self.batches[i].next()
        self.optimizers[i].zero_grad()
        loss = nn.functional.cross_entropy(model(inputs.double()), targets)
        loss.backward()
        self.optimizers[i].step()
        self.directions[i].append(x - flat(model))
        return loss.item()

    def apply(self, row: Row, theta: float) -> None:
        """Append x_i(t + 1) = theta x_pre + (1 - theta) x_cli, with the weight of who is not read moved to i."""
        i, t, lambda_0 = row.agent, row.step, 0.04
        matrix, eta = self.plan.network.matrix, 0.125
        x, u = self.weights[i][t], self.directions[i][t]
        predicted, clipped = -eta * u, -eta * u
        left_predicted = left_clipped = 1.0
        for read in row.reads:
            k, v, tau, age = read
            w = float(matrix[i, k])
            if tau == 0:
                estimate = self.weights[k][v]
                clipped = clipped + w * estimate
                left_clipped -= w
            else:
                drift = sum((self.weights[i][t - age + r] - self.weights[i][t - age] for r in range(age)), 0 * x)
                uk = self.directions[k][v]
                estimate = self.weights[k][v] - eta * tau * (uk + lambda_0 * uk * uk * drift / max(age, 1))
            predicted = predicted + w * estimate
            left_predicted -= w
        new = theta * (predicted + left_predicted * x) + (1 - theta) * (clipped + left_clipped * x)
        self.weights[i].append(new)


DELAYED: dict[str, Any] = {
    "num_agents": 4,
    "clusters": 2,
    "topology": {"name": "edges", "edges": [[0, 1], [1, 2], [2, 3], [0, 3], [0, 2]]},
    "links": [{"between": "clusters", "delay": 3}],
    "num_steps": 9,
    "step_size": 0.125,
    "optimizer": {"momentum": 0.5, "weight_decay": 1e-2},
    "compute": {"law": {"name": "uniform", "low": 0.5, "high": 1.5}},
    "reliability": {"name": "measured", "staleness": 0},
}


@pytest.mark.parametrize("is_reading_all", [True, False])
@pytest.mark.parametrize(
    ("algorithm", "theta"),
    [("c-asgd", 0.0), ("p-asgd", 1.0), ({"name": "pc-asgd", "theta": 0.25}, 0.25)],
)
def test_agents_with_late_news_follow_the_formulas(algorithm: Any, theta: float, is_reading_all: bool) -> None:
    # Without momentum the direction is the gradient itself, whose storage the next backward pass overwrites.
    own = plan(algorithm=algorithm, **DELAYED | ({} if is_reading_all else {"optimizer": {}}))
    agents = [Peer(spec, own.data) for spec in own.specs]
    reference = Reference(own)
    versions: list[list[tuple[Tensor, Tensor]]] = [[(a.weights, a.weights.clone())] for a in agents]
    directions: list[list[Tensor]] = [[] for _ in agents]
    most_stale = 0
    for row in own.schedule:
        if not is_reading_all:
            # Every third step misses one neighbor, which has left the run or whose message has not come.
            row = row._replace(reads=row.reads[1:] if row.step % 3 == 1 else row.reads)
        agent = agents[row.agent]
        loss = agent.compute()
        assert loss == pytest.approx(reference.compute(row.agent), rel=1e-4)
        directions[row.agent].append(agent.direction)
        received = []
        for read in row.reads:
            direction = directions[read.neighbor][read.version] if read.staleness else None
            received.append(Received(read, versions[read.neighbor][read.version][0], torch.zeros(0), direction))
            most_stale = max(most_stale, read.staleness)
        agent.apply(received)
        reference.apply(row, theta)
        versions[row.agent].append((agent.weights, agent.weights.clone()))
    assert most_stale >= 3
    for agent, own_versions, expected in zip(agents, versions, reference.weights, strict=True):
        assert agent.version == 9
        torch.testing.assert_close(agent.weights.double(), expected[9], rtol=1e-4, atol=2e-6)
        # What neighbors were sent was never changed.
        assert all(torch.equal(sent, copy) for sent, copy in own_versions)


def test_the_weight_of_a_neighbor_that_is_not_read_stays_with_the_agent() -> None:
    own = plan(algorithm="d-asgd", num_agents=3, clusters=1, topology="complete", step_size=0.0)
    agent = Peer(own.specs[0], own.data)
    start, other = agent.weights, agent.weights + 3
    agent.step([Received(Read(2, 0, 0, 0), other, torch.zeros(0), None)])
    torch.testing.assert_close(agent.weights, start + 1)  # 2/3 of its own, 1/3 of the other
    agent.step([])
    torch.testing.assert_close(agent.weights, start + 1)


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 10))


NORMED: dict[str, Any] = {"task": {"model": {"name": "custom", "factory": normed}}}


def test_batch_norm_statistics_are_averaged_over_reliable_neighbors() -> None:
    own = plan(algorithm="p-asgd", num_agents=4, clusters=1, topology="complete", **NORMED)
    agent = Peer(own.specs[1], own.data)
    twin = Peer(own.specs[1], own.data)
    twin.compute()
    after_forward = twin.replica.buffers.clone()
    assert not torch.equal(after_forward, twin.buffers)
    sent = [torch.full_like(after_forward, value) for value in (10.0, 100.0, 1000.0)]
    stale = torch.zeros_like(agent.weights)
    reads = [Read(0, 0, 0, 0), Read(2, 0, 4, 0), Read(3, 0, 0, 0)]
    agent.step(
        [
            Received(read, agent.weights, buffers, stale if read.staleness else None)
            for read, buffers in zip(reads, sent, strict=True)
        ]
    )
    # 1/4 each; that of the unreliable neighbor goes to the agent.
    expected = 0.5 * after_forward + 0.25 * sent[0] + 0.25 * sent[2]
    torch.testing.assert_close(agent.buffers, expected)
    assert torch.equal(agent.replica.buffers, agent.buffers)
    assert int(agent.replica.local()["1.num_batches_tracked"]) == 1


def test_a_probe_leaves_no_trace_and_its_candidates_see_the_same_dropout() -> None:
    agent = only_agent(algorithm={"name": "pc-asgd-pv", "condition": "probe"}, **NORMED)
    agent.compute()
    weights, buffers = agent.replica.weights.clone(), agent.replica.buffers.clone()
    losses = agent.probe()((agent.weights, agent.weights + 0.1, agent.weights))
    assert losses[0] == losses[2] != losses[1]
    assert torch.equal(agent.replica.weights, weights)
    assert torch.equal(agent.replica.buffers, buffers)
    assert int(agent.replica.local()["1.num_batches_tracked"]) == 1
    assert agent.probe()((agent.weights,))[0] != losses[0]  # another mini-batch


def test_training_does_not_depend_on_what_else_draws_random_numbers() -> None:
    one, other = only_agent(**NORMED), only_agent(**NORMED)
    for _ in range(3):
        one.step([])
        torch.rand(7)
        other.step([])
        other.evaluate()
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_with_agent_and_step(loss: float) -> None:
    agent = only_agent()
    agent.step([])
    assert agent.check_finite(1e30) == 1e30
    with pytest.raises(NonFiniteLossError, match=rf"^agent 0 has loss {loss} at step 1$") as caught:
        agent.check_finite(loss)
    assert (caught.value.agent, caught.value.step) == (0, 1)


@pytest.mark.parametrize(
    ("step_size", "expected"),
    [
        (0.5, [0.5] * 8),
        ({"name": "linear", "start": 1.0, "end": 0.5, "steps": 4}, [1, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5, 0.5]),
        (
            {"name": "cosine", "start": 1.0, "steps": 4},
            [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0, 0, 0],
        ),
        (
            {"name": "multi-step", "start": 1.0, "factor": 0.5, "at_steps": [2, 5]},
            [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25],
        ),
    ],
)
@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_steps_have_the_size_of_their_curve(step_size: Any, expected: list[float], warmup_steps: int) -> None:
    agent = only_agent(step_size=step_size, warmup_steps=warmup_steps, algorithm="d-asgd")
    for step, eta in enumerate(expected):
        size = eta * min(1.0, (step + 1) / warmup_steps) if warmup_steps else eta
        before = agent.weights
        agent.step([])
        np.testing.assert_allclose(agent.weights, before - np.float32(size) * agent.direction, rtol=0, atol=1e-6)


def test_agents_are_evaluated_after_every_so_many_steps_and_at_the_end() -> None:
    recipe = only_agent(num_steps=11, evaluate_every=4).spec.recipe
    assert [version for version in range(1, 12) if recipe.evaluates_at(version)] == [4, 8, 11]


def test_an_evaluation_is_of_the_agent_s_own_version_and_leaves_it_in_training_mode() -> None:
    agent = only_agent(**NORMED)
    agent.step([])
    model = normed().eval()
    snapshot = agent.snapshot()
    model.load_state_dict(agent.replica.state_dict(snapshot.weights, snapshot.buffers, snapshot.local))
    inputs, targets = agent.data.test.take(range(len(agent.data.test)))
    measured = agent.evaluate()
    assert measured["accuracy"] == pytest.approx((model(inputs).argmax(1) == targets).float().mean().item())
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(model(inputs), targets).item(), rel=1e-5)
    assert agent.replica.module.training
    agent.step([])
    assert int(snapshot.local["1.num_batches_tracked"]) == 1  # a snapshot does not change afterwards


def test_messages_are_as_long_as_what_they_hold() -> None:
    size = only_agent().weights.numel()
    assert only_agent(algorithm="d-asgd").message_bytes == 4 * size
    assert only_agent(algorithm="pc-asgd").message_bytes == 8 * size
    with_buffers = only_agent(algorithm="d-asgd", **NORMED)
    assert with_buffers.message_bytes == 4 * (with_buffers.weights.numel() + 16)
