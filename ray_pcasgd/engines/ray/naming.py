"""What the actors of a run are called on a cluster."""

from collections.abc import Mapping
from itertools import count
from typing import Any, NamedTuple

from ray.actor import ActorHandle

_MOST_NAMES = 1000


class Identity(NamedTuple):
    """How a run's actors are named on a cluster."""

    location: str
    """Its folder, by which other processes find it."""
    about: Mapping[str, Any] = {}
    """What its status says of the run as a whole."""

    @property
    def run(self) -> str:
        """The run's name."""
        return self.location.rstrip("/").rsplit("/", 1)[-1]

    @property
    def scheduler(self) -> str:
        """The name of the scheduler, the first of them."""
        return f"{self.run} scheduler"

    @property
    def namespace(self) -> str:
        """Ray's namespace of the run's actors."""
        return f"ray_pcasgd {self.location}"

    def actor(
        self, name: str, actor_class: Any, options: Mapping[str, Any], *arguments: Any, **more: Any
    ) -> ActorHandle[Any]:
        """Return a new actor; one that takes the place of another has a number behind its name."""
        for number in count(1):
            numbered = name if number == 1 else f"{name} ({number})"
            named = actor_class.options(name=numbered, namespace=self.namespace, **options)
            try:
                made: ActorHandle[Any] = named.remote(*arguments, **more)
                return made
            except ValueError:  # the name is taken, also for a while after its actor was killed
                if number == _MOST_NAMES:
                    raise
        raise AssertionError("unreachable")
