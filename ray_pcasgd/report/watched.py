"""What the page about one run shows, as plain data: of a run that is running its status, of another one its files."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute

from ray_pcasgd.base.foreign_files import events_of, is_number
from ray_pcasgd.engines.ray.status import LEFT
from ray_pcasgd.report.data import RunData

NEWEST = 200
"""Events that are shown, the newest ones."""
MOST_AGENTS = 500
"""Agents that are listed: the page is sent once a second."""
MOST_LINKS = 64
"""Readers, and agents that are read, whose staleness is shown."""
_WELL = ("starting", "training", "finished", "ended")


class Events(NamedTuple):
    """A run's newest events, oldest first, and how many there are of all."""

    newest: Sequence[Mapping[str, Any]]
    number: int


def events_in(folder: Path) -> Events:
    """Return the events that a run's folder has so far; none where there is no such folder here."""
    newest: deque[Mapping[str, Any]] = deque(maxlen=NEWEST)
    number = 0
    for event in events_of(folder / "events.jsonl"):
        newest.append(event)
        number += 1
    return Events(list(newest), number)


def rate_of(samples: Sequence[tuple[float, int]]) -> float | None:
    """Return how many steps come a second, given times and the steps by then; ``None`` where that is not known yet.

    >>> rate_of([(10.0, 100), (12.0, 150)]), rate_of([(10.0, 100)])
    (25.0, None)
    """
    if len(samples) < 2 or samples[-1][0] <= samples[0][0]:
        return None
    return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])


def of_running(status: Mapping[str, Any], events: Events, rate: float | None, now: float) -> dict[str, Any]:
    """Return the page of a run that is running; ``status`` as ``RunView`` has it, empty before the first report."""
    if not status:
        return {"state": "starting", "said": "", "events": events.newest, "num_events": events.number}
    agents = [
        {**one, "heard_seconds": None if one["heard_at"] is None else max(0.0, now - one["heard_at"])}
        for one in status["agents"]
    ]
    # The folder may be on another machine.
    shown = events if events.number else Events(status["events"], status["num_events"])
    page = {**status, "events": shown.newest, "num_events": shown.number}
    return {**page, **_listed(agents, status["num_servers"]), "state": "running", "said": "", "rate": rate}


def _listed(agents: Sequence[Mapping[str, Any]], num_servers: int) -> dict[str, Any]:
    """Return the agents that are listed, with how many there are, and how far those are whose steps count.

    Of many agents these are those that are not there, and the first ones; of their reads, as many as are shown.
    """
    leading = [one["step"] for one in agents[-num_servers:]]  # all of them, where there are no servers
    listed = sorted(sorted(agents, key=lambda one: one["health"] in _WELL)[:MOST_AGENTS], key=lambda one: one["agent"])
    readers = [one for one in listed if one["staleness"]][:MOST_LINKS]
    read = set(sorted({neighbor for one in readers for neighbor in one["staleness"]})[:MOST_LINKS])
    links = {one["agent"]: {key: value for key, value in one["staleness"].items() if key in read} for one in readers}
    return {
        "agents": [{**one, "staleness": links.get(one["agent"], {})} for one in listed],
        "num_agents": len(agents),
        "num_linked": sum(1 for one in agents if one["staleness"]),
        "progress": [min(leading), sum(leading) / len(leading), max(leading)] if leading else None,
    }


def of_files(run: RunData, why: str, state: str = "not running") -> dict[str, Any]:
    """Return the page of a run from its folder; ``why`` it cannot be watched, in one line.

    One that is running has figures in its folder only at its end: until then the page has its events alone.
    """
    if state == "running" and not run.result:
        return _of_events(run, why)
    config, result = run.config, run.result
    engine, algorithm = config.get("engine", {}), config.get("algorithm", {})
    status = result.get("status")
    state = status if status in ("finished", "failed", "interrupted") else state
    error = result.get("error")
    rate = result.get("agent_steps_per_second")
    rows = run.averaged
    tests = [name for name in rows.columns if name.startswith("test_")]
    num_servers = 0 if run.num_workers is None else max([0, *_numbers(run)]) + 1 - run.num_workers
    return {
        **_listed(_agents(run), num_servers),
        "state": state,
        "said": str(error) if error else "" if result else why,
        "run": run.path.resolve().name,
        "algorithm": str(algorithm.get("name", "")),
        "mode": str(engine.get("mode", engine.get("name", ""))),
        "num_steps": config["num_steps"] if is_number(config.get("num_steps")) else 0,
        "num_servers": num_servers,
        "has_rounds": run.has_rounds,
        "rate": rate if is_number(rate) else None,
        "events": run.events[-NEWEST:],
        "num_events": run.num_events,
        "losses": _points(rows["step"], rows["train_loss"]),
        "tested": [
            {"step": int(step), "figures": {name: float(value) for name, value in figures if np.isfinite(value)}}
            for step, figures in ((row["step"], [(name, row[name]) for name in tests]) for _, row in rows.iterrows())
        ],
        "clusters": [],
    }


