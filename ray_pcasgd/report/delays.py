"""Whether delays had an effect on what was read."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_pcasgd.report.data import RunData
from ray_pcasgd.report.groups import Group
from ray_pcasgd.report.labels import value_text


def delay_notes(groups: Sequence[Group]) -> list[str]:
    """Return a sentence for each method whose delays changed no read, and for methods whose different ones did not."""
    notes = []
    for group in groups:
        runs = [run for run in group.counted if run.staleness.size]
        if runs and all(has_delays(run.config) and not run.staleness.any() for run in runs):
            notes.append(f"{group.label}: the {WITHOUT_EFFECT}")
    return notes + _same_reads(groups)


WITHOUT_EFFECT = (
    "delays of links had no effect on what was read: every read was fresh (staleness 0). They can only have cost "
    "time, where agents wait for each other."
)


def has_delays(config: Mapping[str, Any]) -> bool:
    """Return whether a run's settings make messages late on some link."""
    return config.get("schedule") is None and bool(_late_entries(config))


def _late_entries(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # The settings are those of a folder, which may be anybody's.
    links = config.get("links")
    entries = [entry for entry in links if isinstance(entry, Mapping)] if isinstance(links, list) else []
    return [entry for entry in entries if entry.get("delay") is not None and value_text(entry["delay"]) != "0"]


def _same_reads(groups: Sequence[Group]) -> list[str]:
    """Name methods that ran under different delays, and read the same versions at every step all the same."""
    by_schedule: dict[str, dict[str, str]] = {}
    for group in groups:
        for run in group.counted:
            if run.schedule_hash is not None and run.config.get("schedule") is None:
                by_schedule.setdefault(run.schedule_hash, {})[group.label] = _delays_of(run)
    named: dict[tuple[str, ...], None] = {}
    for delays in by_schedule.values():
        if len(set(delays.values())) > 1:
            named[tuple(delays)] = None
    return [
        f"{' and '.join(labels)} have different delays, and yet read the same versions at every step: the difference "
        "had no effect on what was read."
        for labels in named
    ]


def _delays_of(run: RunData) -> str:
    return value_text(_late_entries(run.config))
