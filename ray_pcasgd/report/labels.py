"""Labels of runs, and the settings in which runs differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_pcasgd.base.text import NOTHING, one_line

_NOT_A_METHOD = ("name", "seed", "storage_path")
"""Settings in which two runs of one method may differ."""
_MOST_SETTINGS = 3
_LONGEST = 100
"""Characters of a label's parts."""


def label_of(config: Mapping[str, Any]) -> str:
    """Return the name of a run's method: its algorithm, with the settings that tell it from similar ones.

    >>> label_of({"algorithm": {"name": "pc-asgd", "theta": {"name": "constant", "value": 0.3}}})
    'pc-asgd, theta 0.3'
    """
    algorithm = config.get("algorithm")
    if not isinstance(algorithm, Mapping):
        return "run" if algorithm is None else one_line(algorithm, _LONGEST)
    algorithm = own_settings(algorithm)
    parts = [str(algorithm.get("name", "run"))]
    parts += [f"{key} {value_text(algorithm[key])}" for key in ("theta", "condition") if key in algorithm]
    parts += [_with_numbers(algorithm[key]) for key in ("gathering", "correction", "outer") if key in algorithm]
    parts = [part for part in parts if part != "none"]
    if config.get("links") == [] and config.get("schedule") is None:
        parts.append("no link delay")
    return one_line(", ".join(parts), _LONGEST)


def own_settings(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the settings of a class that is given by its import path, among them its own name; others as they are.

    >>> own_settings({"name": "custom", "rule": "my_module:Fading", "settings": {"name": "fading", "half_life": 2}})
    {'name': 'fading', 'half_life': 2}
    """
    inner = part.get("settings")
    is_custom = part.get("name") == "custom" and isinstance(inner, Mapping) and "name" in inner
    return inner if is_custom and isinstance(inner, Mapping) else part


def _with_numbers(value: Mapping[str, Any]) -> str:
    value = own_settings(value)
    told = [f"{key} {value_text(value[key])}" for key in ("base", "k", "n") if key in value]
    return f"{value['name']} ({', '.join(told)})" if told else str(value["name"])


def labels_of(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one label for each run: the same one for runs of one method that differ in the seed alone.

    Where ``label_of`` does not tell two methods apart, the first settings in which they differ are added, and a
    number where these do not suffice.
    """
    flat = [flattened(config) for config in configs]
    short = [label_of(config) for config in configs]
    methods: dict[str, list[tuple[str | None, ...]]] = {}
    labels = []
    for name, settings in zip(short, flat, strict=True):
        kin = [other for kin_name, other in zip(short, flat, strict=True) if kin_name == name]
        keys = [key for key in differing_keys(kin) if key not in _NOT_A_METHOD]
        told = [one_line(f"{key} {settings.get(key, NOTHING)}", _LONGEST) for key in _leading(keys)[:_MOST_SETTINGS]]
        label = ", ".join([name, *told])
        method = tuple(settings.get(key) for key in keys)
        known = methods.setdefault(label, [])
        if method not in known:
            known.append(method)
        number = known.index(method) + 1
        labels.append(label if number == 1 else f"{label} ({number})")
    return labels


def _leading(keys: Sequence[str]) -> list[str]:
    # Where two settings have different names, as engine.name, their other settings tell no more.
    named = {key.removesuffix("name") for key in keys if key.endswith(".name")}
    return [key for key in keys if key.endswith(".name") or not any(key.startswith(prefix) for prefix in named)]


def flattened(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings as dotted names and values in text.

    >>> flattened({"task": {"data": {"name": "digits"}}, "step_size": {"name": "constant", "value": 0.1}})
    {'task.data.name': 'digits', 'step_size': '0.1'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value and not _is_constant(value):
            flat |= {f"{key}.{inner}": text for inner, text in flattened(value).items()}
        else:
            flat[str(key)] = value_text(value)
    return flat


def differing_keys(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names whose values are not the same in all the flat settings, in their first order."""
    keys = dict.fromkeys(key for flat in settings for key in flat)
    return [key for key in keys if len({flat.get(key) for flat in settings}) > 1]


def value_text(value: Any) -> str:
    """Return a setting's value in one line; what is not given inside it is left out.

    >>> value_text([{"delay": {"name": "constant", "value": 10.0}, "links": None}])
    '[delay: 10]'
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return _mapping_text(value)
    if isinstance(value, list | tuple):
        separator = "; " if any(isinstance(inner, Mapping) for inner in value) else ", "
        return f"[{separator.join(map(value_text, value))}]"
    return str(value)


def _mapping_text(value: Mapping[str, Any]) -> str:
    if _is_constant(value):
        return value_text(value["value"])
    value = own_settings(value)
    given = {key: inner for key, inner in value.items() if inner is not None and key != "name"}
    parts = ", ".join(f"{key}: {value_text(inner)}" for key, inner in given.items())
    if "name" not in value:
        return parts
    return f"{value['name']} ({parts})" if parts else str(value["name"])


def _is_constant(value: Mapping[str, Any]) -> bool:
    return value.get("name") == "constant" and set(value) == {"name", "value"}
