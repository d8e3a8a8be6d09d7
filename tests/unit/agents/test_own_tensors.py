"""Models whose own code changes their tensors: one agent without delay is the plain PyTorch loop, to the bit."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from ray_pcasgd.agents.learner import ModelError
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.settings.loading import load_config
from ray_pcasgd.runs.trainer import Trainer
from tests.unit.memory import in_one_vector

# A power of two: PyTorch multiplies by the step size and subtracts with one rounding, the rules with two.
ETA = 0.125
STEPS = 12
DECAYED = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}


class Center(nn.Module):
    """A buffer that is bound to a new tensor at each pass, and another one for which that is not the training's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(64))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        self.center = 0.9 * self.center + 0.1 * inputs.mean(0).detach()
        self.passes = self.passes + 1
        result: Tensor = self.layer(inputs - self.center)
        return result


class RenormByData(nn.Module):
    """Weights that are bound to new data before they are used."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 64) + torch.arange(64) / 64)
        self.bias = nn.Parameter(torch.zeros(10))

    def forward(self, inputs: Tensor) -> Tensor:
        self.weight.data = self.weight.data / self.weight.data.norm(dim=1, keepdim=True)
        return functional.linear(inputs, self.weight, self.bias)


class RenormInPlace(RenormByData):
    def forward(self, inputs: Tensor) -> Tensor:
        self.weight.data.mul_(3 / self.weight.data.norm())
        return functional.linear(inputs, self.weight, self.bias)


class RenormByCopy(RenormByData):
    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(self.weight.clamp(-0.5, 1.5))
        return functional.linear(inputs, self.weight, self.bias)


class NewParameter(RenormByData):
    """A parameter that is another one at each pass: no optimizer ever moves it."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.weight = nn.Parameter(0.99 * self.weight.detach())
        return functional.linear(inputs, self.weight, self.bias)


class RegisteredAnew(Center):
    def forward(self, inputs: Tensor) -> Tensor:
        self.register_buffer("center", 0.5 * self.center + 0.5 * inputs.mean(0))
        result: Tensor = self.layer(inputs - self.center)
        return result


class Lazily(nn.Module):
    """A buffer that is made by the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first_mean", None)
        self.layer = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.first_mean is None:
            self.first_mean = inputs.mean(0)
        result: Tensor = self.layer(inputs - self.first_mean)
        return result


class MomentumEncoder(nn.Module):
    """A frozen copy that follows the trained layer from within the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.last = nn.Linear(64, 8), nn.Linear(64, 8), nn.Linear(16, 10)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key.data = 0.9 * key.data + 0.1 * query.data
        result: Tensor = self.last(torch.cat([self.query(inputs), self.key(inputs)], dim=1).tanh())
        return result


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        self.second.weight.data = self.second.weight.data.clamp(-0.1, 0.1)
        result: Tensor = self.last(self.second(self.first(inputs).tanh()).tanh())
        return result


class Words(nn.Module):
    """An embedding that renormalizes the rows that it looks up, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(17, 6, max_norm=1.0)
        self.last = nn.Linear(64 * 6, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.last(self.words((inputs * 16).long()).flatten(1))
        return result


class EverySecond(nn.Module):
    """Three branches: one is used at every second pass, one at random, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.second, self.depth, self.never = (nn.Linear(64, 10) for _ in range(4))
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.always(inputs)
        if self.training:
            self.passes += 1
        if self.passes % 2:
            outputs = outputs + self.second(inputs)
        if self.training and torch.rand(()) < 0.5:
            outputs = outputs + self.depth(inputs)
        return outputs


class InPlaceWithGraph(nn.Module):
    """A buffer changed in place by what depends on weights, without a word of ``detach``; then let go of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("mean", torch.zeros(10))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        self.mean = self.mean.detach() + 0.1 * outputs.mean(0)
        return outputs - self.mean.detach()


class Swapped(nn.Module):
    """Two weights that change places, and one that is turned over in its own memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)
        self.turn = nn.Parameter(torch.eye(64))

    def forward(self, inputs: Tensor) -> Tensor:
        first, second = self.first.weight, self.second.weight
        first.data, second.data = second.data, first.data
        self.turn.data = self.turn.data.t()
        result: Tensor = self.first(inputs @ self.turn) + 2 * self.second(inputs)
        return result


