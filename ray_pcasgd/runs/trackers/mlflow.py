"""MLflow: a run in an experiment, in a store of this machine or on a server."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_pcasgd.base.plain_json import dumps
from ray_pcasgd.records import Event
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.runs.trackers.base import Tracker, require_text, required

_LONGEST = 500
"""Characters of a setting, which every server takes."""
_MOST_SETTINGS, _MOST_FIGURES = 100, 1000
"""In one request."""
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflow(Tracker):
    """Hands a run's settings (as parameters), figures and events to MLflow; extra ``mlflow``.

    Events are the artifact ``events.jsonl``.

    Args:
        uri: the store: a folder, a database or a server. Not given: what MLflow takes by itself, from its own variable
            ``MLFLOW_TRACKING_URI``, or in the working directory.
        experiment: its experiment, which is made if it is not there.

    Raises:
        SettingsError: mlflow is not installed, or an argument is none of these.

    """

    def __init__(self, uri: str | Path | None = None, experiment: str = "ray_pcasgd") -> None:
        super().__init__()
        require_text(experiment, "MLflow.experiment")
        if uri is not None:
            require_text(uri, "MLflow.uri", (str, Path))
        self._library = required("mlflow", "MLflow", "mlflow")
        self._uri = None if uri is None else str(uri)
        self._experiment = experiment
        self._client: Any = None
        self._run = ""
        self._events: list[str] = []
        self._num_written = 0

    def open(self, plan: Plan, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin a run there."""
        # A client, and not the library's own run, of which there is one in a process.
        self._client = self._library.MlflowClient(tracking_uri=self._uri)
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
        self._run = self._client.create_run(experiment, run_name=path.name, tags={"folder": str(path)}).info.run_id
        self._events, self._num_written = [], 0
        of = self._library.entities.Param
        parameters = [of(_name(name), str(value)[:_LONGEST]) for name, value in settings.items()]
        for some in _in_parts(parameters, _MOST_SETTINGS):
            self._client.log_batch(self._run, params=some)

    def figures(self, values: Mapping[str, float], step: int) -> None:
        """Log the figures of one evaluation, and the events before it."""
        now, of = int(time.time() * 1000), self._library.entities.Metric
        metrics = [of(_name(name), value, now, step) for name, value in values.items()]
        for some in _in_parts(metrics, _MOST_FIGURES):
            self._client.log_batch(self._run, metrics=some)
        self._write_events()

    def event(self, event: Event) -> None:
        """Keep an event until the next evaluation."""
        self._events.append(dumps(event._asdict()) + "\n")

    def close(self, status: str, error: str) -> None:
        """End the run."""
        self._write_events()
        if error:
            self._client.set_tag(self._run, "error", error[:_LONGEST])
        self._client.set_terminated(self._run, _STATUS[status])

    def _write_events(self) -> None:
        if len(self._events) > self._num_written:
            self._client.log_text(self._run, "".join(self._events), "events.jsonl")
            self._num_written = len(self._events)


def _name(name: str) -> str:
    """Return a name of which MLflow takes every character."""
    return re.sub(r"[^\w. /-]", "_", name)


def _in_parts(items: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    return (items[first : first + most] for first in range(0, len(items), most))
