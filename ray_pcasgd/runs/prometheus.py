"""A run's metrics through Ray, for Prometheus: what a run measures, about once a second."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pandas as pd
from ray.util import metrics

from ray_pcasgd.records import Event, EventKind, StepReport
from ray_pcasgd.runs.callbacks import Callback
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.result import Result

EXPORT_SECONDS = 1.0
"""Metrics are handed to Ray this often; Prometheus asks every ten seconds or so."""

_STEP_BOUNDARIES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
_ON_A_CLUSTER = ("waiting_for_resources", "cluster_joined")
"""Kinds of events of which one is the first after a run has joined its cluster."""
_CONSENSUS = "consensus_distance"
AVERAGED = "averaged"
"""Stands for the averaged model among the agents."""


class Exporter(Callback):
    """Hands a run's metrics to Ray, which exposes them as ``ray_pcasgd_...`` on every node's metrics port.

    All have the label ``run``, those of agents also ``agent``; staleness has ``neighbor``, whom the agent has read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._run = ""
        self._num_steps = 0
        self._metrics: _Metrics | None = None
        self._has_cluster = False
        self._early: list[str] = []
        """Kinds of the first events, which may come before there is a cluster."""
        self._exported_at = 0.0
        self._newest: dict[int, StepReport] = {}
        self._staleness: dict[tuple[int, int], int] = {}
        self._steps = Counter[int]()
        self._bytes = Counter[int]()
        self._in_flight: dict[int, int] = {}
        """The newest measurement of each agent: not every report has one."""
        self._waited: defaultdict[int, float] = defaultdict(float)
        self._durations: list[tuple[int, float]] = []
        self._ended: dict[int, float] = {}
        self._figures: dict[tuple[str, int | str], float] = {}
        """Of the newest evaluations, by their names and whose they are."""

    def on_start(self, plan: Plan, path: Path) -> None:
        """Take in the run's name."""
        self._run = path.name
        self._num_steps = plan.config.num_steps

    def on_step(self, report: StepReport) -> None:
        """Take in a step."""
        row = report.row
        self._newest[row.agent] = report
        self._staleness |= {(row.agent, read.neighbor): read.staleness for read in row.reads}
        self._steps[row.agent] += row.kind == "step"
        self._bytes[row.agent] += report.bytes_sent
        if report.bytes_in_flight is not None:
            self._in_flight[row.agent] = report.bytes_in_flight
        self._waited[row.agent] += row.waited_seconds
        # From one reading to the next: a row has no time for what comes after it.
        began = row.end if row.kind == "passive" else row.start  # which is that of the agent that asked
        self._durations.append((row.agent, max(0.0, row.end - self._ended.get(row.agent, began))))
        self._ended[row.agent] = row.end
        if self._clock() - self._exported_at >= EXPORT_SECONDS:
            self._export()

    def on_evaluation(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in evaluations, of agents and of the averaged model."""
        for row in rows:
            whose = AVERAGED if pd.isna(row["agent"]) else row["agent"]
            figures = {name: value for name, value in row.items() if name.startswith("test_") or name == _CONSENSUS}
            self._figures |= {(name, whose): value for name, value in figures.items() if value == value}
        self._export_figures()

    def on_event(self, event: Event) -> None:
        """Count an event; as soon as there is a cluster, all that can happen is counted from 0 on."""
        self._early.append(event.kind)
        if not self._has_cluster and event.kind in _ON_A_CLUSTER:
            self._has_cluster = True
            self._made().begin_events(self._run)
        if self._has_cluster:
            for kind in self._early:
                self._made().events.inc(1, {"run": self._run, "kind": kind})
            self._early.clear()

    def on_end(self, result: Result) -> None:
        """Hand over what is left, and that the run is over."""
        if self._newest:
            self._export()
        if self._has_cluster:
            self._export_run(running=0)

    def _export_run(self, running: int = 1) -> None:
        """Hand over what is known of the run as a whole, again and again: Ray forgets gauges that nobody sets."""
        made, labels = self._made(), {"run": self._run}
        made.running.set(running, labels)
        made.num_steps.set(self._num_steps, labels)
        self._export_figures()

    def _export_figures(self) -> None:
        made = self._made()
        for (name, whose), value in self._figures.items():
            gauge = made.consensus_distance if name == _CONSENSUS else made.tested(name)
            gauge.set(value, self._labels(whose))

    def _made(self) -> "_Metrics":
        if self._metrics is None:
            self._metrics = _Metrics()
        return self._metrics

    def _labels(self, agent: int | str) -> dict[str, str]:
        return {"run": self._run, "agent": str(agent)}

    def _export(self) -> None:
        self._export_run()
        made = self._made()
        for agent, report in self._newest.items():
            labels = self._labels(agent)
            if report.loss == report.loss:
                made.train_loss.set(report.loss, labels)
            made.progress.set(report.progress, labels)
            if self._steps[agent]:
                made.steps.inc(self._steps[agent], labels)
            if self._bytes[agent]:
                made.bytes_sent.inc(self._bytes[agent], labels)
            if self._waited[agent] > 0:
                made.waited_seconds.inc(self._waited[agent], labels)
            if report.messages_held is not None:
                made.mailbox_messages.set(report.messages_held, labels)
            for name, gauge in (("theta", made.theta), ("predicting", made.predicting_share)):
                if name in report.measures and report.measures[name] == report.measures[name]:
                    gauge.set(report.measures[name], labels)
        for agent, num_bytes in self._in_flight.items():
            made.in_flight_bytes.set(num_bytes, self._labels(agent))
        for agent, seconds in self._durations:
            made.step_seconds.observe(seconds, self._labels(agent))
        for (agent, neighbor), staleness in self._staleness.items():
            made.staleness.set(staleness, {**self._labels(agent), "neighbor": str(neighbor)})
        counted = (self._steps, self._bytes, self._waited, self._durations)
        for gathered in (self._newest, self._staleness, self._in_flight, *counted):
            gathered.clear()
        self._exported_at = self._clock()


class _Metrics:
    """Ray's metrics, one of each name in a process; Ray puts ``ray_`` before their names."""

    def __init__(self) -> None:
        own = ("run", "agent")
        self.steps = metrics.Counter("pcasgd_steps_total", "Steps that an agent has taken.", own)
        self.progress = metrics.Gauge("pcasgd_progress_steps", "Steps taken, of the run's num_steps.", own)
        self.train_loss = metrics.Gauge("pcasgd_train_loss", "Loss of an agent's newest mini-batch.", own)
        self.step_seconds = metrics.Histogram(
            "pcasgd_step_seconds", "Seconds of a step, waiting included.", _STEP_BOUNDARIES, own
        )
        self.waited_seconds = metrics.Counter("pcasgd_waited_seconds_total", "Seconds spent on waiting.", own)
        self.bytes_sent = metrics.Counter("pcasgd_sent_bytes_total", "Bytes sent to neighbors.", own)
        self.in_flight_bytes = metrics.Gauge(
            "pcasgd_in_flight_bytes", "Bytes that an agent has sent, and that neighbors have not taken in yet.", own
        )
        self.staleness = metrics.Gauge(
            "pcasgd_staleness_steps",
            "Staleness in versions of what an agent read last of another.",
            (*own, "neighbor"),
        )
        self.mailbox_messages = metrics.Gauge(
            "pcasgd_mailbox_messages", "Messages in an agent's mailbox, which later steps may read.", own
        )
        self.theta = metrics.Gauge("pcasgd_theta", "Share of the predicting step.", own)
        self.predicting_share = metrics.Gauge("pcasgd_predicting_share", "Share of predicting choices.", own)
        self.consensus_distance = metrics.Gauge(
            "pcasgd_consensus_distance", "Distance of an agent's weights to the mean of all.", own
        )
        self.events = metrics.Counter("pcasgd_events_total", "Events of a run, by kind.", ("run", "kind"))
        self.num_steps = metrics.Gauge("pcasgd_num_steps", "Steps that each agent is to take.", ("run",))
        self.running = metrics.Gauge("pcasgd_running", "1 while the driver is there, 0 after the end.", ("run",))
        self._tested: dict[str, metrics.Gauge] = {}

    def begin_events(self, run: str) -> None:
        """Show a run's events of each kind as 0, once: of a counter that begins at 1, nobody sees the increase."""
        for kind in get_args(EventKind):
            # Ray's own ``inc`` takes no 0.
            self.events._record(0, {"run": run, "kind": kind})

    def tested(self, name: str) -> metrics.Gauge:
        """Return the metric of a test figure, such as ``test_accuracy``."""
        if name not in self._tested:
            self._tested[name] = metrics.Gauge(f"pcasgd_{name}", f"{name} at the newest evaluation.", ("run", "agent"))
        return self._tested[name]
