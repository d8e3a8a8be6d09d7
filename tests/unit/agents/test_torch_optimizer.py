"""Optimizers of ``torch.optim``'s kind inside of an agent, against the same optimizer on plain parameters."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ray_pcasgd.agents.local_optimizer import parts_of, spread
from ray_pcasgd.agents.torch_optimizer import TorchOptimizer
from ray_pcasgd.base.curves import Constant
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.fitting import with_step_size
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config

SHAPES = [torch.Size(shape) for shape in ((6, 4), (6,), (), (3, 6))]
PARTS = parts_of(SHAPES)
SIZE = sum(part.size for part in PARTS)


def draws(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(generator(seed, "draws").standard_normal((count, SIZE)).astype("float32"))


def tensors(flat: Tensor) -> list[Tensor]:
    pieces = torch.split(flat, [part.size for part in PARTS])
    return [piece.clone().view(part.shape) for piece, part in zip(pieces, PARTS, strict=True)]


class Two(torch.optim.Optimizer):
    """Muon for matrices and AdamW for the rest, at a third of its step size."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
        super().__init__(params, {"lr": 0.3})
        self.inner = [torch.optim.Muon(matrices, lr=0.3), torch.optim.AdamW(others, lr=0.1)]
        self.param_groups = [group for one in self.inner for group in one.param_groups]

    def step(self, closure: Any = None) -> None:
        for one in self.inner:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        return {"inner": [one.state_dict() for one in self.inner]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for one, own in zip(self.inner, state_dict["inner"], strict=True):
            one.load_state_dict(own)
        self.param_groups = [group for one in self.inner for group in one.param_groups]


KINDS: dict[str, tuple[TorchOptimizer, Any, float]] = {
    "Adafactor": (TorchOptimizer(optimizer="torch.optim:Adafactor"), torch.optim.Adafactor, 1.0),
    "RAdam": (TorchOptimizer(optimizer=torch.optim.RAdam, settings={"weight_decay": 0.1}), torch.optim.RAdam, 1.0),
    **{
        name: (TorchOptimizer(optimizer=f"torch.optim:{name}"), getattr(torch.optim, name), 1.0)
        for name in ("NAdam", "RMSprop", "Adagrad", "Adamax", "ASGD", "Adadelta", "Rprop", "SGD")
    },
    "Muon, AdamW": (TorchOptimizer(optimizer=Two), Two, 0.3),
}


AT_THEIR_OWN_PACE = ("ASGD", "Rprop")
"""Those which also move where their lr is 0, as no direction says."""


@pytest.mark.parametrize("name", KINDS)
def test_displacements_are_those_of_the_optimizer_and_go_on_from_a_state(name: str) -> None:
    optimizer, kind, own_rate = KINDS[name]
    ours = draws(1, seed=1)[0]
    parameters = [nn.Parameter(tensor) for tensor in tensors(ours)]
    theirs = kind(parameters, **optimizer.settings)
    rates = [group["lr"] / own_rate if own_rate != 1 else 1.0 for group in theirs.param_groups]
    state = optimizer.start(ours, PARTS)
    for step, gradient in enumerate(draws(12, seed=2)):
        eta = 0.0 if step == 7 and name not in AT_THEIR_OWN_PACE else 0.02 / (1 + step % 4)
        reached = [True, step % 3 != 1, True, True]
        for parameter, piece, got in zip(parameters, tensors(gradient), reached, strict=True):
            parameter.grad = piece if got else None
        for group, rate in zip(theirs.param_groups, rates, strict=True):
            group["lr"] = eta * rate
        theirs.step()
        if step == 5:
            saved, state = optimizer.saved(state), optimizer.start(draws(1, seed=3)[0], PARTS)
            state = optimizer.restored(state, saved)
        state, u = optimizer.direction(state, ours, gradient, PARTS, spread(torch.tensor(reached), PARTS), eta)
        assert u.isfinite().all()
        ours = ours - eta * u
        expected = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_muon_steps_a_model_of_matrices_alone_as_by_itself() -> None:
    shapes = [torch.Size(shape) for shape in ((6, 4), (3, 6))]
    parts = parts_of(shapes)
    size = sum(part.size for part in parts)
    ours = draws(1)[0][:size]
    parameters = [
        nn.Parameter(piece.clone().view(shape))
        for piece, shape in zip(torch.split(ours, [24, 18]), shapes, strict=True)
    ]
    theirs = torch.optim.Muon(parameters, lr=0.02)
    optimizer = TorchOptimizer(optimizer="torch.optim:Muon")
    optimizer.check(ours.clone(), parts)
    state = optimizer.start(ours, parts)
    for gradient in draws(8, seed=2)[:, :size]:
        for parameter, piece in zip(parameters, torch.split(gradient, [24, 18]), strict=True):
            parameter.grad = piece.clone().view(parameter.shape)
        theirs.step()
        state, u = optimizer.direction(state, ours, gradient, parts, None, 0.02)
        ours = ours - 0.02 * u
    expected = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def of_any(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.5)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("sgd", 0.1),
        ({"momentum": 0.9}, 0.1),
        ("adam", 0.001),
        ("adamw", 0.001),
        ("lion", 0.0001),
        ({"name": "torch", "optimizer": "torch.optim:Adafactor"}, 0.01),
        ({"name": "torch", "optimizer": "torch.optim:NAdam", "settings": {"lr": 0.03}}, 0.03),
        ({"name": "torch", "optimizer": of_any, "settings": {"lr": 1}}, 1.0),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "lion", "Adafactor", "NAdam", "function"],
)
def test_the_step_size_that_nobody_gave_is_the_optimizers_usual_one(optimizer: Any, expected: float) -> None:
    config = load_config({"engine": "local", "optimizer": optimizer})
    assert with_step_size(config).step_size == Constant(value=expected)
    given = load_config(config, changes={"step_size": 0.7})
    assert with_step_size(given).step_size == Constant(value=0.7)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": of_any}, "step_size: is required with optimizer.optimizer = "),
        ({"optimizer": "torch.optim:SGD", "settings": {"lr": "fast"}}, "optimizer.settings.lr = 'fast': allowed is a"),
        ({"optimizer": "torch.optim:SGD", "settings": {"lr": -1.0}}, "step_size = -1: allowed are values from 0 on"),
    ],
)
def test_a_step_size_that_an_optimizer_does_not_have_is_asked_for(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        make_plan(load_config({"engine": "local", "optimizer": {"name": "torch", **settings}}))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_what_was_saved_does_not_change_with_later_steps() -> None:
    optimizer = TorchOptimizer(optimizer="torch.optim:RMSprop")
    x, gradient = draws(2)
    state, _ = optimizer.direction(optimizer.start(x, PARTS), x, gradient, PARTS, None, 0.1)
    saved = optimizer.saved(state)
    before = saved["state"][0]["square_avg"].clone()
    optimizer.direction(state, x, gradient, PARTS, None, 0.1)
    assert torch.equal(saved["state"][0]["square_avg"], before)


def test_matrices_alone_decay() -> None:
    optimizer = TorchOptimizer(optimizer="torch.optim:AdamW", settings={"weight_decay": 0.5}, decay="matrices")
    x = draws(1)[0]
    _, u = optimizer.direction(optimizer.start(x, PARTS), x, torch.zeros(SIZE), PARTS, None, 0.125)
    expected = torch.cat([0.5 * t.reshape(-1) if t.ndim > 1 else 0 * t.reshape(-1) for t in tensors(x)])
    torch.testing.assert_close(u, expected, rtol=1e-5, atol=1e-6)


class Growing(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        self.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


class Odd(torch.optim.SGD):
    def state_dict(self) -> Any:
        return {"state": {0: object()}}


def no_optimizer(params: Any) -> dict[str, Any]:
    return {}


def of_some(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params[:1], lr=1.0)


REFUSALS = [
    ({"optimizer": "torch.optim:LBFGS"}, "its step needs a closure, to compute losses anew"),
    ({"optimizer": "torch.optim:SparseAdam"}, "cannot step the model's parameters (RuntimeError: SparseAdam does not"),
    ({"optimizer": no_optimizer}, "makes a dict; allowed is a torch.optim.Optimizer"),
    ({"optimizer": of_some}, "its groups have 1 tensors, not the 6 parameters that it was given"),
    ({"optimizer": Growing}, "its groups have 7 tensors, not the 6 parameters that it was given"),
    ({"optimizer": Odd}, "its state_dict has a object; allowed are tensors, numbers and texts"),
    ({"optimizer": "torch.optim:Muon"}, "Muon only supports 2D parameters"),
    ({"optimizer": "torch.optim:AdamW", "settings": {"betas": [2, 3]}}, "Invalid beta parameter"),
    ({"optimizer": "torch.optim:AdamW", "settings": {"warp": 9}}, "unexpected keyword argument 'warp'"),
    ({"optimizer": of_some, "decay": "matrices"}, "decay = 'matrices': allowed with a function is all"),
    ({"optimizer": "torch.optim:Rprop", "decay": "matrices"}, "decay = 'matrices': allowed without a weight_decay is"),
]


@pytest.mark.parametrize(("settings", "told"), REFUSALS, ids=[told for _, told in REFUSALS])
def test_what_cannot_be_used_is_refused_in_one_line_before_the_start(settings: dict[str, Any], told: str) -> None:
    config = load_config({"engine": "local", "step_size": 0.1, "optimizer": {"name": "torch", **settings}})
    with pytest.raises(SettingsError) as caught:
        make_plan(config)
    text = str(caught.value)
    assert text.startswith("optimizer.optimizer = ")
    assert told in text
    assert "\n" not in text


def test_such_optimizers_are_neither_split_nor_stacked() -> None:
    adafactor = {"name": "torch", "optimizer": "torch.optim:Adafactor"}
    base = {"engine": {"name": "local", "batched": "always"}, "optimizer": adafactor}
    with pytest.raises(SettingsError, match=r"engine.batched = 'always': optimizer.name = 'torch': its steps are each"):
        make_plan(load_config(base))
    # A server's workers send gradients, which do run together.
    make_plan(load_config(base | {"algorithm": {"name": "server", "gathering": "sync"}}))
    with pytest.raises(SettingsError, match=r"algorithm.shards = 2: allowed with an optimizer that looks at all"):
        make_plan(
            load_config({"engine": "local", "optimizer": adafactor, "algorithm": {"name": "server", "shards": 2}})
        )
