"""bf16 and fp16 by autocast: one agent is the plain PyTorch loop with ``torch.autocast``, and what lies around it."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_pcasgd import Trainer, evaluate
from ray_pcasgd.agents.learner import NonFiniteLossError
from ray_pcasgd.agents.loss_scale import LossScale
from ray_pcasgd.agents.peer import AgentSpec, Peer
from ray_pcasgd.agents.worker import Worker, WorkerSpec
from ray_pcasgd.base.determinism import deterministic
from ray_pcasgd.base.randomness import stream_seed
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import Pause
from ray_pcasgd.engines.local.engine import LocalEngine, LocalSettings
from ray_pcasgd.records import StepReport
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.plan.variants import make_variants
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.tasks.trees import Batch, moved, split
from tests.devices import DEVICES

ETA = 2**-4
"""A power of two: torch multiplies and adds in one rounding, the rules in two."""
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Net(nn.Module):
    """Tied layers, normalization over the batch, dropout, a scale of no matrix's."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 24)
        self.norm = nn.BatchNorm1d(24)
        self.drop = nn.Dropout(0.1)
        self.decode = nn.Linear(24, 64)
        self.head = nn.Linear(64, 10)
        self.skip = nn.Linear(64, 10)
        self.skip.weight = self.head.weight
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.relu(self.norm(self.encode(x))))
        return (self.head(torch.relu(self.decode(hidden))) + self.skip(x)) * self.scale


SETTINGS: dict[str, Any] = {
    "engine": "local",
    "algorithm": "d-asgd",
    "num_agents": 1,
    "clusters": 1,
    "links": [],
    "num_steps": 100,
    "evaluate_every": 100,
    "batch_size": 18,
    "accumulate": 2,
    "task": {"model": Net},
    "precision": "bf16",
    "step_size": ETA,
    "optimizer": {"momentum": 0.9, "weight_decay": 1e-3},
}
ADAMW: dict[str, Any] = {
    "optimizer": {"name": "adamw", "weight_decay": 0.1, "decay": "matrices"},
    "gradient_clipping": {"norm": 0.5},
    "step_size": 0.01,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many as the local engine has, since bits are compared; and a generator of the test's own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(), deterministic(DEVICES[-1]):
        yield
    torch.set_num_threads(threads)


def planned(device: str = "cpu", **settings: Any) -> Plan:
    return make_plan(load_config(SETTINGS | {"engine": {"name": "local", "device": device}} | settings))


def peer_of(own: Plan, precision: Any = "bf16") -> Peer:
    """Return the only agent; with fp16 on a CPU too, which can, though a run does not."""
    spec = cast("AgentSpec", own.specs[0])
    return Peer(replace(spec, recipe=replace(spec.recipe, precision=precision)), own.data)


class Plain(NamedTuple):
    """What anybody writes: a model, an optimizer, and a scaler, which does nothing but with fp16."""

    own: Plan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def step(self, number: int, batch: Batch, precision: str) -> None:
        config = self.own.config
        torch.manual_seed(stream_seed(config.seed, "forward", 0, number + 1))
        self.optimizer.zero_grad()
        device = config.engine.device
        for inputs, targets in split(moved(batch, torch.device(device)), config.accumulate):
            with torch.autocast(device, dtype=TYPES[precision]):
                loss = functional.cross_entropy(self.model(inputs), targets)
            self.scaler.scale(loss * (len(inputs) / config.batch_size)).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        if config.gradient_clipping is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clipping.norm or 0.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def plain_of(own: Plan, make: Callable[[nn.Module], torch.optim.Optimizer], scale: float = 0.0) -> Plain:
    device = own.config.engine.device
    model = own.config.task.build_model(own.data, own.config.seed).to(device)
    model.train()
    scaler = torch.amp.GradScaler(device, init_scale=scale or 65536.0, enabled=bool(scale))
    return Plain(own, model, make(model), scaler)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=ETA, momentum=0.9, weight_decay=1e-3)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01)


def batches_of(own: Plan) -> Any:
    config = own.config
    return config.task.batches(own.data, own.specs[0].shard, config.batch_size, config.seed, 0)


