"""Where the trials of a sweep compute: on GPUs that the process that plans them may not have."""

from collections.abc import Mapping

from ray_pcasgd.config import Config
from ray_pcasgd.engines.local.engine import LocalSettings
from ray_pcasgd.runs.settings.loading import SettingsError


def device_of(config: Config) -> str:
    """Return the device of a trial's own process: on the ray engine, its agents' actors have the GPUs."""
    return config.engine.device if isinstance(config.engine, LocalSettings) else "cpu"


def check_device(config: Config, base: Config) -> None:
    """Raise ``SettingsError`` where a point's trials cannot have the device that it names.

    A trial sees the one GPU that Tune gives it, and gets one by what all trials share.
    """
    kind, _, number = device_of(config).partition(":")
    if number not in ("", "0"):
        raise SettingsError(
            f"engine.device = '{kind}:{number}': allowed in a sweep are 'cpu' and 'cuda'; a trial sees one GPU, that "
            "which it gets"
        )
    if kind != (shared := device_of(base).partition(":")[0]):
        raise SettingsError(
            f"engine.device = {kind!r}: allowed is {shared!r}, as in the settings that all trials share"
        )


def require_gpus(base: Config, resources: Mapping[str, float]) -> None:
    """Raise ``SettingsError`` where trials ask for a GPU, and the cluster with such resources has none."""
    if (device := device_of(base)) != "cpu" and resources.get("GPU", 0) < 1:
        raise SettingsError(
            f"engine.device = {device!r}: allowed on this cluster is 'cpu'; none of its nodes has a GPU"
        )
