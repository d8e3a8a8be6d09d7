"""Models whose tensors are not all trained, dense float32: each trains as in plain PyTorch, or is refused in a line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd import Trainer
from ray_pcasgd.agents.curvature import curvature_along
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from tests.unit.memory import in_one_vector

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")

ETA = 2**-4
"""A power of two: torch multiplies and adds in one rounding, the rules in two."""
ALONE: dict[str, Any] = {
    "engine": "local",
    "algorithm": "d-psgd",
    "num_agents": 1,
    "clusters": 1,
    "links": [],
    "num_steps": 12,
    "evaluate_every": 12,
    "batch_size": 8,
    "step_size": ETA,
}
TOGETHER: dict[str, Any] = ALONE | {"num_agents": 3, "links": [{"delay": 1}], "num_steps": 8, "evaluate_every": 8}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 16)
        self.two = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.two(torch.relu(self.one(x))))


class Integers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.order = nn.Parameter(torch.arange(64).flip(0), requires_grad=False)
        self.kept = nn.Parameter(torch.ones(64, dtype=torch.bool), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x * self.kept)[:, self.order])


class Empty(Net):
    """One that gets a gradient of no numbers, one that gets none, and a layer without inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.empty(0, 16))
        self.unused = nn.Parameter(torch.empty(0))
        self.layer = nn.Linear(0, 10)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.used.sum() + self.layer(x[:, :0])


class OnlyEmpty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Parameter(torch.empty(0, 10))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :10] + self.used.sum()


class Number(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(64, 16)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.two(torch.relu(self.one(x)) + self.other(x)))


class Frozen(Net):
    """A layer of another type that is not trained."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.one.to(dtype).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.two(torch.relu(self.one(x.to(self.one.weight.dtype))).float()))


class ComplexFrozen(Net):
    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Parameter(torch.full((10,), 0.6 + 0.8j), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) * self.turn).real


class WideBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 0.1
        return super().forward(x)


class Embedded(nn.Module):
    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(17, 4, sparse=sparse)
        self.out = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.out(self.table((x * 16).long()).flatten(1)))


def lazy(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(16, dtype=dtype), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(10))


def strided() -> nn.Module:
    """Return a model whose weights do not lie in the order of their numbers."""
    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)
    )
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "integers": Integers,
    "empty": Empty,
    "a number": Number,
    "tied": Tied,
    "frozen": Frozen,
    "frozen bfloat16": lambda: Frozen(torch.bfloat16),
    "frozen float64": lambda: Frozen(torch.float64),
    "frozen complex": ComplexFrozen,
    "a wide buffer": WideBuffer,
    "sparse gradients": Embedded,
    "lazy": lazy,
    "strided": strided,
}


def plain_loop(make: Callable[[], nn.Module], precision: str) -> nn.Module:
    own = make_plan(load_config(ALONE | {"task": {"model": make}}))
    config = own.config
    model = in_one_vector(config.task.build_model(own.data, config.seed).train())
    batches = config.task.batches(own.data, own.specs[0].shard, config.batch_size, config.seed, 0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=ETA)
    for _ in range(config.num_steps):
        inputs, targets = batches.next()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("kind", RIGHT)
def test_one_agent_is_the_plain_loop(kind: str, precision: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = plain_loop(RIGHT[kind], precision).state_dict()
    finally:
        torch.set_num_threads(threads)
    settings = ALONE | {"task": {"model": RIGHT[kind]}, "precision": precision}
    result = Trainer(settings, storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert result.checkpoint is not None
    found = result.checkpoint.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        # Of rows that come several times in a batch, sparse tensors sum up in another order.
        tolerance = 1e-6 if kind == "sparse gradients" else 0.0
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "pc-asgd", "optimizer": "adamw", "step_size": 0.01},
        {"algorithm": {"name": "pc-asgd-pv", "probe_every": 1}, "optimizer": {"momentum": 0.9, "braking": 2}},
        {"algorithm": {"name": "server", "shards": 2}, "optimizer": "lion", "step_size": 0.001},
        {"algorithm": "d-asgd", "optimizer": {"name": "torch", "optimizer": "torch.optim:Adafactor"}},
    ],
    ids=["curvature", "probes", "servers", "torch's"],
)
@pytest.mark.parametrize("kind", RIGHT)
def test_several_agents_train_it(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    result = Trainer(TOGETHER | settings, task={"model": RIGHT[kind]}, storage_path=str(tmp_path)).fit()
    assert result.error is None
    assert 0 < result.metrics["test_loss"] < 3


def whole(dtype: torch.dtype) -> Callable[[], nn.Module]:
    return lambda: Net().to(dtype)


class One(Net):
    """With one more parameter or buffer."""

    def __init__(self, **more: Tensor) -> None:
        super().__init__()
        for name, tensor in more.items():
            setattr(self, name, tensor)


def narrow_statistics() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 10))
    statistics = cast("nn.BatchNorm1d", model[0])
    statistics.running_mean = cast("Tensor", statistics.running_mean).bfloat16()
    return model


TYPE = "task.model: parameter or buffer {} is torch.{}; allowed is torch.float32 where it is trained or averaged, as "
BF16 = "model.float() makes it; precision = bf16 computes with torch.bfloat16 all the same"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (whole(torch.bfloat16), TYPE.format("one.weight", "bfloat16") + BF16),
        (
            whole(torch.float16),
            TYPE.format("one.weight", "float16")
            + "model.float() makes it; precision = fp16 computes with torch.float16 all the same",
        ),
        (whole(torch.float64), TYPE.format("one.weight", "float64") + "model.float() makes it"),
        (lambda: lazy(torch.bfloat16), TYPE.format("0.weight", "bfloat16") + BF16),
        (
            lambda: One(wide=nn.Parameter(torch.ones(2, dtype=torch.float64))),
            TYPE.format("wide", "float64") + "model.float() makes it",
        ),
        (
            lambda: One(turn=nn.Parameter(torch.ones(2, dtype=torch.complex64))),
            TYPE.format("turn", "complex64") + "model.float() makes it",
        ),
        (narrow_statistics, TYPE.format("0.running_mean", "bfloat16") + BF16),
        (
            lambda: One(few=nn.Parameter(torch.eye(3).to_sparse())),
            "task.model: few is torch.sparse_coo; allowed are dense tensors",
        ),
        (
            lambda: One(few=nn.Parameter(torch.eye(3).to_sparse(), requires_grad=False)),
            "task.model: few is torch.sparse_coo; allowed are dense tensors",
        ),
        (OnlyEmpty, "task.model.name = 'custom': no parameter of it is trained; allowed are models that have some"),
        (
            lambda: Net().requires_grad_(False),
            "task.model.name = 'custom': no parameter of it is trained; allowed are models that have some",
        ),
    ],
)
def test_others_are_refused_in_one_line(make: Callable[[], nn.Module], line: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        Trainer(ALONE, task={"model": make}, storage_path=str(tmp_path)).fit()
    assert str(caught.value) == line
    assert not list(tmp_path.iterdir())


def test_the_curvature_of_a_table_with_sparse_gradients_is_that_of_one_without() -> None:
    found = []
    for sparse in (True, False):
        torch.default_generator.manual_seed(0)
        model = Embedded(sparse)
        inputs, targets = torch.rand(6, 64), torch.arange(6)
        parameters = list(model.parameters())
        along = torch.randn(sum(parameter.numel() for parameter in parameters))
        loss = lambda: functional.cross_entropy(model(inputs), targets)  # noqa: B023, E731
        found.append(curvature_along(loss, parameters, along))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] != 0
