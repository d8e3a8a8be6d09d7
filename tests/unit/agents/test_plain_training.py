"""One agent, no delay: the loop that everybody writes in plain PyTorch, in every family."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from ray_pcasgd import Trainer
from ray_pcasgd.agents.clipping import GradientClipping, clipped
from ray_pcasgd.agents.peer import Peer
from ray_pcasgd.base.randomness import generator
from ray_pcasgd.runs.plan.plan import make_plan
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from ray_pcasgd.tasks.trees import moved
from tests.devices import DEVICES

BASE: dict[str, Any] = {
    "num_agents": 1,
    "clusters": 1,
    "links": [],
    "num_steps": 100,
    "evaluate_every": 100,
    "batch_size": 18,
    "task": {"model": {"hidden": [16]}},
    "step_size": {"name": "one-cycle", "peak": 0.01, "steps": 100},
}
ADAMW = {"name": "adamw", "weight_decay": 0.1, "decay": "matrices"}
FAMILIES: dict[str, Any] = {
    "peer": "d-asgd",
    "pair": "ad-psgd",
    "server": {"name": "server", "gathering": "sync"},
    "elastic": {"name": "elastic-averaging", "period": 100, "alpha": 0.9999999},
}


def plain_loop(settings: dict[str, Any], make: Callable[[nn.Module], torch.optim.Optimizer]) -> Tensor:
    """Return the weights after the loop, with torch's own clipping and whole batches."""
    own = make_plan(load_config(settings))
    config, shard = own.config, own.specs[0].shard
    device = torch.device(config.engine.device)
    model = config.task.build_model(own.data, config.seed).to(device)
    batches = config.task.batches(own.data, shard, config.batch_size, config.seed, 0)
    optimizer = make(model)
    clipping = config.gradient_clipping
    for step in range(config.num_steps):
        inputs, targets = moved(batches.next(), device)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        if clipping is not None and clipping.norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clipping.norm)
        elif clipping is not None:
            nn.utils.clip_grad_value_(model.parameters(), clipping.value or 0.0)
        for group in optimizer.param_groups:
            group["lr"] = config.step_size.at(step)
        optimizer.step()
    return flat(model.state_dict())


def flat(named: dict[str, Tensor]) -> Tensor:
    return torch.cat([named[name].reshape(-1) for name in sorted(named)]).cpu()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    matrices, others = ([p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1.0
    )


def trained(settings: dict[str, Any], path: Path) -> Tensor:
    result = Trainer(settings, storage_path=str(path)).fit()
    assert result.checkpoint is not None
    return flat(result.checkpoint.state_dict())


@pytest.mark.parametrize("clipping", [None, {"norm": 0.5}, {"value": 0.02}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_a_hundred_steps_of_adamw_are_the_plain_loop(device: str, family: str, clipping: Any, tmp_path: Path) -> None:
    settings = BASE | {
        "engine": {"name": "local", "device": device},
        "algorithm": FAMILIES[family],
        "optimizer": ADAMW,
        "gradient_clipping": clipping,
        "accumulate": 4,
    }
    torch.testing.assert_close(trained(settings, tmp_path), plain_loop(settings, adamw), rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("device", DEVICES)
def test_torchs_own_optimizers_are_the_plain_loop_too(device: str, family: str, tmp_path: Path) -> None:
    optimizer = {"name": "torch", "optimizer": "torch.optim:AdamW", "settings": {"weight_decay": 0.1}}
    engine = {"name": "local", "device": device}
    settings = BASE | {"engine": engine, "algorithm": FAMILIES[family], "optimizer": optimizer | {"decay": "matrices"}}
    torch.testing.assert_close(trained(settings, tmp_path), plain_loop(settings, adamw), rtol=1e-6, atol=2e-6)


@given(st.floats(0.01, 20), st.sampled_from(["norm", "value"]), st.integers(0, 20))
def test_clipping_is_that_of_torch_alone_and_stacked(bound: float, kind: str, seed: int) -> None:
    gradients = torch.from_numpy(generator(seed, "gradients").standard_normal((3, 40)).astype("float32"))
    gradients[2] = 0.0
    clipping = GradientClipping(**{kind: bound})
    together = clipped(clipping, gradients)
    for gradient, stacked in zip(gradients, together, strict=True):
        parameter = nn.Parameter(torch.zeros(40))
        parameter.grad = gradient.clone()
        if kind == "norm":
            nn.utils.clip_grad_norm_([parameter], bound)
        else:
            nn.utils.clip_grad_value_([parameter], bound)
        alone = clipped(clipping, gradient)
        assert torch.equal(alone, stacked)
        torch.testing.assert_close(alone, parameter.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("given", [{}, {"norm": 1.0, "value": 1.0}, {"norm": 0.0}, {"value": -1.0}])
def test_a_bound_is_one_number_above_zero(given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=r"allowed is one of them|greater than or equal to 0.0000"):
        GradientClipping(**given)


def steps(**more: Any) -> Iterator[Tensor]:
    own = make_plan(load_config(BASE | {"engine": "local", "algorithm": "d-asgd", "step_size": 0.05, **more}))
    agent = Peer(own.specs[0], own.data)
    for _ in range(10):
        agent.step([])
        yield agent.weights


@pytest.mark.parametrize("pieces", [2, 5, 18])
def test_pieces_of_a_batch_give_the_whole_batchs_gradient(pieces: int) -> None:
    for whole, accumulated in zip(steps(), steps(accumulate=pieces), strict=True):
        torch.testing.assert_close(accumulated, whole, rtol=1e-6, atol=1e-6)


def test_more_pieces_than_samples_and_stacked_pieces_are_refused() -> None:
    with pytest.raises(SettingsError, match="accumulate = 19: allowed are 1 to batch_size = 18"):
        make_plan(load_config(BASE | {"engine": "local", "accumulate": 19}))
    with pytest.raises(SettingsError, match=r"engine\.batched = 'always': accumulate = 2: pieces of a batch are each"):
        make_plan(load_config(BASE | {"engine": {"name": "local", "batched": "always"}, "accumulate": 2}))
