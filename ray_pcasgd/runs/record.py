"""The record of a run, made as its reports come: rows, metrics, models and events, and its part of a state."""

import copy
import math
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from ray_pcasgd.base.state import State
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.failures import StepError, described
from ray_pcasgd.records import Event, Row, Snapshot, StepReport
from ray_pcasgd.rules.gatherer import Position
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.averaged import AveragedEvaluations
from ray_pcasgd.runs.callbacks import Callback, blame
from ray_pcasgd.runs.interrupting import Interrupts
from ray_pcasgd.runs.metrics import MetricsTable
from ray_pcasgd.runs.pace import Pace
from ray_pcasgd.runs.plan.local_steps import steps_of_workers
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.screening import Screening
from ray_pcasgd.runs.storage.checkpoints import Checkpoints
from ray_pcasgd.runs.storage.ending import Ending
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.storage.states import RunStates, restored_rows
from ray_pcasgd.schedule.parquet import rows_up_to
from ray_pcasgd.schedule.row_log import RowLog

_SHOWN_EVALUATIONS = 3
"""Failed evaluations that are shown at most; the events' file has all of them."""


class CallbackError(Exception):
    """What a callback raised, which is not an error of the run itself."""


class RunRecord:
    """Takes in the reports of a run, calls its callbacks, and keeps what its files are made of."""

    def __init__(self, plan: Plan, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> None:
        self.plan = plan
        self.folder = folder
        self.callbacks = tuple(callbacks)
        self.keeps_states_elsewhere = any(callback.keeps_states for callback in self.callbacks)
        """Whether a callback keeps the run's states, so that the run does not."""
        config = plan.config
        self.evaluations = AveragedEvaluations(plan, folder.location, self.say_later)
        self.model = self.evaluations.model
        combines_first = plan.config.overlap is False
        self.monitor = MetricsTable(len(plan.specs), self.evaluations.begin, plan.servers, combines_first)
        self.screening = Screening(config.faults)
        self.checkpoints = Checkpoints(folder, config.checkpoint)
        self.ending = Ending(folder, self.take_event)
        self.interrupts = Interrupts(self.ask_to_leave)
        self.rows = RowLog()
        self.lost: list[Event] = []
        self.left: set[int] = set()
        """Agents that were lost or isolated."""
        self.light: set[int] = set()
        """Agents that were found with little mass."""
        self.unfit: set[str] = set()
        """Test figures that were found not to be finite."""
        self.unsaid: list[Event] = []
        """Events that are still to be taken in."""
        self.failed_evaluations: list[Event] = []
        self.has_bare_model = False
        """Whether the model's file holds no more than parameters and buffers."""
        self.configuration_files: dict[str, bytes] | None = None
        """The model's own configuration as files, by their names; ``None`` until they are first written."""
        self.is_ending = False
        """Whether there are no more reports."""
        self.raised_at_end: Exception | None = None
        """The first error that a callback raised after the run's end."""
        self.started_at = time.perf_counter()
        self.pace = Pace()
        self.initial: dict[str, float] = {}
        """The test figures of the common start of all agents, version 0."""
        self.beginning: State = {"engine": None, "run": copy.deepcopy(self.state())}
        """The state before the first step."""
        self.states = RunStates(
            folder.states, config.checkpoint, self.beginning["run"], len(plan.specs), self.take_event
        )

    def ask_to_leave(self) -> bool:
        """Let the run end at its next pause; return whether there will be one."""
        return False

    def state(self, versions: Sequence[int] | None = None) -> State:
        """Return what the run's files to come depend on, together with the engine's state.

        Where agents go on from ``versions`` and take the steps after them otherwise, those rows are left out, and what
        others have read of them: under its number there will be another version.
        """
        rows, left_out = (self.rows, 0) if versions is None else rows_up_to(self.rows, versions)
        return {
            "rows": [[*sizes, torch.from_numpy(data)] for sizes, data in rows.encoded()],
            "reads_left_out": left_out,
            "monitor": self.monitor.state(),
            "screening": self.screening.state(),
            "checkpoints": self.checkpoints.state(),
            "left": sorted(self.left),
            "lost": self.lost,
            "seconds": time.perf_counter() - self.started_at,
        }

    def restore_parts(self, state: State) -> None:
        """Take the place of whatever there is by a state."""
        self.rows = restored_rows(state["rows"], len(self.plan.specs))
        state["rows"].clear()  # which whoever holds the state has no use for
        self.lost, self.left = state["lost"], set(state["left"])
        self.monitor.restore(state["monitor"])
        self.screening.restore(state["screening"])
        for problem in self.checkpoints.restore(state["checkpoints"], self.monitor.rows.last_step):
            self.take_event(Event("model_skipped", -1, -1, problem))
        self.started_at = time.perf_counter() - state["seconds"]

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.restore_parts(state)
        if state["reads_left_out"]:
            detail = f"{state['reads_left_out']} reads of versions after the state are left out of the schedule"
            self.take_event(Event("reads_unrecorded", -1, -1, detail))
        newest = (self.plan.progress_at(agent, steps.end) for agent, steps in self.rows.steps.items())
        step = min(newest, default=0)
        self.take_event(Event("run_resumed", -1, step, f"going on from the state of step {step}"))

    def take(self, report: StepReport | Event) -> None:
        """Take in one report."""
        if isinstance(report, Event):
            self.take_event(report)
        else:
            self.take_step(report)
        self.say_unsaid()

    def take_step(self, report: StepReport) -> None:
        """Take in one step."""
        if self.rows.has(*report.row[:2]):
            return  # a step that is taken again, from a state on
        if steps := self.plan.steps_in(report.row):
            self.pace.count(time.perf_counter(), steps)
        self.rows.append(report.row)
        if (report.row.agent, report.row.step + 1) in self.returning:
            self.mark_back(report.row)
        self.monitor.take(report)
        self.screening.take(report)
        self.call("on_step", report)
        self.note_mass(report)
        self.take_evaluations()
        if (report.row.agent, report.row.step + 1) in self.departing:
            self.mark_left(report.row.agent, report.row.step + 1)

    def take_evaluations(self, wait: bool = False) -> None:
        """Take in the evaluations whose figures are there; of all that are complete, where it is to wait for them."""
        for rows in self.monitor.settled(wait):
            self.take_rows(rows)

    def take_rows(self, rows: list[dict[str, Any]]) -> None:
        """Take in an evaluation's rows of metrics, whose model may be kept."""
        self.call("on_evaluation", copy.deepcopy(rows))
        self.note_figures(rows[-1])
        consensus = self.monitor.latest
        assert consensus is not None
        try:
            kept = self.checkpoints.offer(rows[-1], lambda: self.model_state(consensus.mean), self.model_configuration)
        except Exception as error:
            step = rows[-1]["step"]
            detail = f"the model of step {step} could not be kept: {described(error)}"
            self.take_event(Event("model_not_kept", -1, step, detail))
            return
        if kept is not None:
            self.call("on_checkpoint", *copy.deepcopy(kept))

    def note_figures(self, averaged: Mapping[str, Any]) -> None:
        """Note test figures of the averaged model that are not finite where the start's were, once for each."""
        for name, first in self.initial.items():
            value = averaged.get(name)
            is_wrong = value is not None and math.isfinite(first) and not math.isfinite(value)
            if is_wrong and name not in self.unfit and not (self.failed_evaluations or self.unsaid):
                self.unfit.add(name)
                spoken = name.removeprefix("test_")
                detail = f"{spoken} of the averaged model is {value:g} at step {averaged['step']}, and was {first:.4g}"
                self.take_event(Event("noticed", -1, int(averaged["step"]), detail))

    def take_event(self, event: Event, back_at: int | None = None) -> None:
        """Take in an event; ``back_at`` is the step at which an agent that leaves comes back, where that is known."""
        if event.kind == "evaluation_failed":
            self.failed_evaluations.append(event)
        error = self.folder.add_event({"time": round(time.perf_counter() - self.started_at, 3), **event._asdict()})
        if event.kind != "evaluation_failed" or len(self.failed_evaluations) <= _SHOWN_EVALUATIONS:
            self.call("on_event", event)
        if error is not None:
            detail = f"{self.folder.path} cannot be written ({error}); the run goes on, and tries again"
            self.call("on_event", Event("storage_failed", -1, -1, detail))
            self.move_out_if_gone(error)
        if event.agent in self.left and event.kind == "agent_isolated":
            return  # isolated anew, on the way that was taken before
        if event.kind == "agent_lost":
            self.lost.append(event)
        if event.kind == "agent_returned":
            self.left.discard(event.agent)
            self.monitor.come_back(event.agent, event.step)
        if event.kind in ("agent_lost", "agent_isolated", "agent_left"):
            self.left.add(event.agent)
            self.monitor.leave(event.agent, back_at)
            self.take_evaluations()

    def note_mass(self, report: StepReport) -> None:
        """Note that an agent has little of push-sum's mass left, once for each agent."""
        smallest, agent = getattr(self.plan.config.algorithm, "smallest_mass", 0.0), report.row.agent
        mass = report.measures.get("mass", 1.0)
        if mass <= smallest and agent not in self.light:
            self.light.add(agent)
            detail = (
                f"agent {agent} has {mass:.2g} of its mass left: others take its shares late, or lost them; its steps "
                f"grow no further than at algorithm.smallest_mass = {smallest:g}"
            )
            self.take_event(Event("mass_low", agent, report.progress, detail))

    @cached_property
    def departing(self) -> set[tuple[int, int]]:
        """The agents that leave, and the versions after which they do, by the run's schedule."""
        return {departure[:2] for departure in self.plan.departures}

    @cached_property
    def returning(self) -> set[tuple[int, int | None]]:
        """The agents that come back, and the versions at which they do, by the run's schedule."""
        return {(departure.agent, departure.back_at) for departure in self.plan.departures}

    def mark_left(self, agent: int, version: int) -> None:
        """Note that an agent leaves at a version, as the run's schedule has it.

        Actors' reports come in any order, so that others may be far beyond the step at which it comes back; evaluations
        from there on wait for it, lest their agents depend on that order.
        """
        step = self.plan.progress_at(agent, version)
        planned = self.plan.config.schedule is None
        told = f"agent {agent} leaves" if planned else f"the recorded run lost agent {agent}"
        back = [one.back_at for one in self.plan.departures if one[:2] == (agent, version)][-1]
        back_at = None if back is None else self.plan.progress_at(agent, back)
        self.take_event(Event("agent_left", agent, step, f"{told} after {step} steps"), back_at)

    def mark_back(self, row: Row) -> None:
        """Note that an agent is back, as the run's schedule has it."""
        step = self.plan.progress_at(row.agent, row.step + 1)
        whence = " and ".join(f"agent {read.neighbor}" for read in row.reads)
        how = f"as the mean of {whence}" if row.reads else "as it was"
        if self.plan.servers:
            how = "with its servers' weights"
        self.take_event(Event("agent_returned", row.agent, step, f"agent {row.agent} is back at step {step}, {how}"))

    def say_unsaid(self) -> None:
        """Take in the events that have come up meanwhile."""
        unsaid, self.unsaid = self.unsaid, []
        for event in unsaid:
            self.take_event(event)

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of every callback; what one raises ends the run, or is raised again where it has ended."""
        for callback in self.callbacks:
            try:
                getattr(callback, hook)(*arguments)
            except KeyboardInterrupt:
                self.interrupts.interrupt()
            except Exception as error:
                blame(error, callback, hook)
                if not self.is_ending:
                    raise CallbackError from error
                self.raised_at_end = self.raised_at_end or error

    def say_later(self, event: Event) -> None:
        """Take in an event once what is being taken in is."""
        self.unsaid.append(event)

    def model_state(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return a snapshot's state dict; of a module that cannot say its own, parameters and buffers."""
        try:
            return self.model.state_dict(snapshot)
        except Exception as error:
            if not self.has_bare_model:
                self.has_bare_model = True
                detail = f"the model's file holds parameters and buffers alone: {described(error)}"
                self.take_event(Event("model_format", -1, -1, detail))
            return dict(self.model.bare_state_dict(snapshot))

    def write_model(self) -> None:
        """Write the newest consensus model."""
        assert self.monitor.latest is not None
        metadata = {"run": self.folder.name, "algorithm": self.plan.config.algorithm.name}
        self.folder.write_model(self.model_state(self.monitor.latest.mean), metadata, self.model_configuration())

    def model_configuration(self) -> dict[str, bytes]:
        """Return the model's own configuration as files, by their names; none, with an event, where its code raises."""
        if self.configuration_files is None:
            self.configuration_files = {}
            try:
                self.configuration_files = self.model.configuration_files()
            except Exception as error:
                detail = f"the model's own configuration could not be written: {described(error)}"
                self.take_event(Event("model_format", -1, -1, detail))
        return self.configuration_files

    def move_out_if_gone(self, error: OSError) -> None:
        """Go on in another folder where the run's own is not there any more; else it may be written again later."""
        if self.folder.is_gone and self.ending.move_out(error):
            self.states.write_to(self.folder.states)

    def schedule_metadata(self) -> dict[str, str]:
        """Return what the schedule's file says of the run."""
        return self.plan.schedule_info(self.folder.name, self.left).to_metadata()

    def shortfall(self) -> RunError | None:
        """Return what makes a run that came to its end a failure."""
        if self.left.issuperset(range(self.plan.config.num_agents)) and not self.servers_are_done:
            return RunError("every agent has left the run; events.jsonl says why")
        allowed = self.plan.config.max_failures
        if allowed >= 0 and len(self.lost) > allowed:
            names = ", ".join(f"agent {event.agent}" for event in self.lost)
            return RunError(f"{names} lost; allowed are max_failures = {allowed}. The other agents finished")
        if self.failed_evaluations:
            first, *others = self.failed_evaluations
            more = f"; and {len(others)} evaluations more" if others else ""
            return StepError(f"evaluation of {first.detail}{more}", first.agent, first.step)
        return self.divergence()

    @property
    def servers_are_done(self) -> bool:
        """Whether there are servers, and each has taken all steps of the run."""
        algorithm = self.plan.config.algorithm
        if not isinstance(algorithm, ServerRule):
            return False
        positions = {server: Position(steps_of_workers(self.plan.config, algorithm)) for server in self.plan.servers}
        for row in self.rows:
            if row.agent in positions:
                positions[row.agent].advance(read.neighbor for read in row.reads)
        return all(position.steps >= self.plan.config.num_steps for position in positions.values())

    def divergence(self) -> RunError | None:
        """Return the error of a model whose numbers are finite and whose last test loss, unlike the first, is not."""
        last = self.monitor.rows.last_averaged() or {}
        loss, first = (figures.get("test_loss", 0.0) for figures in (last, self.initial))
        if math.isfinite(loss) or not math.isfinite(first):
            return None
        return RunError(
            f"the averaged model has test loss {loss:g} at step {last['step']}: training has diverged; a smaller "
            "step_size may help"
        )
