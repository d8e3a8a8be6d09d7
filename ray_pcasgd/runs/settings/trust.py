"""Whether a folder's files, which may come from a stranger, may run code, join a cluster or write elsewhere.

They may where this user has run the very same settings before, or says so now. What the user has run is known by
fingerprints, which are kept outside of all run folders; so it does not matter where a folder lies.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_pcasgd.base.doors import names_others_code
from ray_pcasgd.base.foreign_files import open_regular
from ray_pcasgd.base.own_state import keep_newest, own_folder
from ray_pcasgd.base.settings import FROM_STRANGERS
from ray_pcasgd.base.yaml_text import YAMLTextError, parse_yaml
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import load_config, read_yaml

_MOST_FINGERPRINTS = 2000


def load_run_settings(
    folder: Path, assignments: Sequence[str] = (), changes: Mapping[str, Any] | None = None, trust: bool = False
) -> Config:
    """Return the checked settings of a run's folder, with changes as ``load_config`` takes them.

    Settings that this user has trusted once are trusted again.

    Raises:
        SettingsError: they cannot be read or run, or would run code or join a cluster that this user has not allowed.

    """
    tree = read_yaml(folder / "config.yaml")
    config = load_config(tree, assignments, changes, from_strangers=not trust and not _is_known(_powers(tree)))
    if trust:
        _note(_powers(tree))
    return config


def note_settings(text: str) -> None:
    """Note that this user runs settings, the text of a ``config.yaml``; where that cannot be noted, the run goes on."""
    with contextlib.suppress(YAMLTextError):  # too large to be read again
        tree = parse_yaml(text)
        try:
            Config.model_validate(tree, context=FROM_STRANGERS)
        except ValidationError:  # they would run code or join a cluster
            _note(_powers(tree))


def note_files(folder: Path, names: Sequence[str], place: str | None = None) -> None:
    """Note that this user has written a folder that holds, among others, these files.

    ``place`` is where the folder is, for one whose files here are copies.
    """
    _note(_contents(folder, names, place))


def is_own(folder: Path, names: Sequence[str], place: str | None = None) -> bool:
    """Return whether this user has written a folder that holds, among others, these files, in this very place."""
    return _is_known(_contents(folder, names, place))


def _powers(tree: Mapping[str, Any]) -> bytes:
    """Return what of settings can run code or reach out.

    All of that stands in the task, the engine's address, the callbacks, the data that candidates are probed on, an
    optimizer by its import path, and in settings of classes that are not the package's own.
    """
    engine = tree.get("engine")
    address = engine.get("address") if isinstance(engine, Mapping) else None
    parts = [tree.get("task"), address]
    # What this user has run before there was any of these is known as it was.
    parts += _of_others([value for key, value in tree.items() if key != "task"])
    parts += [tree["callbacks"]] if tree.get("callbacks") else []
    algorithm = tree.get("algorithm")
    probe_data = algorithm.get("probe_data") if isinstance(algorithm, Mapping) else None
    parts += [probe_data] if isinstance(probe_data, Mapping) and "dataset" in probe_data else []
    optimizer = tree.get("optimizer")
    parts += [optimizer] if isinstance(optimizer, Mapping) and "optimizer" in optimizer else []
    try:
        return json.dumps(parts, sort_keys=True).encode()
    except TypeError:  # keys that are texts and numbers
        return json.dumps(parts).encode()


def _of_others(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return [tree] if names_others_code(tree) else _of_others(list(tree.values()))
    return [found for item in tree for found in _of_others(item)] if isinstance(tree, list) else []


def _contents(folder: Path, names: Sequence[str], place: str | None) -> bytes:
    digests = []
    for name in names:
        with open_regular(folder / name) as file:
            digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
    return "\n".join([place or str(folder.resolve()), *digests]).encode(errors="surrogateescape")


def _note(content: bytes) -> None:
    with contextlib.suppress(OSError):
        path = _fingerprint(content)
        is_new = not path.exists()
        path.touch(mode=0o600)
        if is_new:
            keep_newest(path.parent, _MOST_FINGERPRINTS)


def _is_known(content: bytes) -> bool:
    try:
        return _fingerprint(content).is_file()
    except OSError:
        return False


def _fingerprint(content: bytes) -> Path:
    return own_folder("trusted") / hashlib.blake2b(content, digest_size=32).hexdigest()
