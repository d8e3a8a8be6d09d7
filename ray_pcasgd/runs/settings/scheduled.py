"""Schedulers of ``torch.optim.lr_scheduler``, read off step by step as a setting of step sizes."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.text import one_line


def step_sizes(optimizer: Optimizer, schedulers: Sequence[Any], num_steps: int | None, place: str) -> Any:
    """Return the setting ``step_size`` of an optimizer and the one scheduler that it may have, as Lightning takes it.

    Raises:
        SettingsError: the scheduler does not say, step by step, one factor of all step sizes; it names ``place``.

    """
    if not schedulers:
        return float(optimizer.param_groups[0]["lr"])
    plan = schedulers[0] if isinstance(schedulers[0], Mapping) else {"scheduler": schedulers[0]}
    scheduler = plan["scheduler"]
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        raise SettingsError(f"{place}: {kind} follows a run's figures; allowed are schedulers of steps alone")
    for key, usual, allowed in (("interval", "epoch", "step"), ("frequency", 1, 1)):
        if plan.get(key, usual) != allowed:
            raise SettingsError(
                f"{place}: {key} = {plan.get(key, usual)!r} of {kind}: allowed is {allowed!r}, or no scheduler and the "
                "setting step_size"
            )
    if num_steps is None:
        raise SettingsError(f"{place}: returns a {kind}; allowed are schedulers together with num_steps")
    return stairs(_read_off(optimizer, scheduler, num_steps, f"{place}: {kind}"))


def _read_off(optimizer: Optimizer, scheduler: Any, num_steps: int, place: str) -> list[float]:
    """Return the first group's step size at each step."""
    before, sizes = _besides(optimizer), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no optimizer takes a step in between
        for step in range(num_steps):
            if step:
                try:
                    scheduler.step()
                except Exception as error:  # such as OneCycleLR's after its last step
                    raise SettingsError(
                        f"{place} fails at step {step} of num_steps = {num_steps} ({one_line(error, 200)})"
                    ) from error
            if _besides(optimizer) != before or not _is_in_proportion(optimizer):
                raise SettingsError(
                    f"{place} changes more than one factor of all step sizes, at step {step}; allowed is nothing else"
                )
            sizes.append(float(optimizer.param_groups[0]["lr"]))
    return sizes


def _besides(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return all options but the step sizes."""
    return [{key: group[key] for key in optimizer.defaults if key != "lr"} for group in optimizer.param_groups]


def _is_in_proportion(optimizer: Optimizer) -> bool:
    first, *others = optimizer.param_groups
    return all(
        math.isclose(group["lr"] * first["initial_lr"], first["lr"] * group["initial_lr"], rel_tol=1e-6, abs_tol=1e-12)
        for group in others
    )


def stairs(values: Sequence[float]) -> Any:
    """Return one value a step as a setting, a number where all are the same.

    >>> stairs([0.1, 0.1, 0.05])
    {'name': 'stairs', 'values': [0.1, 0.05], 'at_steps': [2]}
    """
    changes = [step for step in range(1, len(values)) if values[step] != values[step - 1]]
    if not changes:
        return values[0]
    return {"name": "stairs", "values": [values[0], *(values[step] for step in changes)], "at_steps": changes}
