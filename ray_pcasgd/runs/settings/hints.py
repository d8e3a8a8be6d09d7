"""What to write in place of other frameworks' words, and of values of a wrong kind."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_pcasgd.base.imports import with_colon
from ray_pcasgd.base.scalars import number
from ray_pcasgd.runs.settings.vocabulary import NAMES, SENTENCES, WORDS

_MEANT = {word: path for path, words in WORDS.items() for word in words.split()}


def plain(word: object) -> str:
    """Return a word in small letters, its parts joined by underscores.

    >>> [plain(word) for word in ("num-steps", "numSteps", "NUM_STEPS", "PC-ASGD")]
    ['num_steps', 'num_steps', 'num_steps', 'pc_asgd']
    """
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", str(word))
    return re.sub(r"[\s_-]+", "_", parts).strip("_").lower()


def for_word(word: object) -> str:
    """Return what to write in place of another framework's word; an empty text where it is not such a word.

    >>> for_word("lr"), for_word("max-epochs"), for_word("xyzzy")
    ('write step_size', 'write num_epochs', '')
    """
    key = plain(word)
    known = _MEANT.get(key)
    return SENTENCES.get(key) or (f"write {known}" if known else "")


def for_setting(parent: str, word: str) -> str:
    """Return what to write in place of another framework's word for a setting below ``parent``.

    >>> for_setting("mixing", "matrix")
    'write mixing: {name: matrix, rows: [[...], ...]}'
    """
    if parent == "mixing" and plain(word) in ("matrix", "rows", "weights"):
        return "write mixing: {name: matrix, rows: [[...], ...]}"
    if parent == "optimizer" and plain(word) in ("arguments", "args", "kwargs", "options", "params"):
        return "write optimizer.settings"
    if parent == "task.data" and plain(word) in ("factory", "function", "dataset", "data"):
        return "write task.data.train and task.data.test, each a data set or a function that returns one"
    return for_word(word)


def for_name(path: str, given: object, names: list[str]) -> str:
    """Return the one of ``names`` that was meant at a place; an empty text where that cannot be told.

    >>> [for_name("topology", word, ["complete", "ring"]) for word in ("fully-connected", "RING")]
    ['complete', 'ring']
    """
    same = {plain(name).replace("_", ""): name for name in names}
    key = plain(given)
    if key.replace("_", "") in same:
        return same[key.replace("_", "")]
    known = NAMES.get(re.sub(r"\.[0-9]+", "", path.removesuffix(".name")), {})
    return next((name for name, words in known.items() if name in names and key in map(plain, words.split())), "")


def for_number(given: object) -> str:
    """Return what to write in place of a text where a number is asked for; an empty text where it is not a number.

    >>> for_number("0.1"), for_number("1_000"), for_number("1,5"), for_number("many")
    ('write 0.1, without quotes', 'write 1000', 'write 1.5', '')
    """
    if not isinstance(given, str):
        return ""
    text = given.strip()
    if number(text) is not None:
        return f"write {text}, without quotes"
    cleaned = text.replace("_", "") if re.fullmatch("[0-9]+(_[0-9]+)+", text) else text.replace(",", ".", 1)
    return f"write {cleaned}" if number(cleaned) is not None else ""


def is_null(given: object) -> bool:
    """Return whether a text is another language's word for null."""
    return isinstance(given, str) and given.strip().lower() in ("none", "nil", "null", "undefined")


_BOOLEANS = {
    "yes": "true",
    "on": "true",
    "y": "true",
    "1": "true",
    "no": "false",
    "off": "false",
    "n": "false",
    "0": "false",
}


def for_boolean(given: object) -> str:
    """Return what to write in place of a value where ``true`` or ``false`` is asked for.

    >>> for_boolean("on"), for_boolean(0)
    ('write true', 'write false')
    """
    key = str(given).strip().lower()
    if key in ("true", "false"):
        return f"write {key}, without quotes"
    return f"write {_BOOLEANS[key]}" if key in _BOOLEANS else ""


def for_pattern(path: str) -> str:
    """Return what a text of another form than the one asked for should be, in words."""
    if path == "name":
        return "write letters, digits and the signs . _ -, the first a letter or a digit"
    return "write cpu, cuda, or cuda:1 for one of several GPUs" if path == "engine.device" else ""


