"""The contents of a run folder, read for the report; files that a failed run did not write count as empty.

The folder may come from anybody: its code is not run, and what is returned was checked for what the report relies on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as compute
from numpy.typing import NDArray

from ray_pcasgd.base.foreign_files import is_number
from ray_pcasgd.report.reading import Numbers as Numbers
from ray_pcasgd.report.reading import read_config, read_events, read_metrics, read_result, read_schedule


@dataclass(frozen=True)
class RunData:
    """One run, as its folder has it."""

    path: Path
    config: Mapping[str, Any]
    """The complete settings tree."""
    metrics: pd.DataFrame
    """One row per agent and evaluation, and one for the averaged model, whose ``agent`` is missing."""
    schedule: pa.Table
    """One row per agent and step."""
    events: tuple[Mapping[str, Any], ...]
    """The newest ones, oldest first."""
    num_events: int
    """How many there are of all."""
    result: Mapping[str, Any]
    """The run's summary; empty where it was interrupted before it wrote one."""

    @property
    def seed(self) -> Any:
        """The seed; ``None`` where the settings have no seed."""
        return self.config.get("seed")

    @property
    def error(self) -> str | None:
        """What ended the run early, in one line; ``None`` if it is complete."""
        if not self.result:
            return "The run has no result.json: it is still going, or it was interrupted."
        error = self.result.get("error")
        return None if error is None else str(error)

    @property
    def schedule_hash(self) -> str | None:
        """The hash of who read which version; equal for runs under one schedule."""
        value = self.result.get("schedule_hash")
        return None if value is None else str(value)

    @property
    def screening(self) -> list[str]:
        """Who attacked, and what was screened out, in a line each; empty where nobody did, and nothing was."""
        lines: list[str] = self.result.get("screening", [])
        return lines

    @property
    def gradients(self) -> list[str]:
        """How many gradients a server has taken, in a line; empty where it takes all."""
        lines: list[str] = self.result.get("gradients", [])
        return lines

    def initial(self, column: str) -> float | None:
        """Return the test figures of the common start, step 0; ``None`` where they are not known."""
        initial = self.result.get("initial")
        value: Any = initial.get(column) if isinstance(initial, Mapping) else None
        return float(value) if is_number(value) else None

    @cached_property
    def averaged(self) -> pd.DataFrame:
        """The averaged model's rows, by step."""
        return self.metrics[self.metrics["agent"].isna()].sort_values("step")

    @cached_property
    def agents(self) -> dict[int, pd.DataFrame]:
        """Each agent's rows, by step; of many agents, ``of_agents`` is much faster."""
        rows = self._agent_rows
        return {int(agent): own for agent, own in rows.groupby(rows["agent"].astype(int))}

    @cached_property
    def _agent_rows(self) -> pd.DataFrame:
        return self.metrics[self.metrics["agent"].notna()].sort_values(["agent", "step"])

    @cached_property
    def _first_rows(self) -> NDArray[np.intp]:
        """Where each agent's rows begin in those of all."""
        agents = self._agent_rows["agent"].to_numpy(np.float64)
        return np.flatnonzero(np.diff(agents, prepend=-1.0))

    @cached_property
    def agent_numbers(self) -> list[int]:
        """The numbers of the agents that have rows, rising."""
        return [int(number) for number in self._agent_rows["agent"].iloc[self._first_rows]]

    def of_agents(self, *columns: str) -> list[Numbers]:
        """Return these columns of each agent's rows, by step: one array of shape (C, rows) for each agent number."""
        if not self.agent_numbers:
            return []
        values = np.array([self._agent_rows[column] for column in columns], dtype=np.float64)
        return np.split(values, self._first_rows[1:], axis=1)

    @property
    def num_workers(self) -> int | None:
        """The workers of a run with servers, which are the agents after them; ``None`` between peers."""
        algorithm = self.config.get("algorithm")
        gathers = isinstance(algorithm, Mapping) and "gathering" in algorithm
        return int(self.config["num_agents"]) if gathers else None

    @cached_property
    def staleness(self) -> Numbers:
        """The staleness of every read between peers, of every gradient that a server took, in versions."""
        readers = self.schedule
        if self.num_workers is not None:
            readers = readers.filter(compute.greater_equal(readers["agent"], self.num_workers))
        return _staleness_of(readers)

    @property
    def has_rounds(self) -> bool:
        """Whether peers take several local steps from one version to the next, so that staleness counts rounds."""
        if self.num_workers is not None:
            return False
        given = self.config.get("local_steps", 1)
        return any(one != 1 for one in given) if isinstance(given, list) else given != 1

    @property
    def combines_first(self) -> bool:
        """Whether agents read before they compute, and wait between their rows."""
        return self.config.get("overlap") is False

    def mean_staleness(self, agent: int | None = None) -> float | None:
        """Return the mean staleness over all reads of the run, or of one agent; ``None`` where no version was read."""
        if agent is not None:
            return self._mean_staleness.get(agent)
        values = self.staleness
        return float(values.mean()) if values.size else None

    @cached_property
    def _mean_staleness(self) -> dict[int, float]:
        """By agent, of those that have read anything."""
        counts = compute.list_value_length(self.schedule["staleness"]).to_numpy()
        readers = np.repeat(self.schedule["agent"].to_numpy(), counts)
        sums, reads = np.bincount(readers, _staleness_of(self.schedule)), np.bincount(readers)
        return {int(agent): float(sums[agent] / reads[agent]) for agent in np.flatnonzero(reads)}

    def over_run(self, agent: int | None = None) -> dict[str, float | None]:
        """Return means over the whole run, of all agents or of one."""
        return {"mean_staleness": self.mean_staleness(agent), "predicting_share": self.predicting_share(agent)}

    def final(self, *keys: str) -> float | None:
        """Return a number of the final evaluation by its place there; ``None`` where it is missing or not a number."""
        value: Any = self.result.get("final")
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return float(value) if is_number(value) else None

    def predicting_share(self, agent: int | None = None) -> float | None:
        """Return the share of predicting choices over the whole run, of all agents or of one; None without choices."""
        rows = self._agent_rows if agent is None else self.agents.get(agent, self.metrics[:0])
        firsts = self._first_rows if agent is None else [0][: len(rows)]
        share, step = (rows[column].to_numpy(np.float64) for column in ("predicting_share", "step"))
        # Each row is the mean since the row before it, so it counts as many times as there are steps between.
        weight = np.diff(step, prepend=0.0)
        weight[firsts] = step[firsts]
        known = np.isfinite(share) & (weight > 0)
        return float(np.average(share[known], weights=weight[known])) if known.any() else None

    def waiting_shares(self) -> dict[int, float]:
        """Return each agent's share of the time, in [0, 1], that it waited for others."""
        last = ((waited[-1], seconds[-1]) for waited, seconds in self.of_agents("waited_seconds", "seconds"))
        of_each = zip(self.agent_numbers, last, strict=True)
        shares = {agent: float(waited / seconds) for agent, (waited, seconds) in of_each if seconds}
        # Servers do nothing but wait.
        return {
            agent: share
            for agent, share in shares.items()
            if np.isfinite(share) and (self.num_workers is None or agent < self.num_workers)
        }


def _staleness_of(rows: pa.Table) -> Numbers:
    values = rows["staleness"].combine_chunks().flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False), dtype=np.float64)


def load_run(path: Path) -> RunData:
    """Return what a run folder holds.

    Raises:
        ValueError: the folder is no run folder, or one of its files cannot be read.

    """
    path = Path(path)
    named = f"run = {str(path)!r}"
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{named}: is no run folder; allowed are folders with a config.yaml")
    try:
        config, metrics, schedule = read_config(path), read_metrics(path), read_schedule(path)
        result = read_result(path)
        if config.get("step_size") is None and "step_size" in result:
            # The optimizer's usual one, which nobody has set.
            config["step_size"] = result["step_size"]
        return RunData(path, config, metrics, schedule, *read_events(path), result)
    except ValueError as error:
        raise ValueError(f"{named}: cannot be read ({error})") from error
