"""The rows of ``metrics.parquet`` as they come, packed: 8 bytes a figure."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import torch

from ray_pcasgd.base.state import State

_BLOCK_ROWS = 512
"""Rows that are packed at once."""


class MetricRows:
    """Append-only table of an evaluation's figures: one row an agent, and one whose ``agent`` is missing."""

    def __init__(self) -> None:
        self._blocks: list[pd.DataFrame] = []
        self._tail: list[dict[str, Any]] = []

    def extend(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows; the ``agent`` of the averaged model's is ``pandas.NA``."""
        self._tail.extend(rows)
        if len(self._tail) >= _BLOCK_ROWS:
            self._blocks.append(_packed(self._tail))
            self._tail = []

    def drop(self, step: int) -> None:
        """Drop the rows of an evaluation."""
        self._blocks = [kept for block in self._blocks if len(kept := block[block["step"] != step])]
        self._tail = [row for row in self._tail if row["step"] != step]

    def frame(self) -> pd.DataFrame:
        """Return all rows."""
        blocks = self._all_blocks()
        return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()

    def averaged(self) -> list[dict[str, Any]]:
        """Return the averaged model's rows."""
        return [row for block in self._all_blocks() for row in _records(_of_model(block))]

    def last_averaged(self) -> dict[str, Any] | None:
        """Return the averaged model's last row, ``None`` where there is none yet."""
        for row in reversed(self._tail):  # without making a table, since this is asked often
            if row["agent"] is pd.NA:
                return dict(row)
        for block in reversed(self._blocks):
            for record in _records(_of_model(block)[-1:]):
                return record
        return None

    def evaluated(self) -> Iterator[tuple[int, int]]:
        """Yield the agent and the step of each row that is an agent's."""
        for block in self._all_blocks():
            own = block[block["agent"].notna()]
            yield from zip(own["agent"].tolist(), own["step"].tolist(), strict=True)

    @property
    def last_step(self) -> int:
        """The largest step that has a row; 0 where there is none."""
        return max((int(block["step"].max()) for block in self._all_blocks() if len(block)), default=0)

    def state(self) -> list[State]:
        """Return what ``restored`` takes: blocks, each with the names and the figures of its columns."""
        return [
            {"names": [*block], "figures": torch.from_numpy(block.to_numpy(dtype="float64", na_value=float("nan")))}
            for block in self._all_blocks()
        ]

    @classmethod
    def restored(cls, state: Sequence[State], num_agents: int) -> "MetricRows":
        """Return the rows that a state has.

        Raises:
            ValueError, TypeError, KeyError: these are no rows of ``num_agents`` agents.

        """
        rows = cls()
        for block in state:
            if block.keys() != {"names", "figures"} or not all(isinstance(name, str) for name in block["names"]):
                raise ValueError("metrics are no tables")
            rows._blocks.append(_typed(pd.DataFrame(block["figures"].numpy(), columns=block["names"], dtype="float64")))
        if any(not 0 <= agent < num_agents for agent, _ in rows.evaluated()):
            raise ValueError(f"metrics are of agents that are none of the {num_agents}")
        rows.frame()  # which fails on blocks that do not fit together
        return rows

    def _all_blocks(self) -> list[pd.DataFrame]:
        return [*self._blocks, *([_packed(self._tail)] if self._tail else [])]


def _packed(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return _typed(pd.DataFrame(rows))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    # Column by column, which takes a fifth of the time that it takes for a whole table.
    frame["agent"], frame["step"] = frame["agent"].astype("Int64"), frame["step"].astype("int64")
    return frame


def _of_model(block: pd.DataFrame) -> pd.DataFrame:
    return block[block["agent"].isna()]


def _records(block: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in block.to_dict("records")]
