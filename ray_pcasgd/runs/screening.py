"""Who attacked in a run, and how often each agent's messages were screened out by those who read them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ray_pcasgd.agents.attacks import Faults
from ray_pcasgd.base.state import State
from ray_pcasgd.records import StepReport, of_neighbor

SCREENED = "screened"
"""The rules' measure of a neighbor: the share in [0, 1] by which it was left out of a mean."""
ALONE = "alone"
"""Their measure of a step: 1 where too few were left to be screened, so that an agent took its own step alone, or a
server stayed where it was."""
UNFILTERED = "unfiltered"
"""Their measure of a server's update: 1 where it took a gradient without Kardam's frequency filter, since too few
workers were left for that."""


class Screening:
    """Counts, pair by pair, what screens have left out."""

    def __init__(self, faults: Faults | None) -> None:
        self._faults = faults
        self._sums: dict[tuple[int, int, bool], tuple[int, float]] = {}
        """By who read, whom, and whether that was late: how many versions, and the sum of the shares left out."""
        self._steps = 0
        self._alone = 0
        self._unfiltered = 0

    def take(self, report: StepReport) -> None:
        """Take in one step's report; where too few were left to be screened, nobody was judged."""
        row, measures = report.row, report.measures
        if ALONE in measures:
            self._steps += 1
            self._alone += measures[ALONE] > 0
            if measures[ALONE] > 0:
                return
        self._unfiltered += measures.get(UNFILTERED, 0) > 0
        for read in row.reads:
            share = measures.get(of_neighbor(SCREENED, read.neighbor))
            if share is not None:
                key = row.agent, read.neighbor, read.staleness > 0
                number, total = self._sums.get(key, (0, 0.0))
                self._sums[key] = number + 1, total + share

    def frame(self) -> pd.DataFrame:
        """Return one row for each agent, neighbor and lateness: versions read, and the mean share that was left out."""
        attackers = self._faults.agents if self._faults else ()
        rows = [
            {
                "agent": agent,
                "neighbor": neighbor,
                "attacker": neighbor in attackers,
                "late": late,
                "reads": number,
                "screened": total / number,
            }
            for (agent, neighbor, late), (number, total) in sorted(self._sums.items())
        ]
        return pd.DataFrame(rows, columns=["agent", "neighbor", "attacker", "late", "reads", "screened"])

    def summary(self) -> dict[str, Any] | None:
        """Return who attacked how, and the shares left out by kind of neighbor, as honest agents have judged them.

        ``None`` where nobody attacked, and nothing was screened.
        """
        if self._faults is None and not (self._sums or self._steps):
            return None
        found: dict[str, Any] = {}
        if self._faults is not None:
            found |= {"attack": self._faults.attack.name, "attackers": list(self._faults.agents)}
        if self._steps:
            found |= {"steps": self._steps, "steps_alone": self._alone}
        if self._unfiltered:
            found["updates_unfiltered"] = self._unfiltered
        return found if not self._sums else found | {"screened_out": self._shares(found.get("attackers", []))}

    def _shares(self, attackers: list[int]) -> dict[str, Any]:
        frame, shares = self.frame(), {}
        judged = frame[~frame["agent"].isin(attackers)]
        for name, rows in (
            ("attackers", judged[judged["attacker"]]),
            ("honest in time", judged[~judged["attacker"] & ~judged["late"]]),
            ("honest late", judged[~judged["attacker"] & judged["late"]]),
        ):
            if reads := int(rows["reads"].sum()):
                mean = float((rows["reads"] * rows["screened"]).sum() / reads)
                shares[name] = {"reads": reads, "share": round(mean, 6)}
        return shares

    def state(self) -> State:
        """Return what ``restore`` goes on from."""
        pairs = [[*key, *value] for key, value in self._sums.items()]
        return {"pairs": pairs, "steps": self._steps, "alone": self._alone, "unfiltered": self._unfiltered}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._sums = {(a, k, late): (number, total) for a, k, late, number, total in state["pairs"]}
        self._steps, self._alone = state["steps"], state["alone"]
        self._unfiltered = state.get("unfiltered", 0)


def told(summary: Mapping[str, Any]) -> list[str]:
    """Return what a summary says, in a line each.

    >>> told({"attack": "noise", "attackers": [1], "screened_out": {"attackers": {"reads": 9, "share": 0.5}}})
    ['attack noise by agents 1', 'screened out: 50.0 % of 9 versions of attackers']
    """
    lines = []
    if "attackers" in summary:
        lines.append(f"attack {summary['attack']} by agents {', '.join(map(str, summary['attackers']))}")
    parts = summary.get("screened_out", {})
    whose = {"attackers": "attackers", "honest in time": "honest agents in time", "honest late": "late honest agents"}
    shares = [
        f"{100 * part['share']:.1f} % of {part['reads']} versions of {whose[name]}" for name, part in parts.items()
    ]
    if shares:
        lines.append(f"screened out: {', '.join(shares)}")
    if summary.get("steps_alone"):
        alone, steps = summary["steps_alone"], summary["steps"]
        lines.append(
            f"{alone} of {steps} steps took in nothing of others: fewer neighbors, or gradients, were left than the "
            "screen needs"
        )
    if unfiltered := summary.get("updates_unfiltered"):
        lines.append(
            f"{unfiltered} updates went without Kardam's frequency filter: fewer workers were left, or kept up, than "
            "it needs"
        )
    return lines
