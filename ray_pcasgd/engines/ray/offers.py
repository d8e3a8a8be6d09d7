"""What neighbors offer an agent that comes back into a live run."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle

from ray_pcasgd.agents.mailbox import Header
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.ray.lost import GONE
from ray_pcasgd.engines.ray.mail import MailActor
from ray_pcasgd.engines.validation import check_contents, check_header

WELCOME_SECONDS = 30.0
"""Seconds that an agent that comes back waits for its neighbors' versions; later ones are left out."""


class Offer(NamedTuple):
    """What a neighbor tells an agent that comes back."""

    header: Header
    """Of the neighbor's own newest version."""
    contents: Contents
    known: int
    """The newest version that the neighbor knows of the agent which comes back."""


def offers_of(
    shell: MailActor, neighbors: Mapping[int, ActorHandle[Any]], lose: Callable[[int], None] = lambda _: None
) -> dict[int, Offer]:
    """Tell neighbors that an agent is back, and return what those offer that answer soon; ``lose`` those gone."""
    agent, myself = shell.spec.agent, ray.get_runtime_context().current_actor
    asked: dict[Any, int] = {handle.welcome.remote(agent, myself): k for k, handle in neighbors.items()}
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=WELCOME_SECONDS) if asked else ([], [])
    offers = {}
    for call in answered:
        k = asked[call]
        try:
            offer = ray.get(call)
            if k in shell.spec.neighbors:
                check_header(shell.expected, offer.header)
                check_contents(shell.transport, shell.expected, offer.header, offer.contents)
            offers[k] = offer
        except RejectedError as error:
            shell.reject(k, -1, error)
        except GONE:
            lose(k)
    return offers
