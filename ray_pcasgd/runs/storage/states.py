"""The states of a run in its folder: which of them it can go on from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ray_pcasgd.base.state import State, difference
from ray_pcasgd.config import CheckpointSettings
from ray_pcasgd.engines.base import StateError
from ray_pcasgd.engines.failures import restoring
from ray_pcasgd.records import Event
from ray_pcasgd.runs.storage.state_files import StateFiles
from ray_pcasgd.schedule.row_block import Sizes
from ray_pcasgd.schedule.row_log import RowLog, restored


class RunStates(StateFiles):
    """Keeps a run's states, and finds the newest one that is its own and whole.

    Args:
        folder: where they are.
        settings: how often, and how many.
        example: the run's part of a state, before the first step.
        num_agents: how many agents its rows may name.
        say: is told which states are passed over, and why.

    """

    def __init__(
        self,
        folder: Path,
        settings: CheckpointSettings,
        example: State,
        num_agents: int,
        say: Callable[[Event], None],
    ) -> None:
        super().__init__(folder, settings)
        self._example = example
        self._num_agents = num_agents
        self._say = say
        self._passed_over: set[Path] = set()
        self._taken: Path | None = None

    def take_newest(self) -> State | None:
        """Return the newest state that has not been passed over, ``None`` where there is no such state."""
        for path, state, problem in self.kept():
            if path in self._passed_over:
                continue
            if state is not None:
                try:
                    self.check(state)
                except StateError as error:
                    problem = str(error)
            if not problem:
                self._taken = path
                return state
            self._pass_over(path, problem)
        self._taken = None
        return None

    def check(self, state: State) -> None:
        """Raise ``StateError`` where the run's own part of a state does not fit the run."""
        with restoring():
            is_own = isinstance(state, dict) and state.keys() == {"engine", "run"}
            if not is_own or not isinstance(state["engine"], dict):
                raise StateError("it is not the state of a run")
            own = state["run"]
            if (found := difference(self._example, own)) is not None:
                raise StateError(found)
            restored_rows(own["rows"], self._num_agents)
            if not all(isinstance(event, Event) for event in own["lost"]):
                raise StateError("state.lost holds something other than events")

    def reject(self, error: StateError) -> bool:
        """Pass the state over that was taken last, which does not fit; return whether it is one of these."""
        if self._taken is None:
            return False
        self._pass_over(self._taken, str(error))
        return True

    def _pass_over(self, path: Path, problem: str) -> None:
        self._passed_over.add(path)
        detail = f"state {path} cannot be used ({problem}); an older one is taken, if there is one"
        self._say(Event("state_skipped", -1, 0, detail))


def restored_rows(blocks: Any, num_agents: int) -> RowLog:
    """Return the rows of a run's state.

    Raises:
        ValueError: they are no rows of ``num_agents`` agents.

    """
    encoded = []
    for block in blocks:
        if not isinstance(block, list) or len(block) != 4 or not isinstance(block[3], torch.Tensor):
            raise ValueError(f"{block!r:.80} is no block of rows")
        *sizes, data = block
        encoded.append((Sizes(*sizes), data.numpy()))
    return restored(encoded, num_agents)
