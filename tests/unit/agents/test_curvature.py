"""The measured curvature against the whole Hessian."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.agents import curvature
from ray_pcasgd.agents.adam import AdamW
from ray_pcasgd.agents.curvature import MeasuredCurvature, curvature_along
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.participant import Received
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.agents.peer_spec import Recipe
from ray_pcasgd.records import Read
from ray_pcasgd.rules import PCASGD
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import load_config


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_rayleigh_quotient_of_the_whole_hessian(seed: int) -> None:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs, labels = torch.randn(16, 3), torch.randint(2, (16,))
    named = dict(network.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(weights: Tensor) -> Tensor:
        parts = [part.view(p.shape) for part, p in zip(torch.split(weights, sizes), named.values(), strict=True)]
        outputs = torch.func.functional_call(network, dict(zip(named, parts, strict=True)), (inputs,))
        return nn.functional.cross_entropy(outputs, labels)

    weights = torch.cat([p.detach().reshape(-1) for p in named.values()])
    hessian = torch.func.jacrev(torch.func.grad(loss))(weights)
    direction = torch.randn(len(weights))
    expected = (direction @ hessian @ direction / (direction @ direction)).item()
    of_network = lambda: nn.functional.cross_entropy(network(inputs), labels)  # noqa: E731
    found = curvature_along(of_network, list(named.values()), direction)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_losses_that_bend_down_are_linear_in_parts_or_are_not_finite() -> None:
    x, y, z = (torch.ones(3, requires_grad=True) for _ in range(3))
    ones = torch.ones(3)
    assert curvature_along(lambda: -(x * x).sum(), [x], ones) == pytest.approx(-2)
    assert curvature_along(lambda: (x * torch.inf).sum() * (x * x).sum(), [x], ones) is None
    assert curvature_along(lambda: (x * x).sum(), [x], torch.zeros(3)) is None
    # A part that the loss does not reach, and one in which it is linear.
    assert curvature_along(lambda: (x * x).sum() * 2 + y.sum(), [x, y, z], torch.ones(9)) == pytest.approx(4 / 3)
    assert curvature_along(lambda: y.sum(), [y], ones) == 0


def test_momentum_and_weight_decay_steepen() -> None:
    assert SGD().steepened(3.0) == 3.0
    assert SGD(momentum=0.9, weight_decay=0.5).steepened(3.0) == pytest.approx(35.0)


def peer_of(optimizer: Any = "sgd", batch_size: int = 16, **algorithm: Any) -> Peer:
    config = load_config(
        {
            "num_agents": 3,
            "clusters": 3,
            "algorithm": {"name": "pc-asgd", **algorithm},
            "engine": "local",
            "optimizer": optimizer,
            "batch_size": batch_size,
        }
    )
    plan = make_plan(config)
    spec = plan.specs[0]
    assert isinstance(spec, AgentSpec)
    peer = spec.build(plan.data)
    peer.displacements = None  # versions are set here, and not lived through
    return peer


def received(peer: Peer, *staleness: int) -> list[Received]:
    return [
        Received(Read(k, 0, late, late), peer.weights, peer.buffers, torch.full_like(peer.weights, float(k)))
        for k, late in enumerate(staleness, start=1)
    ]


def known(peer: Peer) -> MeasuredCurvature:
    assert peer.curvature is not None
    return peer.curvature


def test_an_agent_measures_where_something_late_is_predicted_and_then_every_so_many_steps() -> None:
    peer = peer_of(stability={"name": "curvature", "every": 3})
    peer.gather(received(peer, 0, 0))
    assert known(peer).measured_at is None
    assert peer.measured_coefficients(0) == {"curvature": 0.0}
    measured = []
    for version in range(1, 8):
        peer.version = version
        peer.gather(received(peer, 1, 1))
        measured.append(known(peer).measured_at)
    assert measured == [1, 1, 1, 4, 4, 4, 7]
    assert peer.measured_coefficients(0)["curvature"] > 0


@pytest.mark.parametrize(("batch_size", "samples", "expected"), [(64, 8, 8), (8, 64, 8), (40, None, 16)])
def test_of_a_large_mini_batch_it_takes_some_samples(batch_size: int, samples: int | None, expected: int) -> None:
    stability = {"name": "curvature"} | ({} if samples is None else {"samples": samples})
    peer, small = peer_of(batch_size=batch_size, stability=stability), peer_of(batch_size=expected)
    for one in (peer, small):
        assert len(one.draw(one.curvature_batches)[0]) == expected
        one.version = 3
        one.gather(received(one, 2, 1))
    assert peer.curvature is not None
    assert peer.curvature.values[0] is not None
    assert peer.curvature.values == known(small).values


def test_with_adamw_the_preconditioner_takes_the_place_of_the_length() -> None:
    optimizer = AdamW(weight_decay=0.25, eps=1e-3)
    peer = peer_of(optimizer, stability="curvature")
    for _ in range(3):
        peer.compute()
    peer.version = 1
    peer.gather(received(peer, 1, 0))
    u = peer.spec.mixing[0] * torch.ones_like(peer.weights)
    alone = peer_of(stability="curvature")
    alone.load()
    alone.curvature_batches.restore(1)
    curvature = alone.curvature_on(peer.snapshot(), alone.draw(alone.curvature_batches), u)
    assert curvature is not None
    # By the formulas alone: v-hat after three steps, of the squares that the state has.
    size = (peer.optimizer_state.square.double() / (1 - 0.999**3)).sqrt() + 1e-3
    expected = curvature * (u @ u).item() / (u.double() @ (size * u)).item() + 0.25
    assert known(peer).values == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("optimizer", ["lion", {"name": "torch", "optimizer": "torch.optim:Adafactor"}])
def test_where_no_curvature_says_how_an_optimizer_feeds_back_the_bound_is_the_constant_one(optimizer: Any) -> None:
    peer, constant = peer_of(optimizer), peer_of(optimizer, stability=1)
    for one in (peer, constant):
        one.version = 1000
    own, reads = peer.rule_inputs(peer.gather(received(peer, 5, 5)))
    assert peer.curvature is None
    assert own.coefficients["curvature"] == 0
    fixed = constant.rule_inputs(constant.gather(received(constant, 5, 5)))
    thetas = []
    for one, seen in ((peer, (own, reads)), (constant, fixed)):
        rule = one.spec.recipe.rule
        assert isinstance(rule, PCASGD)
        thetas.append(rule.chosen_blend(rule.rows(*seen), *seen).theta)
    assert thetas[0] == thetas[1]


def test_a_second_value_counts_as_much_as_the_first_and_all_is_part_of_the_state() -> None:
    peer, again = (peer_of(stability={"name": "curvature", "every": 1}) for _ in range(2))
    values = []
    for version in (1, 2):
        peer.version = version
        alone = peer_of(stability={"name": "curvature", "every": 1})
        alone.version = version
        for one in (alone, peer):
            one.gather(received(one, 1, 1))
        values += known(alone).values
    assert values[0] != values[1]
    assert known(peer).values[0] == pytest.approx(sum(filter(None, values)) / 2)
    again.restore(peer.state())
    assert known(again).state() == (known(peer).values, 2)
    peer.rejoin([], 5)
    assert known(peer).state() == ([None], None)


def test_what_is_not_finite_leaves_what_was_known_and_a_flat_loss_is_not_an_unknown_one() -> None:
    curvature = MeasuredCurvature(every=1, count=3)
    curvature.take(1, [None, -2.0, 4.0])
    assert [curvature.coefficient(place) for place in range(3)] == [0.0, 1e-9, 4.0]
    curvature.take(2, [3.0, None, 2.0])
    assert curvature.values == [3.0, -2.0, 3.0]


@pytest.mark.parametrize("algorithm", [{"theta": 0.3}, {"stability": 1}, {"prediction": "own-drift"}])
def test_nobody_measures_where_the_bound_does_not_ask_for_it(algorithm: dict[str, Any]) -> None:
    peer = peer_of(**algorithm)
    peer.version = 1
    peer.gather(received(peer, 1, 1))
    assert peer.curvature is None
    assert peer.measured_coefficients(0) == {}


class Counting(nn.Module):
    """A linear layer that counts how often it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.register_buffer("offset", torch.full((10,), 0.5))
        self.passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        outputs: Tensor = self.layer(inputs.flatten(1)) * self.passes + self.offset
        return outputs


