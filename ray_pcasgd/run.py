"""One run: metrics, checkpoints and files exist once, here, above the engines."""

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ray_pcasgd.checkpoint import Checkpoint, Checkpoints
from ray_pcasgd.consensus import AveragedModel
from ray_pcasgd.engines.base import InterruptionError, Pause, RunError
from ray_pcasgd.executable_rows import executable
from ray_pcasgd.learner import StepError
from ray_pcasgd.monitor import Monitor
from ray_pcasgd.pace import Pace, is_agent_step, mean_staleness
from ray_pcasgd.plan import Plan
from ray_pcasgd.records import Event, Row, StepReport
from ray_pcasgd.result import Result, final_metrics, flat_metrics
from ray_pcasgd.run_folder import RunFolder, is_remote
from ray_pcasgd.run_state import State, step_of
from ray_pcasgd.schedule.trace import rows_up_to, trace_hash
from ray_pcasgd.state_files import StateFiles
from ray_pcasgd.watching import Watcher


class Run:
    """One run as its reports come: an engine's, or those of one variant among several."""

    def __init__(self, plan: Plan, folder: RunFolder, watcher: Watcher) -> None:
        self.plan = plan
        self.folder = folder
        self.watcher = watcher
        config = plan.config
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AveragedModel(config.task, plan.data, config.seed, device, config.mixed_buffers)
        self.monitor = Monitor(len(plan.specs), self.model.evaluate, plan.servers)
        self.checkpoints = Checkpoints(folder, config.checkpoint)
        self.states = StateFiles(folder.states, config.checkpoint)
        self.storage_error: RunError | None = None
        """What kept the run's files from being written."""
        self.rows: list[Row] = []
        self.lost: list[Event] = []
        self.left: set[int] = set()
        """Agents that were lost or isolated."""
        self.taken: set[tuple[int, int]] = set()
        """Agents and steps of all rows: steps that a run takes again, on from a state, do not count again."""
        self.light: set[int] = set()
        """Agents that were found with little mass."""
        self.interruptions = 0
        self.initial: dict[str, float] = {}
        """What the common start of all agents, version 0, is tested to be."""
        self.started_at = time.perf_counter()
        self.pace = Pace()
        self.beginning: State = {"engine": None, "run": copy.deepcopy(self.state())}
        """The state before the first step."""

    def execute(self, state: State | None = None) -> Result:
        """Run the plan's engine to its end, from ``state`` on where one is given, and return what came of it."""
        error: Exception | None = None
        try:
            self.start()
            if state is not None:
                self.restore(state["run"])
            while state := self.advance(state):
                pass
        except (StepError, RunError) as ended:
            error = ended
        finally:
            self.finish()
        return self.conclude(error)

    def advance(self, state: State | None) -> State | None:
        """Take in the engine's reports, from ``state`` on; return the state to go on from where it was interrupted.

        Raises:
            InterruptionError: that has happened more often than the settings allow.

        """
        try:
            engine = self.plan.engine(self.location)
            for report in engine.run(self.plan.specs, self.plan.data, state and state["engine"]):
                if isinstance(report, Pause):
                    self.pause(report)
                else:
                    self.take(report)
        except InterruptionError as interruption:
            self.interruptions += 1
            if 0 <= self.plan.config.max_failures < self.interruptions:
                raise
            # A copy: what a state holds becomes the run's own.
            state = self.last_state() or copy.deepcopy(self.beginning)
            step = step_of(state["engine"])
            self.take_event(Event("run_restarted", interruption.agent, step, f"{interruption}; on from step {step}"))
            if self.plan.is_live:
                # The steps after it will be others.
                self.restore(state["run"])
            return state
        return None

    @property
    def location(self) -> str:
        """Where the run's folder is, or will be."""
        storage = self.plan.config.storage_path
        if is_remote(storage):
            return f"{storage.rstrip('/')}/{self.folder.path.name}"
        return str(self.folder.path.resolve())

    def pause(self, pause: Pause) -> None:
        """Offer the state of the whole run to the watcher, and keep it if it is time."""

        def state() -> State:
            return {"engine": pause.state(), "run": self.state(pause.versions)}

        self.watcher.paused(pause, state)
        if self.states.is_due() and not self.watcher.keeps_states:
            try:
                self.states.write(state)
                if is_remote(self.plan.config.storage_path):
                    self.folder.mirror(self.plan.config.storage_path)
            except OSError as error:
                self.take_event(Event("state_not_kept", -1, pause.step, f"the run's state could not be kept: {error}"))

    def last_state(self) -> State | None:
        """Return the newest state that was kept and is intact, and say what was wrong with newer ones."""
        state, problems = self.states.newest()
        for problem in problems:
            self.take_event(Event("state_skipped", -1, 0, problem))
        return state

    def state(self, versions: Sequence[int] | None = None) -> State:
        """Return what the run's files to come depend on, beside the engine's state.

        Where agents go on from ``versions`` and take the steps after them otherwise, those rows are left out, and what
        others have read of them: under its number there will be another version.
        """
        rows, left_out = (self.rows, 0) if versions is None else rows_up_to(self.rows, versions)
        return {
            "rows": rows,
            "reads_left_out": left_out,
            "monitor": self.monitor.state(),
            "checkpoints": self.checkpoints.state(),
            "left": sorted(self.left),
            "lost": self.lost,
            "seconds": time.perf_counter() - self.started_at,
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.rows, self.lost, self.left = state["rows"], state["lost"], set(state["left"])
        self.taken = {row[:2] for row in self.rows}
        self.monitor.restore(state["monitor"])
        evaluated = max((row["step"] for row in self.monitor.rows), default=0)
        self.checkpoints.restore(state["checkpoints"], evaluated)
        self.started_at = time.perf_counter() - state["seconds"]
        if state["reads_left_out"]:
            detail = f"{state['reads_left_out']} reads of versions after the state are left out of the schedule"
            self.take_event(Event("reads_unrecorded", -1, -1, detail))
        newest: dict[int, int] = {}
        for row in self.rows:
            newest[row.agent] = row.step + 1
        step = min(newest.values(), default=0)
        self.take_event(Event("run_resumed", -1, step, f"on from the state of step {step}"))

    def start(self, initial: dict[str, float] | None = None) -> None:
        """Take in the plan, before the first report, and test the common start unless ``initial`` has what came of it.

        Raises:
            RunError: the test samples cannot be evaluated.

        """
        self.watcher.started(self.plan, self.folder.path)
        self.initial = self.tested_start() if initial is None else initial
        for agent, last in self.plan.last_steps.items():
            if last < 0:
                self.note_departure(agent, last)

    def tested_start(self) -> dict[str, float]:
        """Return what the common start is tested to be, and say what there is to know about data and test.

        Raises:
            RunError: as ``start``.

        """
        try:
            evaluation = self.model.examine_start()
        except Exception as error:  # whatever the user's own model, loss or metric raises
            setting = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            raise RunError(
                f"{setting}fails on the test samples before the first step ({type(error).__name__}: {error})"
            ) from error
        for remark in (*self.plan.data.remarks, *evaluation.remarks):
            self.take_event(Event("noticed", -1, 0, remark))
        return {f"test_{name}": value for name, value in evaluation.values.items()}

    def take(self, report: StepReport | Event) -> None:
        """Take in one report."""
        if isinstance(report, Event):
            self.take_event(report)
        else:
            self.take_step(report)

    def finish(self) -> None:
        """Write what there is, after the last report; whatever else went wrong, too."""
        self.watcher.evaluated(self.monitor.finish())
        self.rows, events = executable(self.rows, self.plan)
        for event in events:
            self.take_event(event)
        self.saving(self.write)
        self.watcher.finished()

    def saving(self, write: Callable[[], None]) -> None:
        """Write files; where the run's folder does not take them, to one that does, and say so."""
        try:
            write()
        except OSError as error:
            wanted, kept = self.folder.path, self.folder.rescue()
            self.storage_error = RunError(
                f"storage_path = {self.plan.config.storage_path!r}: {wanted} could not be written ({error}); the run's "
                f"files are in {kept}"
            )
            write()

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
        if report.row[:2] in self.taken:
            return
        if is_agent_step(report.row, self.plan.servers):
            self.pace.count(time.perf_counter())
        self.taken.add(report.row[:2])
        self.rows.append(report.row)
        self.watcher.stepped(report)
        self.note_mass(report)
        self.take_rows(self.monitor.take(report))
        if self.plan.last_steps.get(report.row.agent) == report.row.step:
            self.note_departure(report.row.agent, report.row.step)

    def note_mass(self, report: StepReport) -> None:
        """Note that an agent has little of push-sum's mass left, once for each agent."""
        smallest, agent = getattr(self.plan.config.algorithm, "smallest_mass", 0.0), report.row.agent
        mass = report.measures.get("mass", 1.0)
        if mass < smallest and agent not in self.light:
            self.light.add(agent)
            detail = (
                f"agent {agent} has {mass:.2g} of its mass left: others take its shares late, or lost them; its steps "
                f"grow no further than at algorithm.smallest_mass = {smallest:g}"
            )
            self.take_event(Event("mass_low", agent, report.progress, detail))

    def note_departure(self, agent: int, last_step: int) -> None:
        """Note that a recorded run lost an agent after ``last_step``."""
        detail = f"the recorded run lost agent {agent} after {last_step + 1} steps"
        self.take_event(Event("agent_left", agent, last_step + 1, detail))

    def take_event(self, event: Event) -> None:
        """Take in an event."""
        error = self.folder.add_event({"time": round(time.perf_counter() - self.started_at, 3), **event._asdict()})
        self.watcher.happened(event)
        if error is not None:
            detail = f"{self.folder.path} cannot be written ({error}); the run goes on, and tries again"
            self.watcher.happened(Event("storage_failed", -1, -1, detail))
        if event.agent in self.left and event.kind == "agent_isolated":
            return  # isolated anew, on the way that was taken before
        if event.kind == "agent_lost":
            self.lost.append(event)
        if event.kind == "agent_returned":
            self.left.discard(event.agent)
            self.monitor.come_back(event.agent, event.step)
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
        try:
            self.checkpoints.offer(rows[-1], lambda: self.model.state_dict(consensus.mean))
        except OSError as error:
            step = rows[-1]["step"]
            self.take_event(Event("model_not_kept", -1, step, f"the model of step {step} could not be kept: {error}"))

    def write(self) -> None:
        """Write everything that there is so far."""
        self.folder.write_metrics(self.monitor.frame())
        self.folder.write_schedule(self.rows, self.schedule_metadata())
        if self.monitor.latest is not None:
            metadata = {"format": "pt", "run": self.folder.path.name, "algorithm": self.plan.config.algorithm.name}
            self.folder.write_model(self.model.state_dict(self.monitor.latest.mean), metadata)

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
        error = error or self.shortfall() or self.storage_error
        frame = self.monitor.frame()
        final = final_metrics(frame)
        if "staleness_mean" in final:
            final["staleness_mean"] = mean_staleness(self.rows, self.plan.servers)
        digest = trace_hash(self.rows)
        summary = {
            "schedule_hash": digest,
            "num_parameters": self.model.num_parameters,
            "agent_steps": sum(is_agent_step(row, self.plan.servers) for row in self.rows),
            "wall_seconds": round(time.perf_counter() - self.started_at, 3),
            "agent_steps_per_second": None if self.pace.rate is None else round(self.pace.rate, 1),
            "initial": self.initial,
            "final": final,
            "shard_sizes": [len(spec.shard) for spec in self.plan.specs[: self.plan.config.num_agents]],
            "error": str(error) if error else None,
        }
        self.saving(lambda: self.folder.write_result(summary))
        if error is None:
            self.states.drop()
        has_model, path = self.folder.model.exists(), str(self.folder.path)
        storage = self.plan.config.storage_path
        if is_remote(storage):
            try:
                path = self.folder.publish(storage)
                self.checkpoints.published(path)
            except OSError as failed:
                error = error or RunError(
                    f"storage_path = {storage!r}: cannot be written ({failed}); the run's files are in {path}"
                )
        error = error or self.storage_error
        checkpoint = Checkpoint(path) if has_model else None
        return Result(
            metrics=flat_metrics(final),
            metrics_dataframe=frame,
            checkpoint=checkpoint,
            path=path,
            error=error,
            best_checkpoints=self.checkpoints.kept,
            schedule_hash=digest,
        )
