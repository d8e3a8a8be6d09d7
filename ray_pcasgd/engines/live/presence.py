"""Where an agent of a live run is."""

from enum import Enum, auto


class Presence(Enum):
    """Where an agent of a live run is."""

    STARTING = auto()
    """Its actor is being built, before the run begins."""
    TRAINING = auto()
    LEAVING = auto()
    """It trains, and was asked to leave."""
    FINISHED = auto()
    """It has taken all its steps; its actor still answers."""
    AWAY = auto()
    """It was lost and is not made again, has left, or has not joined yet."""
    UNKNOWN = auto()
    """Nothing of it was kept in the state of a resumed run: its actor is made once the others train."""
    RETURNING = auto()
    """Its actor is being made again."""


TRAINS = frozenset({Presence.TRAINING, Presence.LEAVING})
THERE = TRAINS | {Presence.STARTING, Presence.FINISHED}
"""Its actor takes messages."""
