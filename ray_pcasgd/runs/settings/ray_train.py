"""Ray Train's configuration objects, read where their meaning is the same as ours; Ray itself is not imported."""

import re
from typing import Any

from ray_pcasgd.runs.settings.loading import SettingsError

_MEANINGLESS = {
    "scaling_config": ("trainer_resources", "use_tpu", "topology"),
    "run_config": ("worker_runtime_env", "stop", "progress_reporter", "log_to_file"),
}


def from_ray_train(scaling_config: Any, run_config: Any) -> dict[str, Any]:
    """Return the settings that Ray's ``ScalingConfig`` and ``RunConfig`` stand for, but for callbacks.

    A field that has Ray's default there leaves the setting here as it is.

    Raises:
        SettingsError: they ask for something that has no meaning here.

    """
    for name, config in (("scaling_config", scaling_config), ("run_config", run_config)):
        for field in _MEANINGLESS[name]:
            value = getattr(config, field, None)
            if value and value != getattr(type(config), field, None):  # some have a word of Ray's that means nothing
                raise SettingsError(f"{name}.{field} = {value!r}: has no meaning here; allowed is to leave it out")
    if getattr(run_config, "storage_filesystem", None) is not None:
        raise SettingsError(
            f"run_config.storage_filesystem = {run_config.storage_filesystem!r}: allowed is none, and a storage_path "
            "that pyarrow knows, such as s3://bucket/runs?endpoint_override=host:port: the run's settings name it, so "
            "that it can be resumed and replayed"
        )
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
    for field in ("accelerator_type", "label_selector"):
        if (value := getattr(config, field, None)) is not None:
            engine[field] = value
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
    # Ray fills in a name and a folder of its own where none is given.
    if config.name is not None and not re.fullmatch(r"ray_train_run-[0-9_-]+", config.name):
        changes["name"] = config.name
    if config.storage_path is not None and config.storage_path != type(config)().storage_path:
        changes["storage_path"] = str(config.storage_path)
    if config.failure_config is not None and config.failure_config.max_failures:
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
