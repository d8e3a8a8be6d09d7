"""Many runs by Ray Tune."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_pcasgd.sweep.results import SweepResult
    from ray_pcasgd.sweep.running import resume, sweep

_HOMES = {"SweepResult": "results", "resume": "running", "sweep": "running"}
__all__ = ["SweepResult", "resume", "sweep"]


def __getattr__(name: str) -> Any:
    """Import a name only once it is used: settings of sweeps are read without Ray."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