def _of_events(run: RunData, why: str) -> dict[str, Any]:
    named = {"run": run.path.resolve().name, "algorithm": str(run.config.get("algorithm", {}).get("name", ""))}
    steps = run.config.get("num_steps")
    none: dict[str, Any] = {name: [] for name in ("losses", "tested", "clusters")}
    return {
        **named,
        **none,
        **_listed([], 0),
        "state": "running",
        "said": f"{why}; its folder has its events, and figures once it has ended",
        "mode": str(run.config.get("engine", {}).get("name", "")),
        "num_steps": steps if is_number(steps) else 0,
        "num_servers": 0,
        "has_rounds": run.has_rounds,
        "rate": None,
        "events": run.events[-NEWEST:],
        "num_events": run.num_events,
    }


def _numbers(run: RunData) -> set[int]:
    """Return the numbers of the agents of which a run's files tell."""
    return {*run.agents, *compute.unique(run.schedule["agent"]).to_pylist()}


def _points(steps: Iterable[float], values: Iterable[float]) -> list[tuple[int, float]]:
    return [(int(step), float(value)) for step, value in zip(steps, values, strict=True) if np.isfinite(value)]


def _agents(run: RunData) -> list[dict[str, Any]]:
    """Return the last state of each agent of which a run's files tell."""
    away: dict[int, str] = {}
    for event in run.events:
        if event["kind"] in LEFT:
            away[event.get("agent", -1)] = LEFT[event["kind"]]
        elif event["kind"] == "agent_returned":
            away.pop(event.get("agent", -1), None)
    staleness, taken = _last_staleness(run.schedule), _rows_taken(run.schedule)
    number: Any = run.config.get("num_steps")
    agents = []
    for agent in sorted({*range(run.config.get("num_agents", 0)), *_numbers(run)}):
        rows = run.agents.get(agent)
        step, loss = (0, None) if rows is None else (int(rows["step"].iloc[-1]), float(rows["train_loss"].iloc[-1]))
        if run.num_workers is None or agent < run.num_workers:
            step = max(step, taken.get(agent, 0))
        done = "finished" if is_number(number) and step >= number else "ended"
        agents.append(
            {
                "agent": agent,
                "step": step,
                "loss": loss if loss is not None and np.isfinite(loss) else None,
                "step_seconds": None,
                "staleness": staleness.get(agent, {}),
                "health": away.get(agent, done),
                "heard_seconds": None,
            }
        )
    return agents


def _rows_taken(schedule: pa.Table) -> dict[int, int]:
    """Return by agent how many rows it has come to."""
    newest = schedule.select(["agent", "step"]).group_by("agent").aggregate([("step", "max")])
    return {row["agent"]: row["step_max"] + 1 for row in newest.to_pylist()}


def _last_staleness(schedule: pa.Table) -> dict[int, dict[int, int]]:
    """Return by agent and neighbor how stale the last version was that was read."""
    counts = compute.list_value_length(schedule["neighbors"]).to_numpy()
    agents, steps = (np.repeat(schedule[name].to_numpy(), counts) for name in ("agent", "step"))
    neighbors, staleness = (
        schedule[name].combine_chunks().flatten().to_numpy(zero_copy_only=False) for name in ("neighbors", "staleness")
    )
    order = np.argsort(steps, kind="stable")
    last: dict[int, dict[int, int]] = {}
    keys = agents[order].astype(np.int64) * 2**32 + neighbors[order]
    _, from_end = np.unique(keys[::-1], return_index=True)
    for place in order[len(keys) - 1 - from_end] if len(keys) else ():
        last.setdefault(int(agents[place]), {})[int(neighbors[place])] = int(staleness[place])
    return last
