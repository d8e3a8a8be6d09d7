"""One run, from its start or a state of it to its end: metrics, checkpoints and files exist once, above the engines."""

import copy
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import pandas as pd

from ray_pcasgd.agents.learner import LearnerError
from ray_pcasgd.base.state import State, step_of
from ray_pcasgd.engines.base import Engine, InterruptionError, Pause, RunError, StateError
from ray_pcasgd.engines.failures import StepError, as_step_error, described, restoring
from ray_pcasgd.records import Event
from ray_pcasgd.rules.server import ServerRule
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.interrupting import RunInterrupted
from ray_pcasgd.runs.pace import mean_staleness, overlap, taken_gradients, told_of_gradients
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.record import CallbackError, RunRecord
from ray_pcasgd.runs.result import Result, final_metrics, flat_metrics
from ray_pcasgd.runs.screening import told
from ray_pcasgd.runs.settings.loading import SettingsError
from ray_pcasgd.runs.storage.checkpoints import Checkpoint
from ray_pcasgd.runs.storage.folder import RunFolder
from ray_pcasgd.runs.storage.model_file import encode
from ray_pcasgd.runs.storage.names import SCREENING
from ray_pcasgd.schedule.parquet import trace_hash

_LEAST_OVERLAP = 0.5
"""Share of an agent's time in which another one runs, too, below which a live run says so."""


