"""Evaluations of the averaged model: in the driver where they take no time, else in a process of their own."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from ray_pcasgd.engines.base import Elsewhere, GoneError
from ray_pcasgd.engines.failures import measured
from ray_pcasgd.records import Event, Snapshot
from ray_pcasgd.runs.consensus import AveragedModel, evaluation_device
from ray_pcasgd.runs.plan.plan import Plan
from ray_pcasgd.tasks.drawing import seeded
from ray_pcasgd.tasks.objective import Evaluation
from ray_pcasgd.tasks.samples import MapSamples

QUICK_SECONDS = 0.1
"""Evaluations that take less are done at once: the driver polls no more often, and a process takes seconds to start."""

MOST_OPEN = 8
"""Evaluations that may be under way; each holds a model's weights."""

Figures = dict[str, float]
Examine = Callable[[Snapshot, int], tuple[Figures, Event | None]]
"""Returns the test figures of a snapshot of a step, and an event where that fails."""


class AveragedEvaluations:
    """Evaluates snapshots of the averaged model, one after another.

    Where that takes longer than a moment and the run is on a cluster, another process does it, while the driver answers
    commands and finds out what was lost.
    """

    def __init__(self, plan: Plan, folder: str, report: Callable[[Event], None]) -> None:
        self._plan = plan
        self._folder = folder
        self.report = report
        """Takes events."""
        config = plan.config
        self._made_of = (config.seed, evaluation_device(config.engine), config.mixed_buffers, config.precision)
        self.model = AveragedModel(config.task, plan.data, *self._made_of)
        self._is_slow = False
        self._elsewhere: Elsewhere | None = None
        self._open: list[OpenEvaluation] = []

    def first(self) -> Evaluation:
        """Return the figures of the model as it was made, in the driver, whatever the user's own code raises."""
        began = time.perf_counter()
        evaluation = self.model.examine()
        self._is_slow = time.perf_counter() - began > QUICK_SECONDS
        return evaluation

    def begin(self, snapshot: Snapshot, step: int) -> "OpenEvaluation":
        """Begin to evaluate a snapshot of a step."""
        if self._is_slow and self._elsewhere is None:
            self._elsewhere = self._plan.elsewhere(self._folder, self._make())
        self._open = [one for one in self._open if one.figures(wait=False) is None]
        if len(self._open) >= MOST_OPEN:
            self._open[0].figures(wait=True)
        begun = OpenEvaluation(self, self._elsewhere, snapshot, step)
        self._open.append(begun)
        return begun

    def here(self, snapshot: Snapshot, step: int) -> tuple[Figures, Event | None]:
        """Evaluate a snapshot in this process."""
        return _measured(self.model, self._plan.config.task, snapshot, step)

    def lose(self, elsewhere: Elsewhere, reason: str, step: int) -> None:
        """Note that a process is lost, once for all of its evaluations; another one is made for the next."""
        if elsewhere is self._elsewhere:
            self._elsewhere = None
            detail = f"the process that evaluates the averaged model was lost ({reason}); the driver does its work"
            self.report(Event("evaluator_lost", -1, step, detail))

    def close(self) -> None:
        """End the process, if there is one."""
        if self._elsewhere is not None:
            self._elsewhere.close()

    def _make(self) -> Callable[[], Examine]:
        data = self._plan.data
        # Of the training samples, those that give a model its shapes.
        train = data.train.subset(range(min(2, data.train.num_units)))
        if isinstance(train, MapSamples):
            with seeded(0):
                train = train.kept()  # or else the whole data set went with it
        few = data._replace(train=train, probes=None)
        return partial(_examining, self._plan.config.task.without_data, few, *self._made_of)


class OpenEvaluation:
    """An evaluation whose figures may still be to come."""

    def __init__(self, owner: AveragedEvaluations, elsewhere: Elsewhere | None, snapshot: Snapshot, step: int) -> None:
        self._owner = owner
        self._elsewhere = elsewhere
        self._of = (snapshot, step)
        self._figures: Figures | None = None
        if elsewhere is None:
            self._take(*owner.here(snapshot, step))
        else:
            self._call = elsewhere.call(snapshot, step)

    def figures(self, wait: bool) -> Figures | None:
        """Return the figures; ``None`` as long as they are not there, unless it is to wait for them."""
        if self._figures is None:
            assert self._elsewhere is not None
            try:
                answer = self._elsewhere.answer(self._call, wait)
            except GoneError as error:
                self._owner.lose(self._elsewhere, str(error), self._of[1])
                answer = (self._owner.here(*self._of),)
            if answer is not None:
                self._take(*answer[0])
        return self._figures

    def _take(self, figures: Figures, failed: Event | None) -> None:
        self._figures = figures
        if failed is not None:
            self._owner.report(failed)


def _examining(task: Any, data: Any, *made_of: Any) -> Examine:
    return partial(_measured, AveragedModel(task, data, *made_of), task)


def _measured(model: AveragedModel, task: Any, snapshot: Snapshot, step: int) -> tuple[Figures, Event | None]:
    return measured(partial(model.evaluate, snapshot), task, -1, step, "the averaged model")