class Uncopied(Counting):
    """The same, which cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        raise TypeError("not to be copied")


class Enclosing(Counting):
    """The same, by a function that a copy has of the original."""

    def __init__(self) -> None:
        super().__init__()
        self.of_layer = lambda inputs: self.layer(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        self.passes += 1
        outputs: Tensor = self.of_layer(inputs.flatten(1)) * self.passes + self.offset
        return outputs


class Frozen(Counting):
    """The same behind a layer that is not trained, of which no second one is kept in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(64, 64).requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.before(inputs.flatten(1)))


@pytest.mark.parametrize(("network", "makes"), [(Counting, 3), (Uncopied, 5), (Enclosing, 5), (Frozen, 5)])
def test_what_measures_is_a_module_that_has_not_run_with_the_weights_of_the_agent(
    network: type[Counting], makes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = {"name": "custom", "factory": network}
    config = load_config({"num_agents": 2, "engine": "local", "algorithm": "pc-asgd", "task": {"model": factory}})
    plan = make_plan(config)
    made, build = [], Recipe.build
    monkeypatch.setattr(Recipe, "build", lambda recipe, data: made.append(recipe) or build(recipe, data))
    peer = plan.specs[0].build(plan.data)
    assert isinstance(peer, Peer)
    batch, along = peer.draw(peer.curvature_batches), torch.ones_like(peer.weights)
    loss = lambda: nn.functional.cross_entropy(peer.replica.module(batch[0]), batch[1])  # noqa: E731
    expected = curvature_along(loss, peer.replica.parameters(), along)
    assert expected
    made.clear()
    # The same each time, though a pass changes what the next one returns.
    found = [peer.curvature_on(peer.snapshot(), batch, along) for _ in range(4)]
    assert found == [pytest.approx(expected, rel=1e-5)] * 4
    assert len(set(found)) == 1
    assert len(made) == makes


def test_a_loss_that_has_compiled_something_meanwhile_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peer_of()
    batch, along = peer.draw(peer.curvature_batches), torch.ones_like(peer.weights)
    expected = peer.curvature_on(peer.snapshot(), batch, along)
    passes: list[nn.Module] = []
    build = Recipe.build

    def counting(recipe: Recipe, data: Any) -> Any:
        replica = build(recipe, data)
        replica.module.register_forward_hook(lambda module, *_: passes.append(module))
        return replica

    monkeypatch.setattr(Recipe, "build", counting)
    # Its first pass makes it known that there is something that compiles.
    monkeypatch.setattr(curvature, "_can_compile", lambda: bool(passes))
    again = peer_of()
    assert again.curvature_on(again.snapshot(), batch, along) == expected
    first, second = passes[-2:]
    assert first is not second
