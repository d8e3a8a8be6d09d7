"""What a schedule's file says of its run, besides the rows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ray_pcasgd.base.text import one_line


@dataclass(frozen=True, kw_only=True)
class ScheduleInfo:
    """The run that a schedule is of; in its file each field is a text under the field's name."""

    run: str = ""
    """The run's name."""
    mode: str = ""
    """``planned`` or ``live``."""
    algorithm: str = ""
    """The algorithm's name."""
    reading: str = ""
    """What rows read: as a rule's ``reading`` says, ``pairs`` for AD-PSGD, an empty text with servers."""
    num_agents: int | None = None
    """With servers the number of workers; ``None`` where the file does not say it."""
    num_servers: int = 0
    seed: int | None = None
    """Seed of the run; ``None`` where the file does not say it."""
    gathering: str = ""
    """The settings of the servers' gathering as JSON; empty between peers, and where the file does not say it."""
    left: frozenset[int] = frozenset()
    """Agents that left the run before its end, whose rows may be fewer."""

    def to_metadata(self) -> dict[str, str]:
        """Return the texts that a file holds."""
        said = {
            "run": self.run,
            "mode": self.mode,
            "algorithm": self.algorithm,
            "reading": self.reading,
            "num_agents": self.num_agents,
            "num_servers": self.num_servers,
            "seed": self.seed,
            "gathering": self.gathering or None,
            "left": " ".join(map(str, sorted(self.left))),
        }
        return {name: str(value) for name, value in said.items() if value is not None}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ScheduleInfo":
        """Return what a file's texts say; what they do not say has its default.

        Raises:
            ValueError: a number is none.

        """
        if not re.fullmatch(r"([0-9]{1,9}( [0-9]{1,9})*)?", metadata.get("left", "")):
            raise ValueError(f"left = {one_line(metadata['left'], 80)!r}; allowed are numbers of agents")
        return cls(
            **{name: metadata.get(name, "") for name in ("run", "mode", "algorithm", "reading", "gathering")},
            num_agents=_number(metadata, "num_agents"),
            num_servers=_number(metadata, "num_servers") or 0,
            seed=_number(metadata, "seed"),
            left=frozenset(map(int, metadata.get("left", "").split())),
        )


def _number(metadata: Mapping[str, str], name: str) -> int | None:
    if name not in metadata:
        return None
    if not re.fullmatch("[0-9]{1,19}", metadata[name]):
        raise ValueError(f"{name} = {one_line(metadata[name], 80)!r}; allowed is a whole number")
    return int(metadata[name])
