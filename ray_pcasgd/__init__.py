"""Training one model on many agents that get each other's weights late."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_pcasgd.base.errors import SettingsError
    from ray_pcasgd.cli.terminal import Terminal
    from ray_pcasgd.config import Config
    from ray_pcasgd.runs.calibrating import calibrate
    from ray_pcasgd.runs.callbacks import Callback
    from ray_pcasgd.runs.comparison import compare
    from ray_pcasgd.runs.evaluation import evaluate
    from ray_pcasgd.runs.result import Result
    from ray_pcasgd.runs.settings.lightning import from_lightning
    from ray_pcasgd.runs.settings.loading import load_config
    from ray_pcasgd.runs.trackers.mlflow import MLflow
    from ray_pcasgd.runs.trackers.tensorboard import TensorBoard
    from ray_pcasgd.runs.trackers.wandb import WandB
    from ray_pcasgd.runs.trainer import Trainer, resume

__all__ = [
    "Callback",
    "Config",
    "MLflow",
    "Result",
    "SettingsError",
    "TensorBoard",
    "Terminal",
    "Trainer",
    "WandB",
    "calibrate",
    "compare",
    "evaluate",
    "from_lightning",
    "load_config",
    "resume",
]

# No module here may bear a public name: once imported, it would take the name's place.
_HOMES = {
    "Config": "config",
    "Result": "runs.result",
    "SettingsError": "base.errors",
    "Terminal": "cli.terminal",
    "Trainer": "runs.trainer",
    "Callback": "runs.callbacks",
    "MLflow": "runs.trackers.mlflow",
    "TensorBoard": "runs.trackers.tensorboard",
    "WandB": "runs.trackers.wandb",
    "calibrate": "runs.calibrating",
    "compare": "runs.comparison",
    "evaluate": "runs.evaluation",
    "from_lightning": "runs.settings.lightning",
    "load_config": "runs.settings.loading",
    "resume": "runs.trainer",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: an agent's process needs none, and starts sooner without."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
