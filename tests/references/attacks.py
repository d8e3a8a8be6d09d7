"""What attackers send, by the formulas, in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


def lie(attack: Any, own: Array, honest: Sequence[Array], old: Array, random: Any) -> Array:
    """Return what is sent in place of ``own``; ``honest`` is what the attacker knows of others, in their order.

    ``random`` is the version's random stream, of which float32 is drawn.
    """
    known = np.stack([own, *honest])
    match attack.name:
        case "sign-flip":
            return -float(attack.scale) * own
        case "noise":
            return float(attack.std) * random.standard_normal(len(own), dtype=np.float32).astype(np.float64)
        case "uniform":
            drawn = random.random(len(own), dtype=np.float32).astype(np.float64)
            return np.asarray(attack.low + (attack.high - attack.low) * drawn)
        case "alie":
            deviation = known.std(0, ddof=1) if len(known) > 1 else 0.0
            return np.asarray(known.mean(0) - attack.z * deviation)
        case "inner-product":
            return np.asarray(-attack.scale * known.mean(0))
        case "mimic":
            return [*honest, own][0]
        case "stale-replay":
            return old
        case "label-flip":  # it is ``own`` that comes of wrong labels: see softmax.py
            return own
    raise ValueError(f"no such attack: {attack.name}")