class Run(RunRecord):
    """One run as its reports come: an engine's, or those of one variant among several."""

    def __init__(self, plan: Plan, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> None:
        super().__init__(plan, folder, callbacks)
        self.engine: Engine | None = None
        self.interruptions = 0
        self.is_leaving = False
        """Whether the run is to end at its next pause."""
        self.has_state = False
        """Whether a state is left at the end, from which the run could go on."""

    def execute(self, state: State | None = None, resumes: bool = False) -> Result:
        """Run the plan's engine to its end, and return the result.

        It goes on from ``state`` where one is given; one that ``resumes``, from the newest state of its folder.

        Raises:
            SettingsError: the engine cannot run these settings; the folder of a new run is removed again.
            RunInterrupted: Ctrl-C was pressed; all files are written.

        """
        error: Exception | None = None
        outside: BaseException | None = None
        try:
            with self.interrupts.handled():
                try:
                    self.start()
                    state = self.first_state(state, resumes)
                    self.leave_linked_folder()
                    self.drive(state)
                except SettingsError:
                    if not (resumes or self.rows):
                        self.folder.discard()
                    raise
                except CallbackError as raised:
                    outside = raised.__cause__
                except Exception as ended:
                    # What takes an engine down may raise once more, and hide that the user wanted it.
                    outside = _wish_behind(ended)
                    is_known = isinstance(ended, LearnerError | RunError)
                    error = ended if is_known else as_step_error(ended, -1, -1)
                except BaseException as left:
                    outside = left
                self.finish()
                result = self.conclude(error, outside)
        finally:
            self.folder.close()
        if isinstance(outside, KeyboardInterrupt):
            raise RunInterrupted(result, self.has_state) from None
        if (raised_by_others := outside or self.raised_at_end) is not None:
            raise raised_by_others
        return result

    def drive(self, state: State | None) -> None:
        """Let the engine run to its end, from ``state`` on."""
        while True:
            try:
                state = self.advance(state)
            except StateError as error:
                if not self.states.reject(error):
                    raise RunError(f"the state that was given is not one of this run: {error}") from error
                state = self.take_up()
                continue
            if state is None:
                return

    def advance(self, state: State | None) -> State | None:
        """Take in the engine's reports, from ``state`` on; return the state to go on from where it was interrupted.

        Raises:
            InterruptionError: that has happened more often than the settings allow.
            StateError: the state is not one of this run.

        """
        try:
            self.engine = self.plan.engine(self.folder.location)
            for row in self.monitor.rows.averaged():
                self.tell_figures(row)
            if self.is_leaving:
                self.engine.leaving.ask()
            # Closed at once, whatever ends the run: actors end, and with them what they hold.
            with closing(self.engine.run(self.plan.specs, self.plan.data, state and state["engine"])) as reports:
                for report in reports:
                    if isinstance(report, Pause):
                        self.pause(report)
                    else:
                        self.take(report)
        except InterruptionError as interruption:
            self.interruptions += 1
            if 0 <= self.plan.config.max_failures < self.interruptions:
                raise
            # A copy: what a state holds becomes the run's own.
            state = self.states.take_newest() or copy.deepcopy(self.beginning)
            step = step_of(state["engine"])
            self.take_event(
                Event("run_restarted", interruption.agent, step, f"{interruption}; going on from step {step}")
            )
            if self.plan.is_live:
                # The steps after it will be others.
                with restoring():
                    self.restore(state["run"])
            return state
        return None

    def take_rows(self, rows: list[dict[str, Any]]) -> None:
        """Take in an evaluation's rows of metrics, and let those see it who watch the run."""
        super().take_rows(rows)
        self.tell_figures(rows[-1])

    def tell_figures(self, row: Mapping[str, Any]) -> None:
        """Tell the engine a row's test figures, if it is the averaged model's."""
        if self.engine is not None and pd.isna(row["agent"]):
            self.engine.evaluated(row["step"], {name: row[name] for name in row if name.startswith("test_")})

    def ask_to_leave(self) -> bool:
        """Let the run end at its next pause, where its state can be kept; return whether there will be one."""
        settings = self.plan.config.checkpoint
        if self.engine is None or not self.rows or self.is_ending or not self.engine.can_pause(self.plan.specs):
            return False
        if settings.state_seconds is None or self.keeps_states_elsewhere:
            return False
        self.is_leaving = True
        self.engine.leaving.ask()
        detail = "the run ends where its state can be kept next; Ctrl-C once more ends it at once"
        self.unsaid.append(Event("interrupted", -1, -1, detail))
        return True

    def pause(self, pause: Pause) -> None:
        """Offer the state of the whole run to the callbacks, and keep it if it is time."""

        def state() -> State:
            return {"engine": pause.state(), "run": self.state(pause.versions)}

        self.call("on_pause", pause, state)
        if (self.states.is_due() or self.is_leaving) and not self.keeps_states_elsewhere:
            try:
                self.folder.check()
                self.states.write(state)
                if self.folder.remote is not None:
                    self.folder.mirror()
            except OSError as error:
                self.take_event(Event("state_not_kept", -1, pause.step, f"the run's state could not be kept: {error}"))
                self.move_out_if_gone(error)
        if self.is_leaving:
            raise KeyboardInterrupt

    def first_state(self, state: State | None, resumes: bool) -> State | None:
        """Return the state that the run begins with, taken in."""
        if resumes:
            return self.take_up()
        if state is not None:
            try:
                with restoring():
                    self.restore(state["run"])
            except StateError as error:
                raise RunError(f"the state that was given is not one of this run: {error}") from error
        return state

    def take_up(self) -> State | None:
        """Return the newest state of the folder that the run can go on from, taken in; if there is none, say so."""
        while (state := self.states.take_newest()) is not None:
            try:
                with restoring():
                    self.restore(state["run"])
                return state
            except StateError as error:
                self.states.reject(error)
        try:
            aside = self.folder.put_aside_kept_models()
            kept = f"; the models that were kept before are in {aside}" if aside else ""
        except OSError as error:
            kept = f"; the models that were kept before could not be put aside ({error})"
        self.restore_parts(copy.deepcopy(self.beginning["run"]))
        self.mark_absent()
        detail = f"{self.folder.path} has no state from which it could go on{kept}"
        self.take_event(Event("run_begins_anew", -1, 0, detail))
        return None

    def start(self, initial: dict[str, float] | None = None) -> None:
        """Take in the plan, before the first report, and test the common start unless ``initial`` has its figures.

        Raises:
            RunError: the test samples cannot be evaluated.

        """
        self.call("on_start", self.plan, self.folder.path)
        if self.folder.why_unlocked is not None:
            detail = f"{self.folder.path} is not protected from another driver: {self.folder.why_unlocked}"
            self.take_event(Event("folder_not_locked", -1, -1, detail))
        settings = self.plan.config.storage_path
        if self.folder.stays_here(settings):
            detail = f"the run goes on in {self.folder.path}, and is not copied to storage_path = {settings!r}"
            self.take_event(Event("not_published", -1, -1, detail))
        *_, reason = encode(self.model_state(self.model.first_snapshot()), {})
        if reason:
            self.take_event(Event("model_format", -1, -1, f"the model's file will be model.pt: {reason}"))
        self.initial = self.tested_start() if initial is None else initial
        self.mark_absent()

    def mark_absent(self) -> None:
        """Note who is not there at the start, as the run's schedule has it."""
        for agent, version in sorted(self.departing):
            if version == 0:
                self.mark_left(agent, version)

    def tested_start(self) -> dict[str, float]:
        """Return the test figures of the common start, and report remarks about data and test.

        Raises:
            RunError: as ``start``.

        """
        try:
            evaluation = self.evaluations.first()
        except Exception as error:  # whatever the user's own model, loss or metric raises
            setting = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
            raise RunError(f"{setting}fails on the test samples before the first step ({described(error)})") from error
        for remark in (*self.plan.remarks, *self.plan.data.remarks, *evaluation.remarks):
            self.take_event(Event("noticed", -1, 0, remark))
        return {f"test_{name}": value for name, value in evaluation.values.items()}

    def leave_linked_folder(self) -> None:
        """Go on in another folder where the run's own has symbolic links in the places that it would write to."""
        for link in self.folder.links()[:1]:
            if self.ending.move_out(OSError(f"{link.name} is a symbolic link, which is not followed for writing")):
                self.states.write_to(self.folder.states)

    def finish(self) -> None:
        """Write all files after the last report, whatever else went wrong."""
        self.is_ending = True
        with self.interrupts.held():
            self.take_evaluations(wait=True)
            self.evaluations.close()
            rows = self.monitor.finish()
            self.say_unsaid()
            try:
                self.rows, events = self.plan.replayable(self.rows)
            except Exception as error:
                detail = f"the schedule is written as it was recorded, unchecked: {described(error)}"
                events = [Event("schedule_not_checked", -1, -1, detail)]
            for event in events:
                self.take_event(event)
            self.note_overlap()
            self.ending.write("metrics.parquet", lambda: self.folder.write_metrics(self.monitor.frame()))
            self.ending.write(
                "schedule.parquet", lambda: self.folder.write_schedule(self.rows, self.schedule_metadata())
            )
            if not (judged := self.screening.frame()).empty:
                self.ending.write(SCREENING, lambda: self.folder.write_screening(judged))
            if self.monitor.latest is not None:
                self.ending.write("the model's file", self.write_model)
            self.call("on_evaluation", copy.deepcopy(rows))

    def note_overlap(self) -> None:
        """Say so where a live run's agents were hardly there at the same time: it says little of their algorithm."""
        if not self.plan.is_live or (share := overlap(self.rows, self.plan.servers)) >= _LEAST_OVERLAP:
            return
        detail = (
            f"agents hardly ran at the same time: {100 * share:.0f} % of an agent's time, so they read little of each "
            "other; take more steps, larger batches or a larger model, or a planned run"
        )
        self.take_event(Event("noticed", -1, -1, detail))

    def conclude(self, error: Exception | None, outside: BaseException | None = None) -> Result:
        """Write the summary, call the callbacks' ``on_end``, and return the run's result.

        It ended early with ``error`` where one is given, or because of what came from ``outside``.
        """
        status = "failed"
        if isinstance(outside, KeyboardInterrupt):
            error, status = RunError("interrupted"), "interrupted"
        elif outside is not None:
            error = RunError(f"ended from outside: {described(outside)}")
        if error is not None:
            self.folder.add_event({"kind": f"run_{status}", "detail": str(error)})
        frame = self.monitor.frame()
        summary = self.summary(frame)
        publishing: RunError | None = None

        def problem() -> Exception | None:
            return error or self.shortfall() or publishing or self.ending.error

        def write() -> None:
            failed = problem()
            trace = {"traceback": failed.trace} if isinstance(failed, StepError) and failed.trace else {}
            ended = {"status": status if failed else "finished", "error": str(failed) if failed else None}
            self.folder.write_result({**summary, **ended, **trace})

        with self.interrupts.held():
            if self.folder.has_unwritten_events:
                self.ending.write("events.jsonl", self.folder.write_events)
            self.ending.write("result.json", write)
            if problem() is None:
                self.states.drop()
            self.has_state = self.states.has_any()
        has_model, path = self.folder.has_model, str(self.folder.path)
        if self.folder.remote is not None:
            try:
                path = self.folder.publish()
                self.checkpoints.published(path)
            except (OSError, KeyboardInterrupt) as failed:
                storage = self.folder.remote.storage_path
                reason = str(failed) or "interrupted"
                publishing = RunError(
                    f"storage_path = {storage!r}: cannot be written ({reason}); the run's files are in {path}"
                )
                self.ending.write("result.json", write)
        result = Result(
            metrics=flat_metrics(summary["final"]),
            metrics_dataframe=frame,
            checkpoint=Checkpoint(path) if has_model else None,
            path=path,
            error=problem(),
            best_checkpoints=self.checkpoints.there(),
            schedule_hash=summary["schedule_hash"],
            config=self.plan.config,
            screening=self.screening.frame(),
        )
        with self.interrupts.held():
            self.call("on_end", result)
        return result

    def summary(self, frame: pd.DataFrame) -> dict[str, Any]:
        """Return what the run's result has, but for how it ended."""
        final, screening = final_metrics(frame), self.screening.summary()
        if "staleness_mean" in final:
            final["staleness_mean"] = mean_staleness(self.rows, self.plan.servers)
        return {
            "schedule_hash": trace_hash(self.rows),
            "step_size": self.plan.acting.model_dump(mode="json", include={"step_size"})["step_size"],
            "num_parameters": self.model.num_parameters,
            "agent_steps": sum(map(self.plan.steps_in, self.rows)),
            "wall_seconds": round(time.perf_counter() - self.started_at, 3),
            "agent_steps_per_second": None if self.pace.rate is None else round(self.pace.rate, 1),
            "initial": self.initial,
            "final": final,
            **({} if screening is None else {"screening": {**screening, "lines": told(screening)}}),
            **self.gradients(),
            "shard_sizes": [len(spec.shard) for spec in self.plan.specs[: self.plan.config.num_agents]],
        }

    def gradients(self) -> dict[str, Any]:
        """Return how many gradients were taken, where a server ignores some."""
        rule = self.plan.config.algorithm
        if not isinstance(rule, ServerRule) or (rule.gathering.expires is None and rule.gathering.epoch is None):
            return {}
        found = taken_gradients(self.rows, self.plan.servers[0])
        return {"gradients": {**found, "lines": [told_of_gradients(found)]}}


def _wish_behind(error: BaseException) -> BaseException | None:
    """Return the exception behind another one that is not an error, such as ``KeyboardInterrupt``, if any."""
    while (behind := error.__cause__ or error.__context__) is not None:
        if not isinstance(behind, Exception | GeneratorExit):
            return behind
        error = behind
    return None
