"""All settings as one Markdown page, ``docs/settings.md``, made of their own documentation."""

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from ray_pcasgd.base.curves import Curve
from ray_pcasgd.base.settings import Settings
from ray_pcasgd.config import Config
from ray_pcasgd.rules.compensation import Compensation
from ray_pcasgd.rules.gathering import AnyGathering
from ray_pcasgd.runs.settings.reference import Place, describe, documentation, kind_of, kinds_in, settings_below, usual
from ray_pcasgd.schedule.laws import Law

_SHARED: dict[str, tuple[str, Any]] = {
    "Laws": (
        "Of compute times and delays; also in one word: `pareto(2, 0.1s)`, `200ms`, `10 steps`, `3`.",
        Law,
    ),
    "Curves": ("Values that depend on an agent's step; a bare number is a constant.", Curve),
    "Compensation": ("The lambda of a predicting step; a bare number is a constant.", Compensation),
    "Gathering": ("When a server updates.", AnyGathering),
}
"""What stands at several places, described once: its heading, a sentence, the union."""

_INTRODUCTION = """\
# Settings

<!-- Made by `ray-pcasgd settings --markdown > docs/settings.md`; a test compares the two. -->

A run's settings are one tree, with the same names everywhere. `ray-pcasgd settings PATH` shows one of them on the
terminal.

```yaml
# run.yaml, for `ray-pcasgd train run.yaml`; settings that are not given have their defaults
num_agents: 4
algorithm: {name: pc-asgd, theta: 0.3}
links: [{between: clusters, delay: 200ms}]
```

```sh
ray-pcasgd train --set num_agents=4 --set algorithm.theta=0.3 --set links.0.delay=200ms
```

```python
from ray_pcasgd import Trainer

trainer = Trainer(
    num_agents=4, algorithm={"name": "pc-asgd", "theta": 0.3}, links=[{"between": "clusters", "delay": "200ms"}]
)
print(trainer.config.links)  # and trainer.fit() runs it
```

**Names.** Where there are several kinds, `name` chooses one; `topology: ring` is short for `topology: {name: ring}`.
Another name drops the settings of the kind that was there before. Numbers address the items of a list
(`links.0.delay`), and agents (`compute.stragglers.3`).

**Values** are those of YAML 1.2, in files and after `--set` alike. A number is written `5`, `-5`, `010` (ten), `0x10`,
`0.5`, `.5`, `5.`, `1e-3` or `1.5e1`; a whole number has 64 bits, and may be written `5.0` or `1e3`. Booleans are `true`
and `false`. Values in quotes are text, and so are `1:30`, `1_000`, `yes`, `on` and `2024-05-01`. A value of another
kind is refused, in Python too: `'0.1'` and `true` are not numbers. `--name` and `--engine` always
take text.

**Laws** of compute times and delays may be written in one word everywhere: `exponential(2)`,
`pareto(shape=2, scale=1)`, `constant(5)`, `200ms`. Numbers with `s` or `ms` are seconds, and a delay of such numbers is
in seconds; `10 steps` are steps. A link's `unit` that contradicts its delay is refused.
"""


def markdown() -> str:
    """Return the page."""
    lines = [_INTRODUCTION]
    plain = [name for name, field in Config.model_fields.items() if not settings_below(field.annotation)]
    lines += ["## The run\n", *(_bullet(Place(name, Config, name, ())) for name in plain), ""]
    for name, field in Config.model_fields.items():
        if name not in plain:
            lines += [f"## {name}\n", *_section(Place(name, Config, name, ()), field.annotation)]
    for title, (sentence, union) in _SHARED.items():
        lines += [f"## {title}\n", f"{sentence}\n", *_kinds(kinds_in(union), "")]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _section(place: Place, annotation: Any) -> Iterator[str]:
    """Yield the lines about a setting that holds others."""
    yield f"{place.description}\n"
    yield f"`{place.path}`: {_facts(place)}\n"
    if _shared(annotation):
        return
    kinds = kinds_in(annotation)
    # What has no name stands before what has one: SGD before optimizers of one's own.
    for owner in settings_below(annotation):
        if not kinds or kind_of(owner) is None:
            inner = f"{place.path}.0" if owner.__name__ in ("LinkDelay", "Host", "Absence") else place.path
            yield from _owned(owner, inner)
    yield from _kinds(kinds, place.path)


def _kinds(kinds: list[type[Settings]], path: str) -> Iterator[str]:
    for kind in kinds:
        yield f"### {kind_of(kind)}\n"
        yield from map(_paragraph, documentation(kind))
        yield from _owned(kind, path)


def _paragraph(text: str) -> str:
    if text.startswith("    "):
        return f"```\n{textwrap.dedent(text)}\n```\n"
    return f"{text.removesuffix(':') if text.endswith('::') else text}\n"


def _owned(owner: type[Settings], path: str, within: tuple[type[Settings], ...] = ()) -> Iterator[str]:
    """Yield a bullet for each setting of a class, and those of settings that it holds.

    A class that may hold another one of its own family, as an installed one may, is described once on each way down.
    """
    within = (*within, owner)
    prefix = f"{path}." if path else ""
    deeper = []
    for name, field in owner.model_fields.items():
        if name == "name":
            continue
        place = Place(f"{prefix}{name}", owner, name, ())
        yield _bullet(place)
        if settings_below(field.annotation) and not _shared(field.annotation):
            deeper.append((place, field.annotation))
    yield ""
    for place, annotation in deeper:
        for kind in kinds_in(annotation) or _listed_kinds(annotation):
            if kind in within:
                continue
            yield f"**`{place.path}`: {kind_of(kind)}.** {' '.join(documentation(kind))}\n"
            yield from _owned(kind, place.path, within)
        if not kinds_in(annotation) and not _listed_kinds(annotation):
            for inner in (kind for kind in settings_below(annotation) if kind not in within):
                yield from _owned(inner, place.path, within)


def _listed_kinds(annotation: Any) -> list[type[Settings]]:
    return [owner for owner in settings_below(annotation) if kind_of(owner)]


def _bullet(place: Place) -> str:
    return f"- `{place.path}` ({_facts(place)}): {place.description}"


def _facts(place: Place) -> str:
    field = place.field
    allowed = describe(field.annotation, field.metadata)
    if shared := _shared(field.annotation):
        names = " | ".join(str(kind_of(kind)) for kind in kinds_in(_SHARED[shared][1]))
        allowed = re.sub(f"((a number|numbers), or )?{re.escape(names)}", f"[{shared}](#{shared.lower()})", allowed)
    allowed = allowed.replace(" | ", ", ")
    if field.is_required():
        return f"{allowed}; required"
    differs = f", in the default settings `{usual(place)}`" if usual(place) else ""
    return f"{allowed}; default `{place.default}`{differs}"


def _shared(annotation: Any) -> str:
    """Return the heading under which a union is described that stands at several places."""
    below = set(settings_below(annotation))
    return next((title for title, (_, union) in _SHARED.items() if below == set(kinds_in(union))), "")
