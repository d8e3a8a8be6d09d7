"""Schedulers are read off as torch's own loop has them."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedulers

from ray_pcasgd import SettingsError
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.scheduled import step_sizes

STEPS = 12


def made(scheduler: Callable[[torch.optim.Optimizer], Any], rates: tuple[float, ...] = (0.1,)) -> tuple[Any, Any]:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": rate} for rate in rates]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    return optimizer, scheduler(optimizer)


def read(optimizer: Any, scheduler: Any, num_steps: int = STEPS) -> Any:
    plan = {"scheduler": scheduler, "interval": "step"}
    return Config(step_size=step_sizes(optimizer, [plan], num_steps, "here")).step_size


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda own: schedulers.CosineAnnealingLR(own, 5, 0.01),
        lambda own: schedulers.CosineAnnealingWarmRestarts(own, 4),
        lambda own: schedulers.StepLR(own, 3),
        lambda own: schedulers.LambdaLR(own, lambda step: min(1.0, step / 4)),
        lambda own: schedulers.OneCycleLR(own, 0.5, STEPS, cycle_momentum=False),
        lambda own: schedulers.ConstantLR(own, 1.0, 3),
        lambda own: schedulers.SequentialLR(
            own, [schedulers.LinearLR(own, 0.1, 1.0, 3), schedulers.ExponentialLR(own, 0.9)], [3]
        ),
    ],
)
def test_each_step_has_the_step_size_of_torchs_loop(scheduler: Callable[[torch.optim.Optimizer], Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR's own, of torch
        curve = read(*made(scheduler))
        optimizer, own = made(scheduler)
        for step in range(STEPS):
            assert curve.at(step) == optimizer.param_groups[0]["lr"]
            optimizer.step()
            if step + 1 < STEPS:
                own.step()


def test_groups_that_keep_their_proportion_follow_the_first_one() -> None:
    curve = read(*made(lambda own: schedulers.ExponentialLR(own, 0.5), (0.1, 0.02)))
    assert curve.at(2) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (lambda own: schedulers.OneCycleLR(own, 0.5, STEPS), "OneCycleLR changes more than one factor of all"),
        (
            lambda own: schedulers.LambdaLR(own, [lambda k: 1.0, lambda k: 1.0 + k]),
            "LambdaLR changes more .* at step 1;",
        ),
        (
            # After its last step, torch's goes on for one more, and so does what is read off.
            lambda own: schedulers.OneCycleLR(own, 0.5, STEPS - 3, cycle_momentum=False),
            f"OneCycleLR fails at step {STEPS - 2} of num_steps = {STEPS} ",
        ),
    ],
)
def test_what_no_step_size_says_is_refused(scheduler: Callable[[torch.optim.Optimizer], Any], told: str) -> None:
    with pytest.raises(SettingsError, match=f"^here: {told}"):
        read(*made(scheduler, (0.1, 0.2)))
