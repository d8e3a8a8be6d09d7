"""A sweep as it goes: a line every few seconds, and one for each trial that fails."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ray import tune

from ray_pcasgd.sweep_packs import Pack
from ray_pcasgd.wording import duration, spoken, written

_LINE_SECONDS = 5.0


class SweepProgress(tune.Callback):
    """Says how many trials are done, and which is the best so far."""

    def __init__(
        self,
        metric: str,
        mode: str,
        total: int,
        packs: Sequence[Pack] | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._total = total
        self._packs = packs
        self._clock = clock
        self._started = self._next = clock()
        self._done = 0
        self._failed = 0
        self._best: tuple[float, str] | None = None

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Take in what a trial, or a pack of them, came to."""
        for value, label in self._values(trial, result):
            if self._best is None or self._sign * value > self._sign * self._best[0]:
                self._best = (value, label)
        if self._clock() >= self._next:
            self._say(self.line())
            self._next = self._clock() + _LINE_SECONDS

    def on_trial_complete(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Count a trial that is done."""
        self._done += self._number_of(trial)
        for name, error in (trial.last_result or {}).get("errors", {}).items():
            self._failed += 1
            self._say(f"{name} failed: {error}")

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed; the table at the end has the reason."""
        self._done += self._number_of(trial)
        self._failed += self._number_of(trial)
        self._say(f"{_label(trial.config)} failed; see {trial.error_file}")

    def line(self) -> str:
        """Return how far the sweep is."""
        parts = [f"{self._done} of {self._total} trials done"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        if self._best is not None:
            value, label = self._best
            parts.append(f"best {spoken(self._metric)} {written(self._metric, value)} at {label}")
        return ", ".join([*parts, duration(self._clock() - self._started)])

    def _values(self, trial: Any, result: Mapping[str, Any]) -> Iterator[tuple[float, str]]:
        if self._packs is None:
            if self._metric in result:
                yield result[self._metric], _label(trial.config)
            return
        for job in self._packs[trial.config["pack"]]:
            if self._metric in (measured := result.get("points", {}).get(job.name, {})):
                yield measured[self._metric], _label({**job.point, "seed": job.seed})

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
