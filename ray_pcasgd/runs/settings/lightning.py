"""A ``LightningModule`` read where its meaning is the same as ours; Lightning itself is not imported."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ray_pcasgd.agents.adam import Adam, AdamW
from ray_pcasgd.agents.optimizer import SGD
from ray_pcasgd.agents.remade_optimizer import RemadeOptimizer
from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.base.imports import import_path
from ray_pcasgd.base.text import one_line
from ray_pcasgd.runs.settings.scheduled import step_sizes
from ray_pcasgd.tasks import lightning as steps
from ray_pcasgd.tasks.drawing import seeded

_OWN: Mapping[type, Any] = {torch.optim.SGD: SGD, torch.optim.Adam: Adam, torch.optim.AdamW: AdamW}
"""Of torch's optimizers those whose arithmetic is one of ours."""
_ONLY_SPEED = ("foreach", "fused", "capturable", "differentiable")
"""Options of torch's optimizers that change no step."""
_UNNEEDED = ("__init__", "prepare_data", "train_dataloader", "val_dataloader")
"""What among Lightning's hooks may be a module's own, though nobody calls it: data are given otherwise."""
_INNER = (
    *("optimizer_step", "optimizer_zero_grad", "backward", "lr_scheduler_step"),
    *("configure_gradient_clipping", "configure_callbacks"),
)
"""Methods that change a training, and are none of Lightning's hooks."""