def test_a_hundred_steps_of_sgd_in_bf16_are_the_plain_loop_to_the_bit(tmp_path: Path) -> None:
    own = planned()
    plain, batches = plain_of(own, sgd), batches_of(own)
    for number in range(100):
        plain.step(number, batches.next(), "bf16")
    result = Trainer(SETTINGS, storage_path=str(tmp_path)).fit()
    assert result.checkpoint is not None
    found = result.checkpoint.state_dict()
    assert found["head.weight"].dtype is torch.float32
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(found[name], tensor), name
    # And so are the figures of the test samples.
    plain.model.eval()
    inputs, targets = own.data.test.take(range(len(own.data.test)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.cat([plain.model(some) for some in inputs.split(128)])
    assert result.metrics["test_accuracy"] == float((expected.argmax(-1) == targets).double().mean())
    again = evaluate(result.path, task={"model": Net})
    assert {name: result.metrics[name] for name in again.metrics} == again.metrics
    wide = Trainer(SETTINGS | {"precision": "float32"}, storage_path=str(tmp_path)).fit()
    assert wide.metrics["test_loss"] != result.metrics["test_loss"]


@pytest.mark.parametrize(("settings", "make"), [({}, sgd), (ADAMW, adamw)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("device", DEVICES)
def test_each_of_a_hundred_steps_in_bf16_is_the_plain_loops(device: str, settings: Any, make: Any) -> None:
    # Each from where the agent is: a rounding of AdamW's that turns one number of 8 bits to the next one is soon 1e-2.
    own = planned(device, **settings)
    agent, plain, batches = peer_of(own), plain_of(own, make), batches_of(own)
    tensors = dict(plain.model.named_parameters())
    for number in range(100):
        with torch.no_grad():
            for name, tensor in agent.replica.named(agent.weights, agent.buffers).items():
                (tensors[name] if name in tensors else plain.model.get_buffer(name)).copy_(tensor)
        agent.step([])
        plain.step(number, batches.next(), "bf16")
        for name, tensor in agent.replica.named(agent.weights, agent.buffers).items():
            found = tensors[name] if name in tensors else plain.model.get_buffer(name)
            torch.testing.assert_close(tensor, found.detach(), rtol=1e-6, atol=1e-6, msg=f"{name} at {number}")


@pytest.mark.parametrize(("settings", "make"), [({}, sgd), (ADAMW, adamw)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("scale", [2.0**16, 2.0**40])
@pytest.mark.parametrize("device", DEVICES)
def test_fp16_is_the_plain_loop_with_a_grad_scaler(device: str, scale: float, settings: Any, make: Any) -> None:
    own = planned(device, **settings)
    agent, plain, batches = peer_of(own, "fp16"), plain_of(own, make, scale), batches_of(own)
    agent.loss_scale = LossScale(scale)
    tensors, skipped = dict(plain.model.named_parameters()), 0
    for number in range(40):
        is_exact = make is sgd and device == "cpu"
        if not is_exact:
            with torch.no_grad():
                for name, tensor in agent.replica.named(agent.weights, agent.buffers).items():
                    (tensors[name] if name in tensors else plain.model.get_buffer(name)).copy_(tensor)
        before, state = agent.weights, agent.optimizer_state
        agent.step([])
        plain.step(number, batches.next(), "fp16")
        assert agent.loss_scale is not None
        assert agent.loss_scale.factor == plain.scaler.get_scale()
        if agent.loss_scale.factor < scale and not agent.loss_scale.steady_steps:
            skipped += 1
            assert torch.equal(agent.weights, before)
            for old, new in zip(state, agent.optimizer_state, strict=True):
                assert torch.equal(old, new)
        for name, tensor in agent.replica.named(agent.weights, agent.buffers).items():
            found = (tensors[name] if name in tensors else plain.model.get_buffer(name)).detach()
            if is_exact:
                assert torch.equal(tensor, found), (name, number)
            else:
                torch.testing.assert_close(tensor, found, rtol=1e-6, atol=1e-6, msg=f"{name} at {number}")
    assert (skipped > 5) == (scale > 2**20)


@pytest.mark.parametrize("device", DEVICES)
def test_a_state_goes_on_with_its_scale(device: str) -> None:
    own = planned(device)
    agent = peer_of(own, "fp16")
    agent.loss_scale = LossScale(2.0**34)
    for _ in range(6):
        agent.step([])
    other = peer_of(own, "fp16")
    other.restore(agent.state())
    assert other.loss_scale == agent.loss_scale != LossScale()
    for _ in range(12):
        agent.step([])
        other.step([])
        assert other.loss_scale == agent.loss_scale
        assert torch.equal(other.weights, agent.weights)
    agent.rejoin([], 20)
    assert agent.loss_scale == LossScale()
    assert "loss_scale" not in peer_of(own).state()


def test_a_gradient_that_no_scale_makes_finite_ends_the_run() -> None:
    def norm_at_zero(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.float() * 0).sum().sqrt()

    agent = peer_of(planned(task={"model": Net, "loss": norm_at_zero, "metrics": ["accuracy"]}), "fp16")
    for exponent in range(16, 0, -1):
        assert agent.loss_scale == LossScale(2.0**exponent)
        agent.step([])
    with pytest.raises(NonFiniteLossError, match="with a gradient that is not finite at step 16"):
        agent.prepare()


def test_a_worker_that_skips_a_step_says_that_no_parameter_got_a_gradient() -> None:
    own = planned(algorithm={"name": "server", "gathering": "sync"}, precision="float32")
    spec = cast("WorkerSpec", own.specs[0])
    worker = Worker(replace(spec, recipe=replace(spec.recipe, precision="fp16")), own.data)
    worker.loss_scale = LossScale(2.0**60)
    loss = worker.compute()
    assert math.isfinite(loss)
    assert worker.loss_scale == LossScale(2.0**59)
    assert not worker.computed.any()
    assert worker.with_gradient is not None
    assert not worker.with_gradient.any()
    assert worker.taken(loss).measures == {"loss_scale": 2.0**59}
    other = Worker(worker.spec, own.data)
    other.restore(worker.state())
    assert other.loss_scale == worker.loss_scale


FAMILIES: dict[str, Any] = {
    "peers": {"algorithm": "pc-asgd", "optimizer": "adamw", "step_size": 0.01},
    "pushing peers": {"algorithm": "sgp-overlap"},
    "corrected": {"algorithm": "dc-s3gd", "mixing": "uniform"},
    "torch's": {"algorithm": "d-asgd", "optimizer": {"name": "torch", "optimizer": "torch.optim:Adafactor"}},
    "servers": {"algorithm": {"name": "server", "gathering": "sync"}, "optimizer": {"momentum": 0.9}},
    "elastic": {"algorithm": {"name": "elastic-averaging", "period": 2}},
    "pairs": {"algorithm": "ad-psgd", "links": []},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_steps_are_the_same_again_and_from_a_state_on(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = 2.0**30
    monkeypatch.setattr("ray_pcasgd.agents.learner.LossScale", lambda *saved: LossScale(*(saved or (start,))))
    settings = {"num_agents": 3, "num_steps": 24, "evaluate_every": 4, "links": [{"delay": 2}], "precision": "float32"}
    uneven = {"compute": {"law": {"name": "exponential", "mean": 1.0}}}
    own = planned(**settings | uneven | {"accumulate": 1} | FAMILIES[family])
    specs = [replace(spec, recipe=replace(spec.recipe, precision="fp16")) for spec in own.specs]

    def reports(state: State | None = None) -> tuple[list[Any], list[State]]:
        found, states = [], []
        for one in LocalEngine(LocalSettings(), own.schedule).run(specs, own.data, state):
            if isinstance(one, Pause):
                states.append(copy.deepcopy(one.state()))
            elif isinstance(one, StepReport):
                weights = None if one.snapshot is None else one.snapshot.weights.tolist()
                found.append((one.row, one.loss, dict(one.measures), weights))
        return found, states

    first, states = reports()
    scales = [measures["loss_scale"] for _, _, measures, _ in first if "loss_scale" in measures]
    assert start / 2 >= scales[0] > scales[-1]
    assert reports()[0] == first
    if own.pauses:
        # In the midst of the steps that are skipped.
        rest = reports(states[0])[0]
        assert 0 < len(rest) < len(first)
        assert rest == first[-len(rest) :]


def test_probes_are_in_the_runs_precision_and_curvature_in_float32() -> None:
    settings = {"num_agents": 2, "algorithm": {"name": "pc-asgd-pv"}, "accumulate": 1}
    own = planned(**settings)
    agent, wide = peer_of(own), peer_of(own, "float32")
    number = agent.probe_batches.state()
    found, expected = (one.probe()((one.weights,)) for one in (agent, wide))
    assert found.dtype is torch.float32
    assert found != expected
    agent.probe_batches.restore(number)
    inputs, targets = agent.draw(agent.probe_batches)
    agent.seed_forward_pass()
    with torch.no_grad(), agent.replica.undisturbed(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert found == functional.cross_entropy(agent.replica.module(inputs), targets)
    batch = agent.draw(agent.batches)
    along = torch.ones_like(agent.weights)
    narrow = agent.curvature_on(agent.snapshot(), batch, along)
    wide.batches.restore(agent.batches.state())
    assert narrow == wide.curvature_on(wide.snapshot(), batch, along)
    assert narrow is not None


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"precision": "fp16"},
            "precision = 'fp16': allowed on CPUs, as with engine.device = cpu, are float32 and bf16; on GPUs, with "
            "engine.device = cuda, also fp16",
        ),
        (
            {"precision": "fp16", "engine": "ray"},
            "precision = 'fp16': allowed on CPUs, as with engine.gpus_per_agent = 0, are float32 and bf16; on GPUs, "
            "with engine.gpus_per_agent = a number above 0, also fp16",
        ),
        (
            {"engine": {"name": "local", "batched": "always"}},
            "engine.batched = 'always': precision = 'bf16': each agent computes by itself; allowed are auto and never",
        ),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        planned(**{"accumulate": 1} | settings)
    assert str(caught.value) == line


def test_runs_on_gpus_elsewhere_are_planned_without_one() -> None:
    own = planned(precision="fp16", engine={"name": "ray", "gpus_per_agent": 1})
    assert own.specs[0].recipe.precision == "fp16"


def test_agents_and_runs_are_not_stacked() -> None:
    assert not peer_of(planned(accumulate=1)).may_be_stacked
    assert peer_of(planned(accumulate=1), "float32").may_be_stacked
    configs = [load_config(SETTINGS | {"accumulate": 1, "step_size": eta}) for eta in (0.1, 0.2)]
    with pytest.raises(SettingsError, match="precision = 'bf16': allowed is 'float32' where runs are stepped together"):
        make_variants(configs)
