"""One run: metrics, checkpoints and files exist once, here, above the engines."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import torch

from ray_pcasgd.checkpoint import Checkpoint, Checkpoints
from ray_pcasgd.consensus import AveragedModel
from ray_pcasgd.engines.base import Pause, Report, RunError
from ray_pcasgd.engines.local import LocalEngine
from ray_pcasgd.learner import NonFiniteLossError
from ray_pcasgd.monitor import Monitor
from ray_pcasgd.plan import Plan
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.rules.base import Reading
from ray_pcasgd.run_folder import RunFolder, is_remote
from ray_pcasgd.run_state import State
from ray_pcasgd.schedule.trace import in_causal_order, trace_hash


class Watcher:
    """What is told of a run as it goes; the default looks away."""

    def started(self, plan: Plan, path: Path) -> None:
        """Take in the plan, and the run's folder, before the first step."""

    def stepped(self, report: StepReport) -> None:
        """Take in one step."""

    def evaluated(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in metrics rows; that of the averaged model has no agent."""

    def happened(self, event: Event) -> None:
        """Take in an event."""

    def paused(self, pause: Pause, state: Callable[[], State]) -> None:
        """Take in that the run can be left here; ``state`` returns what it goes on from, if called at once."""

    def finished(self) -> None:
        """Take in that there will be no more steps."""


@dataclass(frozen=True)
class Result:
    """What a run left, in the manner of Ray Train's ``Result``."""

    metrics: dict[str, Any]
    """The last evaluation of the averaged model, with the agents' mean under ``agents_mean_...``."""
    metrics_dataframe: pd.DataFrame
    """One row per agent and evaluation, and one for the averaged model, whose ``agent`` is missing."""
    checkpoint: Checkpoint | None
    """The averaged model of the last complete evaluation."""
    path: str
    """The run folder."""
    error: Exception | None
    """What ended the run before its last step; nothing if it is complete."""
    best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = field(default_factory=list)
    """The checkpoints that were kept, with the averaged model's metrics."""
    schedule_hash: str = ""
    """Depends on who read which version; equal for runs under the same schedule."""


class Run:
    """One run as its reports come: an engine's, or those of one variant among several."""

    def __init__(self, plan: Plan, folder: RunFolder, watcher: Watcher) -> None:
        self.plan = plan
        self.folder = folder
        self.watcher = watcher
        config = plan.config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AveragedModel(config.task, plan.data, config.seed, device)
        self.monitor = Monitor(len(plan.specs), self.model.evaluate, plan.servers)
        self.checkpoints = Checkpoints(folder, config.checkpoint)
        self.rows: list[Row] = []
        self.lost: list[Event] = []
        self.left: set[int] = set()
        """Agents that were lost or isolated."""
        self.started_at = time.perf_counter()
        self.first_step_at: float | None = None

    def execute(self, state: State | None = None) -> Result:
        """Run the plan's engine to its end, from ``state`` on where one is given, and return what came of it."""
        error: Exception | None = None
        try:
            self.start()
            if state is not None:
                self.restore(state["run"])
            for report in self._reports(None if state is None else state["engine"]):
                if isinstance(report, Pause):
                    self.pause(report)
                else:
                    self.take(report)
        except (NonFiniteLossError, RunError) as ended:
            error = ended
        finally:
            self.finish()
        return self.conclude(error)

    def _reports(self, state: State | None) -> Iterator[Report]:
        engine = self.plan.engine()
        if isinstance(engine, LocalEngine):
            return engine.run_with_pauses(self.plan.specs, self.plan.data, state)
        assert state is None, "only the local engine goes on from a state"
        return engine.run(self.plan.specs, self.plan.data)

    def pause(self, pause: Pause) -> None:
        """Offer the state of the whole run to the watcher."""
        self.watcher.paused(pause, lambda: {"engine": pause.state(), "run": self.state()})

    def state(self) -> State:
        """Return what the run's files to come depend on, beside the engine's state."""
        return {
            "rows": self.rows,
            "monitor": self.monitor.state(),
            "checkpoints": self.checkpoints.state(),
            "left": sorted(self.left),
            "lost": self.lost,
            "seconds": time.perf_counter() - self.started_at,
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.rows, self.lost, self.left = state["rows"], state["lost"], set(state["left"])
        self.monitor.restore(state["monitor"])
        step = max((row["step"] for row in self.monitor.rows), default=0)
        self.checkpoints.restore(state["checkpoints"], step)
        self.started_at = time.perf_counter() - state["seconds"]
        self.folder.add_event({"time": round(state["seconds"], 3), "kind": "resumed", "step": step})

    def start(self) -> None:
        """Take in the plan, before the first report."""
        self.watcher.started(self.plan, self.folder.path)
        for agent, last in self.plan.last_steps.items():
            if last < 0:
                self.note_departure(agent, last)

    def take(self, report: StepReport | Event) -> None:
        """Take in one report."""
        if isinstance(report, Event):
            self.take_event(report)
        else:
            self.take_step(report)

    def finish(self) -> None:
        """Write what there is, after the last report; whatever else went wrong, too."""
        self.watcher.evaluated(self.monitor.finish())
        self.write()
        self.watcher.finished()

    def shortfall(self) -> RunError | None:
        """Return what makes a run that came to its end a failure."""
        if len(self.left) == len(self.plan.specs):
            return RunError("every agent has left the run; events.jsonl says why")
        allowed = self.plan.config.max_failures
        if allowed >= 0 and len(self.lost) > allowed:
            names = ", ".join(f"agent {event.agent}" for event in self.lost)
            return RunError(f"{names} lost; allowed are max_failures = {allowed}. The other agents finished")
        return None

    def take_step(self, report: StepReport) -> None:
        """Take in one step."""
        self.first_step_at = self.first_step_at or time.perf_counter()
        self.rows.append(report.row)
        self.watcher.stepped(report)
        self.take_rows(self.monitor.take(report))
        if self.plan.last_steps.get(report.row.agent) == report.row.step:
            self.note_departure(report.row.agent, report.row.step)

    def note_departure(self, agent: int, last_step: int) -> None:
        """Note that a recorded run lost an agent after ``last_step``."""
        detail = f"the recorded run lost agent {agent} after {last_step + 1} steps"
        self.take_event(Event("agent_left", agent, last_step + 1, detail))

    def take_event(self, event: Event) -> None:
        """Take in an event."""
        self.folder.add_event({"time": round(time.perf_counter() - self.started_at, 3), **event._asdict()})
        self.watcher.happened(event)
        if event.kind == "agent_lost":
            self.lost.append(event)
        if event.kind in ("agent_lost", "agent_isolated", "agent_left"):
            self.left.add(event.agent)
            self.take_rows(self.monitor.leave(event.agent))

    def take_rows(self, rows: list[dict[str, Any]]) -> None:
        """Take in rows of metrics; where they complete an evaluation, its model may be kept."""
        if not rows:
            return
        self.watcher.evaluated(rows)
        consensus = self.monitor.latest
        assert consensus is not None
        self.checkpoints.offer(rows[-1], lambda: self.model.state_dict(consensus.mean))

    def write(self) -> None:
        """Write everything that there is so far."""
        self.make_executable()
        self.folder.write_metrics(self.monitor.frame())
        self.folder.write_schedule(self.rows, self.schedule_metadata())
        if self.monitor.latest is not None:
            metadata = {"format": "pt", "run": self.folder.path.name, "algorithm": self.plan.config.algorithm.name}
            self.folder.write_model(self.model.state_dict(self.monitor.latest.mean), metadata)

    def make_executable(self) -> None:
        """Make the record one that can be executed: agents die, clocks differ, a live run's staleness is a guess."""
        taken = Counter(row.agent for row in self.rows)
        unknown = [r for row in self.rows for r in row.reads if r.version > taken[r.neighbor]]
        if unknown:
            # The last steps of an agent that was killed are not known, though others have read what came of them.
            agents = ", ".join(f"agent {agent}" for agent in sorted({read.neighbor for read in unknown}))
            detail = f"{len(unknown)} reads of unreported versions of {agents} are left out of the schedule"
            self.take_event(Event("reads_unrecorded", unknown[0].neighbor, unknown[0].version, detail))
            self.rows = [
                row._replace(reads=tuple(read for read in row.reads if read.version <= taken[read.neighbor]))
                for row in self.rows
            ]
        if self.plan.is_live:
            self.rows = in_causal_order(self.rows, with_directions=self.plan.reading in get_args(Reading))

    def schedule_metadata(self) -> dict[str, str]:
        """Return what the schedule's file says of the run."""
        config = self.plan.config
        return {
            "run": self.folder.path.name,
            "mode": "live" if self.plan.is_live else "planned",
            "algorithm": config.algorithm.name,
            "reading": self.plan.reading,
            "num_agents": str(config.num_agents),
            "num_servers": str(len(self.plan.servers)),
            "seed": str(config.seed),
            "left": " ".join(map(str, sorted(self.left))),
        }

    def conclude(self, error: Exception | None) -> Result:
        """Return what came of the run, which ended early with ``error`` where one is given."""
        if error is not None:
            self.folder.add_event({"kind": "run_failed", "detail": str(error)})
        error = error or self.shortfall()
        frame = self.monitor.frame()
        final = final_metrics(frame)
        training_seconds = time.perf_counter() - (self.first_step_at or self.started_at)
        digest = trace_hash(self.rows)
        agent_steps = sum(row.kind != "passive" for row in self.rows)
        summary = {
            "schedule_hash": digest,
            "num_parameters": self.model.num_parameters,
            "agent_steps": agent_steps,
            "wall_seconds": round(time.perf_counter() - self.started_at, 3),
            "agent_steps_per_second": round(agent_steps / max(training_seconds, 1e-9), 1),
            "final": final,
            "shard_sizes": [len(spec.shard) for spec in self.plan.specs[: self.plan.config.num_agents]],
            "error": str(error) if error else None,
        }
        self.folder.write_result(summary)
        has_model, path = self.folder.model.exists(), str(self.folder.path)
        storage = self.plan.config.storage_path
        if is_remote(storage):
            path = self.folder.publish(storage)
            self.checkpoints.published(path)
        checkpoint = Checkpoint(path) if has_model else None
        return Result(
            metrics=_flat(final),
            metrics_dataframe=frame,
            checkpoint=checkpoint,
            path=path,
            error=error,
            best_checkpoints=self.checkpoints.kept,
            schedule_hash=digest,
        )


def final_metrics(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the last evaluation: of the averaged model, and of the agents as mean, std, min and max."""
    if frame.empty:
        return {}
    final: dict[str, Any] = {}
    tests = [name for name in frame.columns if name.startswith("test_")]
    averaged = frame[frame["agent"].isna()]
    if len(averaged):
        last = averaged.drop(columns="agent").iloc[-1]
        final["step"] = int(last["step"])
        final["averaged"] = {name: float(last[name]) for name in tests}
        final["consensus_distance"] = float(last["consensus_distance"])
        final |= {name: float(last[name]) for name in ("staleness_mean", "predicting_share", "theta")}
    newest = frame[frame["agent"].notna()].groupby("agent").last()
    final["agents"] = {
        name: {
            "mean": float(newest[name].mean()),
            "std": float(newest[name].std(ddof=0)),
            "min": float(newest[name].min()),
            "max": float(newest[name].max()),
        }
        for name in tests
    }
    return final


def _flat(final: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in final.items() if not isinstance(value, dict)}
    flat |= final.get("averaged", {})
    for name, spread in final.get("agents", {}).items():
        flat |= {f"agents_{statistic}_{name}": value for statistic, value in spread.items()}
    return flat
