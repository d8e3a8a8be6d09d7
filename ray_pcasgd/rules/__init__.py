"""The update rules; ``Algorithm`` is the registry of all of them between peers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray_pcasgd.rules.algorithms import Algorithm
    from ray_pcasgd.rules.bridge import Bridge
    from ray_pcasgd.rules.choco import ChocoSGD
    from ray_pcasgd.rules.dcs3gd import DCS3GD
    from ray_pcasgd.rules.dpsgd import DASGD, DPSGD
    from ray_pcasgd.rules.gossip import GossipPull, GossipPush
    from ray_pcasgd.rules.importance import DASGDImportance
    from ray_pcasgd.rules.outer_peers import GASLoC, NoLoCo, SlowMo
    from ray_pcasgd.rules.pcasgd import CASGD, PASGD, PCASGD
    from ray_pcasgd.rules.practical import PCASGDPV
    from ray_pcasgd.rules.push import SGP, OverlapSGP

__all__ = [
    "CASGD",
    "DASGD",
    "DCS3GD",
    "DPSGD",
    "PASGD",
    "PCASGD",
    "PCASGDPV",
    "SGP",
    "Algorithm",
    "Bridge",
    "ChocoSGD",
    "DASGDImportance",
    "GASLoC",
    "GossipPull",
    "GossipPush",
    "NoLoCo",
    "OverlapSGP",
    "SlowMo",
]


def __getattr__(name: str) -> Any:
    """Import the rules when one of them is asked for: the scheduler's process needs none, and no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.algorithms"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
