"""What a run left."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ray_pcasgd.base.errors import SettingsError
from ray_pcasgd.config import Config
from ray_pcasgd.runs.metrics import TUNED
from ray_pcasgd.runs.storage.checkpoints import Checkpoint

if TYPE_CHECKING:
    from ray_pcasgd.runs.evaluation import Evaluated


@dataclass(frozen=True, repr=False)
class Result:
    """What a run left, in the manner of Ray Train's ``Result``."""

    metrics: dict[str, Any]
    """The last evaluation of the averaged model, with the agents' mean under ``agents_mean_...``."""
    metrics_dataframe: pd.DataFrame
    """One row per agent and evaluation, and one for the averaged model, whose ``agent`` is missing."""
    checkpoint: Checkpoint | None
    """The averaged model of the last complete evaluation."""
    path: str
    """The run folder."""
    error: Exception | None
    """What ended the run before its last step, or what is wrong with its result; ``None`` if it is complete. Errors of
    the user's own code are named with agent, step, file and line."""
    best_checkpoints: list[tuple[Checkpoint, dict[str, Any]]] = field(default_factory=list)
    """The checkpoints that were kept, with the averaged model's metrics."""
    schedule_hash: str = ""
    """Hash of which agent read which version at which step; equal for runs under the same schedule."""
    config: Config | None = None
    """The run's settings, with everything filled in."""
    screening: pd.DataFrame = field(default_factory=pd.DataFrame)
    """Where messages are screened, a row for each agent, neighbor and lateness: ``reads``, and the mean share in [0, 1]
    by which these were left out, ``screened``. Empty in other runs."""

    def evaluate(self, checkpoint: int | str = "last", *, task: Mapping[str, Any] | None = None) -> "Evaluated":
        """Test a model of the run again; nothing is written.

        Args:
            checkpoint: the step of a model that was kept (setting ``checkpoint``), or ``last``.
            task: parts of the task's settings in place of those of the run: other data, or other metrics.

        Raises:
            SettingsError: there is no such model, or it does not fit the settings.
            RunError: the user's own model, loss, metric or data raises.

        """
        from ray_pcasgd.runs.evaluation import evaluate_again  # which reads more than a result needs

        if self.config is None:
            raise SettingsError("config = None: allowed is the result of a run")
        return evaluate_again(self.path, self.config, checkpoint, self.metrics.get("step"), task)

    def __repr__(self) -> str:
        tested = [name for name in self.metrics if name.startswith("test_")]
        averaged = ", ".join(f"{name} {_short(self.metrics[name])}" for name in tested)
        agents = ", ".join(f"{name} {_short(self.metrics.get(f'agents_mean_{name}'))}" for name in tested)
        lines = [
            f"path {self.path}",
            f"error {self.error}",
            f"step {self.metrics.get('step', 'none')}, averaged model: {averaged or 'not evaluated'}",
            f"agents' mean: {agents or 'not evaluated'}",
            f"schedule {self.schedule_hash}",
        ]
        return "Result(" + "\n       ".join(lines) + ")"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def final_metrics(frame: pd.DataFrame) -> dict[str, Any]:
    """Return the last evaluation: of the averaged model, and of the agents as mean, std, min and max.

    std is the population's standard deviation, since these are all agents and not a sample of them.
    """
    if frame.empty:
        return {}
    final: dict[str, Any] = {}
    tests = [name for name in frame.columns if name.startswith("test_")]
    averaged = frame[frame["agent"].isna()]
    if len(averaged):
        last = averaged.drop(columns="agent").iloc[-1]
        final["step"] = int(last["step"])
        final["averaged"] = {name: float(last[name]) for name in tests}
        final["consensus_distance"] = float(last["consensus_distance"])
        final |= {name: float(last[name]) for name in ("staleness_mean", "predicting_share", "theta")}
        final |= {name: float(last[name]) for name in TUNED if name in last}
    # Not ``last``, which passes over what is no number, and would show what an earlier evaluation found.
    newest = frame[frame["agent"].notna()].drop_duplicates("agent", keep="last")
    with np.errstate(invalid="ignore"):  # infinite ones have no deviation
        final["agents"] = {
            name: {
                "mean": float(newest[name].mean()),
                "std": float(newest[name].std(ddof=0)),
                "min": float(newest[name].min()),
                "max": float(newest[name].max()),
            }
            for name in tests
        }
    return final


def flat_metrics(final: Mapping[str, Any]) -> dict[str, Any]:
    """Return final metrics in one level, as ``Result.metrics`` has them."""
    flat = {name: value for name, value in final.items() if not isinstance(value, dict)}
    flat |= final.get("averaged", {})
    for name, spread in final.get("agents", {}).items():
        flat |= {f"agents_{statistic}_{name}": value for statistic, value in spread.items()}
    return flat
