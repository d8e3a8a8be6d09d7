"""Settings that are locations with keys, as ``s3://ID:KEY@bucket``: they are refused before they are written."""

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.settings import Settings

_MOST_ITEMS = 1000
"""Of a list that is looked through: a longer one is somebody's data."""


def refuse_keys_in(tree: Any, path: str = "") -> None:
    """See to it that no setting is a location that holds a key.

    Raises:
        SettingsError: one is.

    """
    if isinstance(tree, str | PurePath):
        if not re.search(r"\s", str(tree)):  # a text of its own, in which a location stands
            refuse_key(tree, path)
        return
    if isinstance(tree, Settings):
        tree = {name: getattr(tree, name) for name in type(tree).model_fields}
    elif isinstance(tree, list | tuple):
        tree = dict(enumerate(tree)) if len(tree) <= _MOST_ITEMS else {}
    for key, inner in tree.items() if isinstance(tree, Mapping) else ():
        refuse_keys_in(inner, f"{path}.{key}" if path else str(key))
