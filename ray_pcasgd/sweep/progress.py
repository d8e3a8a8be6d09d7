"""A sweep as it goes: a line every few seconds, and one for each trial that fails."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.search.repeater import TRIAL_INDEX

from ray_pcasgd.base.text import duration, format_value, printable, spoken
from ray_pcasgd.sweep.packing import Pack
from ray_pcasgd.sweep.results import error_line, summarized
from ray_pcasgd.sweep.settings import Point

_LINE_SECONDS = 5.0
_SEED = "seed"
_WANTED = "steps wanted"
_SAID = ("Trial task failed for trial", "Trials did not complete", "The value nan is not acceptable")


class SweepProgress(tune.Callback):
    """Says how many trials are done, and which point the table would name first if the sweep ended now.

    ``first_seed`` is that of the runs' common settings.
    """

    def __init__(
        self,
        metric: str,
        mode: str,
        total: int,
        packs: Sequence[Pack] | None,
        clock: Callable[[], float] = time.monotonic,
        first_seed: int = 0,
    ) -> None:
        self._metric = metric
        self._mode = mode
        self._total = total
        self._packs = packs
        self._clock = clock
        self._first_seed = first_seed
        self._started = self._next = clock()
        self._done = 0
        self._failed = 0
        self._newest: dict[str, dict[str, Any]] = {}
        """The newest figures of each run, by its name."""

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Take in what a trial, or a pack of them, came to."""
        for name, point, measured in self._measured(trial, result):
            figures = {self._metric: measured[self._metric], "step": measured.get("step")}
            self._newest[name] = {**point, **figures, _WANTED: measured.get("num_steps")}
        if self._clock() >= self._next:
            self._say(self.line())
            self._next = self._clock() + _LINE_SECONDS

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Count a trial that is done."""
        self._done += self._number_of(trial)
        for name, error in (trial.last_result or {}).get("errors", {}).items():
            self._failed += 1
            self._newest.pop(name, None)
            self._say(f"{name} failed: {error}")

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Say in one line that a trial failed, and why; Tune's own file has the whole traceback."""
        self._done += self._number_of(trial)
        self._failed += self._number_of(trial)
        for name in self._names(trial):
            self._newest.pop(name, None)
        self._say(f"{_label(trial.config)} failed: {_reason(trial)} (see {trial.error_file})")

    def on_experiment_end(self, trials: Sequence[Any], **info: Any) -> None:
        """Show how the sweep ended."""
        self._say(self.line())

    def line(self) -> str:
        """Return how far the sweep is."""
        parts = [f"{self._done} of {self._total} trials done"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if (best := self._best()) is not None:
            parts.append(best)
        return ", ".join([*parts, duration(self._clock() - self._started)])

    def _best(self) -> str | None:
        """Return what the table would name first, in words."""
        if not self._newest:
            return None
        trials = pd.DataFrame(self._newest.values())
        keys = [str(key) for key in trials if key not in (_SEED, self._metric, "step", _WANTED)]
        # Lists are values of settings, too, and no keys of a table.
        shown = trials.assign(**{key: trials[key].map(repr) for key in keys}, error=None)
        shown["finished"] = [_has_finished(trial) for trial in self._newest.values()]
        best = summarized(shown, keys, self._metric, self._mode).iloc[0]
        if best["mean"] != best["mean"]:
            return None
        own = trials[(shown[keys] == best[keys]).all(axis=1)]
        point = {key: own[key].iloc[0] for key in keys}
        seeds = own[_SEED].nunique()
        value = format_value(self._metric, best["mean"], best["std"] if seeds > 1 else None)
        text = f"best {spoken(self._metric)} {value} at {_label(point)}"
        text += f", {seeds} seeds" if seeds > 1 else f" seed={own[_SEED].iloc[0]}"
        if not best["finished"] and best["step"] == best["step"]:
            text += f", at step {best['step']:.0f} of {own[_WANTED].iloc[0]:.0f}"
        return text

    def _measured(self, trial: Any, result: Mapping[str, Any]) -> Iterator[tuple[str, Point, Mapping[str, Any]]]:
        """Return the name of each run of a trial, its point with the seed, and what it has measured."""
        if self._packs is None:
            point = {key: value for key, value in trial.config.items() if not key.startswith("__")}
            seed = point.pop("seed", self._first_seed + int(trial.config.get(TRIAL_INDEX, 0)))
            runs = [(self._names(trial)[0], {**point, _SEED: seed}, result)]
        else:
            points = result.get("points", {})
            pack = self._packs[trial.config["pack"]]
            runs = [(job.name, {**job.point, _SEED: job.seed}, points.get(job.name, {})) for job in pack]
        return (run for run in runs if self._metric in run[2])

    def _names(self, trial: Any) -> list[str]:
        if self._packs is None:
            return [str(getattr(trial, "trial_id", _label(trial.config)))]
        return [job.name for job in self._packs[trial.config["pack"]]]

    def _number_of(self, trial: Any) -> int:
        return 1 if self._packs is None else len(self._packs[trial.config["pack"]])

    def _say(self, line: str) -> None:
        print(line, flush=True)


def _label(point: Mapping[str, Any]) -> str:
    # Names with underscores before them are Tune's own.
    shown = {key: value for key, value in point.items() if not key.startswith("__")}
    return " ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in shown.items()
    )


def _reason(trial: Any) -> str:
    try:
        return printable(error_line(Path(trial.error_file).read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return "the table at the end says why"


def is_news(record: logging.LogRecord) -> bool:
    """Return whether what Tune logs is not said here already: a trial that failed is one line, and not a traceback."""
    return not record.getMessage().startswith(_SAID)


def _has_finished(trial: Mapping[str, Any]) -> bool:
    return trial[_WANTED] is None or trial["step"] is None or trial["step"] >= trial[_WANTED]