def for_value(path: str, given: Any) -> str:
    """Return what to write in place of a value of a wrong kind at a place; an empty text where that is not known."""
    is_path = isinstance(given, str) and ":" in given
    if path == "optimizer" and str(given).startswith("torch"):
        return f"write {{name: torch, optimizer: {with_colon(str(given))!r}}}"
    if path == "optimizer" and (kind := _torch_optimizer(given)):
        return f"write {{name: torch, optimizer: '{kind.__module__}:{kind.__qualname__}'}}"
    if path == "gradient_clipping" and isinstance(given, int | float | str):
        return f"write {{norm: {given if number(str(given)) is not None else 1.0}}}"
    if path in _IMPORTED and is_path:
        return f"write {{name: custom, {_IMPORTED[path]}: {given!r}}}"
    if path == "task.data":
        return _for_data(given)
    if path == "name":
        return "" if isinstance(given, str) else "put it in quotes"
    if path == "engine" and given in ("live", "planned"):
        return f"write {{name: ray, mode: {given}}}"
    if path.startswith("space."):
        return "write a list such as [0.1, 0.2], or {low: 0.01, high: 1} where search is random or optuna"
    place = re.sub(r"\.[0-9]+", ".*", path)
    if place == "links.*" and isinstance(given, str | int | float):
        return f"write {{delay: {given}}}"
    if place == "links.*.unit":
        return "write seconds, or steps, or a delay with its own unit, such as 200ms"
    return _VALUES.get(place, "") if not isinstance(given, Mapping) or place in ("links", "optimizer") else ""


def _torch_optimizer(given: Any) -> type | None:
    """Return the class of PyTorch's optimizers that a value is, or is of."""
    kind = given if isinstance(given, type) else type(given)
    bases = (f"{base.__module__}:{base.__qualname__}" for base in kind.__mro__)
    return kind if "torch.optim.optimizer:Optimizer" in bases else None


_IMPORTED = {
    "task.model": "factory",
    "task.loss": "function",
    "task.metrics.0": "function",
    "algorithm": "rule",
    "algorithm.gathering": "policy",
    "algorithm.correction": "correction",
    "topology": "topology",
    "mixing": "mixing",
    "optimizer": "optimizer",
}

_VALUES = {
    "optimizer": "write a name such as adamw, or {name: sgd, momentum: 0.9}",
    "mixing": "write {name: matrix, rows: [[...], ...]}",
    "algorithm": "write a name such as pc-asgd, or {name: pc-asgd, theta: 0.3}",
    "links": "write [{delay: 10}] for all links, or [{between: clusters, delay: 200ms}]",
    "hosts": "write [{agents: [0, 1], up: 1 Gbit/s, down: 1 Gbit/s}]",
    "membership": "write [{agent: 3, leaves: 20s, returns: 45s}], or {trace: availability.csv}",
    "links.*.links.*": "write links: [[0, 1]], pairs of agents",
    "links.*.between.*": "write between: [[0, 1], [2, 3]], groups of agents",
    "clusters.*": "write how many, or groups of agents such as [[0, 1], [2, 3]]",
    "topology.edges.*": "write edges: [[0, 1], [1, 2]], pairs of agents",
    "compute": "write {law: 2}, seconds of a step",
    "compute.stragglers": "write {3: 2s}, by agents the seconds that they take longer",
    "compute.agents": "write {3: 2s}, by agents the seconds of a step",
    "checkpoint": "write {every_evaluations: 1}, or settings of that kind",
    "task": "write {data: digits, model: mlp}, or settings of that kind",
    "task.metrics": "write a list such as [accuracy]",
    "barrier": "write a name such as all, or {name: bounded, staleness: 2}",
}
"""By the place, with a star for numbers."""


def _for_data(given: Any) -> str:
    if isinstance(given, str):
        pair = "write {name: custom, train: 'module:one', test: 'module:other'}, one to train on and one to test on"
        return pair if ":" in given else ""
    is_plain = given is None or isinstance(given, Mapping | int | float)
    return "" if is_plain else "write a pair of data sets, (to train on, to test on)"


def for_file(path: Path, algorithms: Sequence[str]) -> str:
    """Return what to write in place of something that stands where a file of settings should; empty for a file."""
    if path.is_dir():
        has_settings = (path / "config.yaml").is_file()
        run = f"write {path}/config.yaml, or --resume {path} to go on with the run" if has_settings else ""
        return run or "it is a folder; write a YAML file"
    if path.exists():
        return ""
    if "=" in str(path):
        return f"write --set {path}"
    name = for_name("algorithm", path, list(algorithms))
    return f"write --set algorithm={name}" if name else ""