def from_lightning(
    module: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    num_steps: int | None = None,
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the settings that a ``LightningModule`` stands for, as in ``Trainer(**from_lightning(Net, data))``.

    Its ``training_step`` is what is minimized; its ``validation_step``, where it has one, what is measured, with the
    values that it logs; ``configure_optimizers`` says ``optimizer`` and ``step_size``.

    Args:
        module: a ``LightningModule``, of which every agent starts with a copy, or a class or function that makes one.
        data: what ``task.data`` takes, such as a pair of data sets.
        num_steps: steps of the run, which a scheduler needs to be known.
        metrics: names under which metrics of torchmetrics are logged; they are computed over the whole test set.

    Raises:
        SettingsError: something of it has no meaning here.

    """
    made = _made(module)
    name, base = type(made).__name__, _base_of(made)
    _check(made, name, base)
    place = f"{name}.configure_optimizers"
    try:
        optimizers, schedulers = _configured(made.configure_optimizers())
    except Exception as error:  # the user's own
        told = one_line(f"{type(error).__name__}: {error}", 200)
        raise SettingsError(f"{place}: fails without a Trainer ({told})") from error
    if len(optimizers) != 1 or len(schedulers) > 1:
        raise SettingsError(
            f"{place}: returns {len(optimizers)} optimizers and {len(schedulers)} schedulers; allowed are one "
            "optimizer, and one scheduler or none"
        )
    trained = [parameter for parameter in made.parameters() if parameter.requires_grad]
    task = {"data": data, "model": module, "step": import_path(steps.training_step)}
    if type(made).validation_step is not base.validation_step:
        task["evaluate"] = import_path(steps.validation_step)
    if metrics:
        merged = {"name": "custom", "function": import_path(steps.MergedMetric)}
        task["metrics"] = [{**merged, "label": metric} for metric in metrics]
    return {
        "task": task,
        "optimizer": _optimizer(optimizers[0], trained, place),
        "step_size": step_sizes(optimizers[0], schedulers, num_steps, place),
        **({} if num_steps is None else {"num_steps": num_steps}),
    }


def _made(module: Any) -> Any:
    """Return a module that nobody trains, and of which anything may be asked."""
    if isinstance(module, nn.Module):
        return copy.deepcopy(module)
    with seeded(0):
        return module()


def _base_of(module: Any) -> Any:
    """Return Lightning's own class, of whichever of its two packages."""
    found = [kind for kind in type(module).__mro__ if kind.__name__ == "LightningModule"]
    if not found:
        name = type(module).__name__
        raise SettingsError(f"from_lightning: {name} is no LightningModule; allowed is one, or what makes one")
    return found[-1]


def _check(module: Any, name: str, base: Any) -> None:
    if not module.automatic_optimization:
        raise SettingsError(f"{name}.automatic_optimization = False: allowed is True; optimizers are stepped here")
    if type(module).training_step is base.training_step:
        raise SettingsError(f"{name}.training_step: there is none; allowed are modules that have one")
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise SettingsError(f"{name}.training_step: takes dataloader_iter; allowed is a batch")
    for hook in (*_hooks(base), *_INNER):
        if getattr(type(module), hook) is not getattr(base, hook):
            raise SettingsError(f"{name}.{hook}: nothing calls it here; allowed are modules without one of their own")


def _hooks(base: type) -> Iterator[str]:
    """Yield the names of what only Lightning's Trainer calls, without what tests and predictions have."""
    for kind in base.__mro__:
        if kind.__name__ in ("ModelHooks", "DataHooks"):
            for name, value in vars(kind).items():
                if callable(value) and name not in _UNNEEDED and "test" not in name and "predict" not in name:
                    yield name


def _configured(returned: Any) -> tuple[list[Any], list[Any]]:
    """Return the optimizers and schedulers of what ``configure_optimizers`` returned, in any of its forms."""
    if returned is None:
        return [], []
    if isinstance(returned, Mapping):
        return [returned["optimizer"]], [returned["lr_scheduler"]] if "lr_scheduler" in returned else []
    if not isinstance(returned, list | tuple):
        return [returned], []
    if len(returned) == 2 and isinstance(returned[0], list | tuple):
        optimizers, schedulers = returned
        return list(optimizers), list(schedulers) if isinstance(schedulers, list | tuple) else [schedulers]
    pairs = [_configured(one) for one in returned]
    return [one for found, _ in pairs for one in found], [one for _, found in pairs for one in found]


def _optimizer(optimizer: Optimizer, trained: Sequence[nn.Parameter], place: str) -> dict[str, Any]:
    """Return the settings of an optimizer: of ours, where one is the same, else its class and groups."""
    numbers = {id(parameter): number for number, parameter in enumerate(trained)}
    groups = optimizer.param_groups
    held = [id(parameter) for group in groups for parameter in group["params"]]
    if sorted(held) != sorted(numbers) or not all(group["params"] for group in groups):
        raise SettingsError(
            f"{place}: the optimizer has {len(held)} parameter tensors, the module trains {len(numbers)}; allowed are "
            "the same, each once, and no empty groups; those with requires_grad = False stay as they are"
        )
    kind: Any = type(optimizer)
    found = _alike(groups)
    if found is not None and kind in _OWN:
        group, decay = found
        known = _OWN[kind].model_fields
        usual = kind([nn.Parameter(torch.zeros(1))], lr=1.0).defaults
        if all(group[key] == usual[key] for key in usual if key not in (*known, *_ONLY_SPEED, "lr")):
            return {"name": known["name"].default, "decay": decay, **{key: group[key] for key in usual if key in known}}
    options = [
        {key: group[key] for key in optimizer.defaults} | {"lr": group.get("initial_lr", group["lr"])}
        for group in groups
    ]
    if len(groups) == 1:
        return {"name": "torch", "optimizer": kind, "settings": options[0]}
    for group, own in zip(groups, options, strict=True):
        own["params"] = [numbers[id(one)] for one in group["params"]]
    return {"name": "torch", "optimizer": RemadeOptimizer(kind, options)}


def _alike(groups: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str] | None:
    """Return the options that stand for all groups, and what of them decays; None where none do."""
    if len(groups) == 1:
        return groups[0], "all"
    if len(groups) != 2:
        return None
    matrices, others = sorted(groups, key=lambda group: -group["params"][0].ndim)
    is_split = all(one.ndim > 1 for one in matrices["params"]) and all(one.ndim < 2 for one in others["params"])
    differing = {key for key in matrices if key != "params" and matrices[key] != others[key]}
    return (matrices, "matrices") if is_split and differing == {"weight_decay"} and not others["weight_decay"] else None
