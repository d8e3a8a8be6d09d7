"""What is compared: means, screens, attacks and shards, and who attacks."""

from typing import Any

SHARDS: dict[str, Any] = {"alike": "iid", "skewed": {"name": "dirichlet", "alpha": 0.3}}
MEAN = "mean"
SCREENS = (
    "trimmed-mean",
    "median",
    "krum",
    "bulyan",
    "nearest-neighbors",
    "centered-clipping",
    "geometric-median",
)
NNM = "NNM + "
"""What the name of a screen begins with where nearest-neighbor mixing comes first."""
MIXED = ("trimmed-mean", "krum", "geometric-median")
"""Screens with which it is measured."""
ATTACKS = ("sign-flip", "noise", "alie", "inner-product", "mimic", "label-flip", "stale-replay")
LIARS: dict[str, tuple[int, ...]] = {"peers": (1, 4), "servers": (1, 4), "bridge": (1, 5, 9, 13), "slowdown": ()}
"""The attackers of each kind of runs, in this order: so many of them as attack. Of eight, they are near each other."""


def with_mixing(screens: tuple[str, ...]) -> tuple[str, ...]:
    """Return some screens, and behind them those with mixing first."""
    return (*screens, *(NNM + screen for screen in screens if screen in MIXED))


def screen_of(method: str) -> dict[str, Any]:
    """Return a screen's settings."""
    return {"name": method.removeprefix(NNM), "nearest_neighbor_mixing": method.startswith(NNM)}


def between_peers(method: str, attackers: int, **more: Any) -> dict[str, Any]:
    """Return the algorithm between peers: the plain mean, or a screen that is to stand so many attackers."""
    if method == MEAN:
        return {"name": "d-asgd"}
    return {"name": "bridge", "screen": screen_of(method), "attackers": attackers, **more}


def faults_of(kind: str, number: int, attack: Any) -> dict[str, Any] | None:
    """Return who attacks, and how; ``None`` where nobody does."""
    return {"agents": LIARS[kind][:number], "attack": attack} if number and attack else None
