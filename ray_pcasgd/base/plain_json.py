"""JSON that every reader takes: NaN and infinite numbers become null, and what JSON does not have becomes text."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray_pcasgd.base import foreign_files

_DEEPEST = 50
_MOST_BITS = 10_000
"""Of a number that Python writes in decimal digits."""


def plain(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON knows it; infinite numbers and NaN become ``None``.

    >>> plain({1: float("nan"), "a": (1.5, True, None)})
    {'1': None, 'a': [1.5, True, None]}
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value) if value.bit_length() < _MOST_BITS else hex(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {str(key): plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [plain(item, depth + 1) for item in value]
        if hasattr(value, "tolist"):  # an array, a tensor, or one of their numbers
            return plain(value.tolist(), depth + 1)
    return str(value)


def dumps(value: Any, indent: int | None = None) -> str:
    """Return a value as strict JSON."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def read_mapping(path: Path) -> dict[str, Any] | None:
    """Return the mapping that a JSON file holds; None where there is no such file, or it does not hold a mapping."""
    try:
        return foreign_files.read_mapping(path)
    except (OSError, ValueError):
        return None
