"""The search for step sizes: a grid for every case, and beyond it where the best lies at an edge."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from experiments.running import Job, measured
from experiments.studies import search_table

Case = tuple[Any, ...]
"""What has a step size of its own, by its labels."""
Asked = list[tuple[Case, float]]
FACTOR = 2
"""How far beyond an edge the next step size lies."""


class Choice(NamedTuple):
    """By what step sizes are chosen: the least mean over the tuning seeds, in which a run that diverged is infinite."""

    columns: tuple[str, ...]
    """The labels that tell cases apart."""
    score: str

    def scores(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Return the mean score by case and step size."""
        filled = runs.assign(**{self.score: runs[self.score].fillna(float("inf"))})
        return filled.groupby([*self.columns, "step_size"], sort=False)[self.score].mean().reset_index()

    def chosen(self, runs: pd.DataFrame) -> dict[Case, float]:
        """Return the best step size of each case."""
        means = self.scores(runs)
        best = means.loc[means.groupby(list(self.columns), sort=False)[self.score].idxmin()]
        return {tuple(row[name] for name in self.columns): row["step_size"] for row in best.to_dict("records")}

    def beyond(self, runs: pd.DataFrame) -> Asked:
        """Return the cases whose best step size is at an edge of what was tried, each with the next one there."""
        tried = runs.groupby(list(self.columns), sort=False)["step_size"].agg(["min", "max"])
        asked = []
        for case, best in self.chosen(runs).items():
            if best == tried.loc[case, "min"]:
                asked.append((case, best / FACTOR))
            elif best == tried.loc[case, "max"]:
                asked.append((case, best * FACTOR))
        return asked

    def table(self, runs: pd.DataFrame) -> str:
        """Return the mean scores as a Markdown table, below a line that says whose step size is at an edge."""
        edges = "; ".join(", ".join(map(str, case)) for case, _ in self.beyond(runs))
        said = f"At an edge of what was tried: {edges}." if edges else "No choice is at an edge of what was tried."
        return f"{said}\n\n{search_table(self.scores(runs), self.columns, self.score, '.3f')}"


def grid(cases: Sequence[Case], own: Mapping[str, Any]) -> Asked:
    """Return each case with each step size of the settings."""
    return list(itertools.product(cases, own["step_sizes"]))


def jobs_of(job: Callable[..., Job], asked: Asked, own: Mapping[str, Any]) -> Iterator[Job]:
    """Yield the runs of some step sizes, each with all tuning seeds, on a validation split."""
    for (case, step_size), seed in itertools.product(asked, own["tuning_seeds"]):
        yield job(*case, step_size, seed, True)


def search(
    job: Callable[..., Job],
    cases: Sequence[Case],
    choice: Choice,
    own: Mapping[str, Any],
    storage: Path,
    processes: int,
) -> pd.DataFrame:
    """Return the runs of the search.

    Where the best is the least or the largest step size that was tried, the next one is tried too, ``widenings`` times
    at most.
    """
    asked = grid(cases, own)
    runs = measured(jobs_of(job, asked, own), storage, processes)
    for _ in range(own["widenings"]):
        asked = choice.beyond(runs)
        if not asked:
            break
        runs = pd.concat([runs, measured(jobs_of(job, asked, own), storage, processes)], ignore_index=True)
    return runs