class Codebook(nn.Module):
    """Frozen codes that move in place, unseen by autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.last = nn.Linear(64, 4), nn.Linear(4, 10)
        self.codes = nn.Parameter(torch.arange(32.0).reshape(8, 4) / 8 - 2, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.encode(inputs)
        nearest = torch.cdist(found, self.codes).argmin(1)
        if self.training:
            self.codes.data[nearest] = 0.9 * self.codes.data[nearest] + 0.1 * found.detach()
        result: Tensor = self.last(found + (self.codes[nearest] - found).detach())
        return result


def hooked() -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 10))
    made[0].register_forward_pre_hook(lambda layer, _: (layer.weight.data.clamp_(-0.05, 0.05), None)[1])
    return made


def normalized(momentum: float | None = 0.1) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12, momentum=momentum), nn.ReLU(), nn.Linear(12, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "buffer bound anew": Center,
    "buffer registered anew": RegisteredAnew,
    "buffer made by the first batch": Lazily,
    "buffer with a graph": InPlaceWithGraph,
    "weight.data bound anew": RenormByData,
    "weight.data in place": RenormInPlace,
    "weight copied in place": RenormByCopy,
    "another parameter at each pass": NewParameter,
    "tied weights bound anew": Tied,
    "frozen parameters that follow": MomentumEncoder,
    "frozen parameters in place": Codebook,
    "weights that change places": Swapped,
    "weights changed by a hook": hooked,
    "embedding with max_norm": Words,
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(64, 10))),
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(64, 12)), nn.Tanh(), nn.Linear(12, 10)
    ),
    "old spectral norm": lambda: nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(64, 10))),
    "batch norm": normalized,
    "batch norm, mean over all batches": lambda: normalized(None),
    "instance norm": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 16)), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(64, 10)
    ),
    "branches without gradients": EverySecond,
}


def plan(factory: Any, **settings: Any) -> Plan:
    base = {
        "num_agents": 1,
        "clusters": 1,
        "links": [],
        "num_steps": STEPS,
        "evaluate_every": 5,
        "batch_size": 8,
        "step_size": ETA,
        "engine": {"name": "local", "batched": "never"},
        "task": {"model": {"name": "custom", "factory": factory}},
    }
    return make_plan(load_config(base | settings))


def seed_as_the_agent_does(agent: Peer, number: int) -> None:
    """Dropout and the like: seeded for each batch."""
    from ray_pcasgd.base.randomness import stream_seed

    torch.default_generator.manual_seed(stream_seed(agent.spec.recipe.seed, "forward", 0, number))


def plain_loop(own: Plan, agent: Peer, optimizer: dict[str, Any]) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """Yield, step by step, the loss and the state dict of the user's own loop."""
    model = in_one_vector(own.config.task.build_model(own.data, own.config.seed).train())
    sgd = torch.optim.SGD(model.parameters(), lr=ETA, **optimizer)
    batches = own.config.task.batches(own.data, own.specs[0].shard, 8, own.config.seed, 0)
    for number in range(STEPS):
        inputs, targets = batches.at(number)
        sgd.zero_grad()
        with torch.random.fork_rng(devices=[]):
            seed_as_the_agent_does(agent, number + 1)
            loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        sgd.step()
        yield loss.item(), {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("optimizer", [{}, DECAYED], ids=["plain", "momentum and decay"])
@pytest.mark.parametrize("name", MODELS)
def test_an_agent_alone_is_the_plain_loop_to_the_bit(name: str, optimizer: dict[str, Any]) -> None:
    own = plan(MODELS[name], optimizer=optimizer)
    agent = Peer(own.specs[0], own.data)  # type: ignore[arg-type]
    for expected_loss, expected in plain_loop(own, agent, optimizer):
        loss, _ = agent.step([])
        assert loss == expected_loss
        agent.evaluate()  # which leaves no trace
        state = agent.replica.state_dict(*agent.snapshot())
        assert state.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize("name", MODELS)
def test_a_whole_run_keeps_and_saves_what_the_plain_loop_has(name: str, tmp_path: Path) -> None:
    own = plan(MODELS[name], optimizer=DECAYED)
    agent = Peer(own.specs[0], own.data)  # type: ignore[arg-type]
    *_, (_, expected) = plain_loop(own, agent, DECAYED)
    result = Trainer(own.config, storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert result.checkpoint
    state = result.checkpoint.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


SERVED = ["buffer bound anew", "buffer made by the first batch", "batch norm", "branches without gradients"]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", [*SERVED, "frozen parameters that follow", "spectral norm"])
def test_one_worker_of_a_server_is_the_plain_loop_to_the_bit(name: str, shards: int, tmp_path: Path) -> None:
    own = plan(MODELS[name], optimizer=DECAYED, algorithm={"name": "server", "shards": shards})
    lone = plan(MODELS[name], optimizer=DECAYED)
    *_, (_, expected) = plain_loop(lone, Peer(lone.specs[0], lone.data), DECAYED)  # type: ignore[arg-type]
    result = Trainer(own.config, storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert result.checkpoint
    state = result.checkpoint.state_dict()
    for key, value in expected.items():
        assert torch.equal(state[key], value), key


def test_a_server_s_counters_are_those_of_its_first_worker_and_its_means_of_all(tmp_path: Path) -> None:
    """With gathering ``sync`` each update has all workers, in their order."""
    own = plan(Center, num_agents=3, algorithm={"name": "server", "gathering": "sync"}, num_steps=4)
    result = Trainer(own.config, storage_path=str(tmp_path)).fit()
    assert result.checkpoint
    state = result.checkpoint.state_dict()
    centers = []
    for spec in own.specs[:3]:
        batches = own.config.task.batches(own.data, spec.shard, 8, own.config.seed, spec.agent)
        center = torch.zeros(64)
        for number in range(4):
            center = 0.9 * center + 0.1 * batches.at(number)[0].mean(0)
        centers.append(center.double())
    assert int(state["passes"]) == 4
    torch.testing.assert_close(state["center"], (sum(centers) / 3).float())


class Odd(nn.Module):
    """Does something that no run can follow, at its fifth pass in training."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.passes = what, 0
        self.layer = nn.Linear(64, 10)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += self.training
        if self.passes == 5 and self.what == "buffer":
            self.seen = torch.zeros(4)
        if self.passes == 5 and self.what == "weights":
            self.layer.weight.data = self.layer.weight.data / 2
        result: Tensor = self.layer(inputs)
        return result


def test_what_no_run_can_follow_ends_it_with_agent_step_and_name(tmp_path: Path) -> None:
    changed = plan(partial(Odd, "buffer"))
    result = Trainer(changed.config, storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, ModelError)
    assert str(result.error) == (
        "agent 0 at step 4: task.model: seen is torch.float32 of shape (4,) on cpu after a forward pass; allowed is "
        "what it was: torch.float32 of shape (3,) on cpu"
    )


def test_weights_that_change_beside_their_server_end_the_run(tmp_path: Path) -> None:
    own = plan(partial(Odd, "weights"), algorithm="server")
    result = Trainer(own.config, storage_path=str(tmp_path)).fit()
    assert isinstance(result.error, ModelError)
    assert str(result.error).startswith("agent 0 at step 4: task.model: a forward pass changes the model's own weights")


class Frozen(nn.Module):
    """Batch norm that its own ``train`` leaves as it is, and one that only the first mode decides about."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kept, self.free = nn.Linear(64, 10), nn.BatchNorm1d(10), nn.BatchNorm1d(10)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.kept.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.free(self.kept(self.layer(inputs)))
        return result


def single_out() -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10), nn.BatchNorm1d(10))
    made[1].eval()
    return made


@pytest.mark.parametrize(
    ("factory", "kept", "free"),
    [(Frozen, "kept", "free"), (single_out, "1", "2"), (lambda: single_out().eval(), "", "1")],
    ids=["its own train", "one layer", "all of it"],
)
def test_layers_that_were_put_into_evaluation_mode_stay_there(factory: Any, kept: str, free: str) -> None:
    """All of it in that mode singles nothing out: then all of it trains."""
    own = plan(factory)
    agent = Peer(own.specs[0], own.data)  # type: ignore[arg-type]
    for _ in range(3):
        agent.step([])
        agent.evaluate()
    parts = dict(agent.replica.module.named_modules())
    state = agent.replica.state_dict(*agent.snapshot())
    assert state[f"{free}.num_batches_tracked"] == 3
    assert parts[free].training
    names = [slot.name for slot in agent.replica.buffer_layout]
    assert f"{free}.running_mean" in names
    if kept:
        assert not parts[kept].training
        assert state[f"{kept}.num_batches_tracked"] == 0
        assert f"{kept}.running_mean" not in names  # alike for all, and never rounded by averaging


class Adapter(nn.Module):
    """Weights that ``eval`` merges and ``train`` takes apart again."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.extra = nn.Linear(64, 10), nn.Parameter(torch.full((10, 64), 0.01))
        self.is_merged = False

    def train(self, mode: bool = True) -> "Adapter":
        super().train(mode)
        if mode == self.is_merged:
            self.base.weight.data += (1 if not mode else -1) * self.extra.data
            self.is_merged = not mode
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.base(inputs)
        return result if self.is_merged else result + inputs @ self.extra.T


def test_an_evaluation_leaves_no_trace_whatever_the_modes_do() -> None:
    own = plan(Adapter)
    one, other = (Peer(own.specs[0], own.data) for _ in range(2))  # type: ignore[arg-type]
    for _ in range(3):
        one.step([])
        other.step([])
        other.evaluate()
    assert torch.equal(one.weights, other.weights)
    assert other.replica.module.is_merged is False


def test_names_of_compiled_modules_are_saved_without_their_wrapper(tmp_path: Path) -> None:
    def compiled() -> nn.Module:
        inner = torch.compile(nn.Linear(64, 12), backend="eager")
        whole = nn.Sequential(inner, nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))  # type: ignore[arg-type]
        return torch.compile(whole, backend="eager")  # type: ignore[return-value]

    own = plan(compiled, num_agents=2, mixed_buffers=["1.running_*"])
    result = Trainer(own.config, storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert result.checkpoint
    plainly = nn.Sequential(nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    plainly.load_state_dict(result.checkpoint.state_dict())
    assert int(plainly[1].num_batches_tracked) == STEPS  # type: ignore[arg-type]
