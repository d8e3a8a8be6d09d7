"""Ray Train's configuration objects, read where their meaning is the same as ours; Ray itself is not imported."""

from typing import Any

from ray_pcasgd.loading import SettingsError


def from_ray_train(scaling_config: Any, run_config: Any) -> dict[str, Any]:
    """Return the settings that Ray's ``ScalingConfig`` and ``RunConfig`` stand for.

    Raises:
        SettingsError: they ask for something that has no meaning here.

    """
    return _scaling(scaling_config) | _run(run_config)


def _scaling(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    engine: dict[str, Any] = {}
    resources = dict(config.resources_per_worker or {})
    if "CPU" in resources:
        engine["cpus_per_agent"] = resources.pop("CPU")
    gpus = resources.pop("GPU", 1.0 if config.use_gpu else 0.0)
    if gpus:
        engine["gpus_per_agent"] = gpus
    if resources:
        engine["resources_per_agent"] = resources
    if config.placement_strategy != "PACK":
        engine["placement_strategy"] = config.placement_strategy
    if not isinstance(config.num_workers, int):
        raise SettingsError(
            f"scaling_config.num_workers = {config.num_workers!r}: allowed is one fixed number of agents"
        )
    changes: dict[str, Any] = {"num_agents": config.num_workers}
    return changes | ({"engine": {"name": "ray", **engine}} if engine else {})


def _run(config: Any) -> dict[str, Any]:
    if config is None:
        return {}
    changes: dict[str, Any] = {}
    if config.name is not None:
        changes["name"] = config.name
    if config.storage_path is not None:
        changes["storage_path"] = str(config.storage_path)
    if config.failure_config is not None:
        changes["max_failures"] = config.failure_config.max_failures
    kept = config.checkpoint_config
    if kept is not None and (kept.num_to_keep is not None or kept.checkpoint_score_attribute is not None):
        changes["checkpoint"] = {
            "every_evaluations": 1,
            "num_to_keep": kept.num_to_keep,
            "score": kept.checkpoint_score_attribute,
            "score_order": kept.checkpoint_score_order,
        }
    return changes
