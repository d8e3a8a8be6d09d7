"""Which runs differ only in numbers, and can be stepped together: the plans of such runs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch.nn import RNNBase
from torch.nn.modules.conv import _ConvNd

from ray_pcasgd.agents.peer import AgentSpec
from ray_pcasgd.agents.variants import Variants
from ray_pcasgd.base.doors import CUSTOM
from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.rules.base import Rule
from ray_pcasgd.runs.plan.defaults import with_defaults
from ray_pcasgd.runs.plan.fitting import fitting_optimizer
from ray_pcasgd.runs.plan.plan import Plan, make_plan
from ray_pcasgd.runs.plan.tryout import try_out_variants
from ray_pcasgd.runs.settings.errors import one_line
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.tasks.models import CustomModel, Torchvision
from ray_pcasgd.tasks.objective import CustomMeasure

_NUMBERS = ("step_size", "warmup_steps")
_PLACES = ("name", "storage_path")


def shared_settings(config: Config) -> dict[str, Any]:
    """Return the settings without those numbers in which runs may differ that are stepped together."""
    config = fitting_optimizer(config)
    tree = config.model_dump(mode="json", exclude={*_NUMBERS, *_PLACES}, fallback=repr)
    assert isinstance(config.algorithm, Rule)
    for name in config.algorithm.numeric_settings:
        *parts, last = name.split(".")
        place = tree["algorithm"]
        place = place["settings"] if place["name"] == CUSTOM else place
        for part in parts:
            place = place[part]
        del place[last]
    # Numbers that follow from what is read have no coefficient.
    tree["coefficients"] = sorted(config.algorithm.coefficients(0, 0))
    return tree


def why_alone(config: Config) -> str | None:
    """Return why a run cannot be stepped together with others, or ``None`` if it can."""
    if not isinstance(config.engine, LocalSettings):
        return f"engine.name = {config.engine.name!r}: allowed is 'local'"
    if not isinstance(config.algorithm, Rule):
        return f"algorithm.name = {config.algorithm.name!r}: allowed are rules between peers"
    if not config.algorithm.stackable:
        return f"algorithm.name = {config.algorithm.name!r}: its stackable is False"
    if config.algorithm.sends_differences:
        return f"algorithm.name = {config.algorithm.name!r}: its messages are each agent's own differences"
    if not config.optimizer.stackable:
        return f"optimizer.name = {config.optimizer.name!r}: its steps are each agent's own"
    if config.accumulate > 1:
        return f"accumulate = {config.accumulate}: allowed is 1"
    if config.local_steps != 1:
        return "local_steps: allowed is 1"
    if not config.wire.is_plain:
        return "wire: allowed is 'float32'"
    if config.wire.fragments > 1:
        return f"wire.fragments = {config.wire.fragments}: allowed is 1"
    if config.algorithm.reads_displacements:
        return "algorithm.prediction = 'displacement': allowed are direction and own-drift"
    if config.precision != "float32":
        return f"precision = {config.precision!r}: allowed is 'float32'"
    if config.on_non_finite_loss != "stop":
        return f"on_non_finite_loss = {config.on_non_finite_loss!r}: allowed is 'stop'"
    return None


def is_faster_together(config: Config, plan: Plan) -> bool:
    """Return whether stacking gains on a CPU: not with convolutions or recurrent networks.

    Nor with the user's own code, which may hold what cannot run stacked.
    """
    task = config.task
    if (
        task.step is not None
        or isinstance(task.loss, CustomMeasure)
        or isinstance(task.model, CustomModel | Torchvision)
    ):
        return False
    module = task.build_model(plan.data, config.seed)
    return not any(isinstance(part, _ConvNd | RNNBase) for part in module.modules())


def make_variants(configs: Sequence[Config]) -> list[Plan]:
    """Return the plans of runs that differ only in numbers; they share data, shards and schedule.

    Raises:
        SettingsError: some settings cannot be run, or not together.

    """
    for config in configs:
        if reason := why_alone(config):
            raise SettingsError(f"{reason} where runs are stepped together")
    first = make_plan(configs[0])
    if first.why_alone:
        raise SettingsError(f"{first.why_alone}; such runs cannot be stepped together")
    length = {"num_steps": first.config.num_steps, "num_epochs": None}
    resolved = [with_defaults(config).model_copy(update=length) for config in configs]
    plans = []
    for config in resolved:
        if shared_settings(config) != shared_settings(resolved[0]):
            raise SettingsError("runs that are stepped together may differ in step size and the rule's numbers alone")
        acting = fitting_optimizer(config)
        specs = tuple(_with_numbers(spec, acting) for spec in first.specs if isinstance(spec, AgentSpec))
        plans.append(dataclasses.replace(first, config=config, specs=specs))
    own = [spec for plan in plans[:2] for spec in plan.specs[:1] if isinstance(spec, AgentSpec)]
    try:
        try_out_variants(Variants(own, first.data))
    except ValueError as error:
        raise SettingsError(one_line(error)) from None
    return plans


def _with_numbers(spec: AgentSpec, config: Config) -> AgentSpec:
    assert isinstance(config.algorithm, Rule)
    assert config.step_size is not None
    recipe = dataclasses.replace(
        spec.recipe, rule=config.algorithm, step_size=config.step_size, warmup_steps=config.warmup_steps
    )
    return dataclasses.replace(spec, recipe=recipe)
