"""The parts of a run's state, as its actors give them, and the state that they make together."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ray
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ray_pcasgd.agents.mailbox import Delivery, Header, Mailbox, Message
from ray_pcasgd.base.state import State
from ray_pcasgd.engines.messages import Contents, Extra, Parcel
from ray_pcasgd.engines.raw_tensors import extra_of, tensor_of
from ray_pcasgd.engines.ray.agent_state import AgentState
from ray_pcasgd.engines.ray.transport import PIECE_BYTES, RayTransport, as_array, as_tensor
from ray_pcasgd.schedule.scheduler import Cut

_TRANSPORT = RayTransport(PIECE_BYTES)
_PARTS = 5
"""Of a message in a state: three tensors, its mass, what is extra; one that is a difference has a mark besides."""


class Restored(NamedTuple):
    """What one agent goes on from."""

    agent: State
    messages: tuple[Message[Contents], ...]
    left: Mapping[int, int]
    is_isolated: bool


def portable_state(state: State) -> Any:
    """Return a reference to an agent's state, with its tensors as NumPy arrays."""
    return ray.put(tree_map(as_array, state))


def fetched(reference: Any, answer_seconds: float) -> State:
    """Return an agent's state from its reference.

    Raises:
        RayError: it was lost with its agent, or the agent does not answer.

    """
    state: State = tree_map(as_tensor, ray.get(reference, timeout=answer_seconds))
    return state


def join_parts(cut: Cut, parts: Sequence[AgentState], seconds: float, answer_seconds: float) -> State:
    """Return the run's state at a cut; what several agents have of one neighbor's version is in it once.

    Raises:
        RayError, LostError: something was lost with its agent, or the agent does not answer.

    """
    messages: dict[tuple[int, ...], list[Any]] = {}
    for part in parts:
        for header, contents in part.messages:
            key = (header.sender, header.version, *part.share)
            if contents is not None and key not in messages:
                opened = [_opened(parcel, answer_seconds) for parcel in contents[:3]]
                messages[key] = [*opened, header.mass, _opened_extra(contents.extra)]
                messages[key] += [True] if header.is_difference else []
    return {
        "rows": cut.rows,
        "seconds": seconds,
        "agents": [fetched(part.state, answer_seconds) for part in parts],
        "inboxes": [[[*header[:2], *(header.note or ())] for header, _ in part.messages] for part in parts],
        "shares": [list(part.share) for part in parts],
        "messages": messages,
        "left": [dict(part.left) for part in parts],
        "isolated": [part.is_isolated for part in parts],
    }


def restored_parts(state: State) -> list[Restored]:
    """Return what each agent goes on from; what travels to several of them lies in the object store once."""
    contents = {key: _contents(*parts[:_PARTS]) for key, parts in state["messages"].items()}

    def message(entry: Sequence[Any], share: Sequence[int]) -> Message[Contents]:
        key = (*entry[:2], *share)
        parts = state["messages"][key]
        header = _header(*entry, mass=parts[3])._replace(is_difference=len(parts) > _PARTS)
        return Message(header, contents[key])

    return [
        Restored(
            agent,
            tuple(message(entry, state["shares"][number]) for entry in state["inboxes"][number]),
            state["left"][number],
            state["isolated"][number],
        )
        for number, agent in enumerate(state["agents"])
    ]


def _contents(
    weights: Tensor, buffers: Tensor, direction: Tensor | None, mass: float, extra: list[Any] | None
) -> Contents:
    whole = _TRANSPORT.stored(_TRANSPORT.publish(weights, buffers, direction))
    return whole if extra is None else whole._replace(extra=extra_of(*extra))


def _header(sender: int, version: int, *note: Any, mass: float) -> Header:
    return Header(sender, version, 0.0, 0.0, note=Delivery(*note) if note else None, mass=mass)


def messages_before(cut: Cut, mailbox: Mailbox[Contents], neighbors: Sequence[int]) -> tuple[Message[Contents], ...]:
    """Return the messages of a mailbox that were sent before the cut."""
    found = (mailbox.get(k, v) for k in neighbors for v in sorted(mailbox.versions(k)) if v <= cut.versions[k])
    return tuple(_portable(message) for message in found if message is not None)


def _portable(message: Message[Contents]) -> Message[Contents]:
    """Return a message as it travels to the driver: large arrays of it go by way of the object store."""
    if message.contents is None:
        return message
    return message._replace(contents=_TRANSPORT.stored(message.contents))


def _opened(parcel: Parcel | None, answer_seconds: float) -> Tensor | None:
    if parcel is None:
        return None
    return torch.from_numpy(_TRANSPORT.fetch(parcel, answer_seconds).copy())


def _opened_extra(extra: Extra | None) -> list[Any] | None:
    if extra is None:
        return None
    mask = extra.with_gradient
    return [
        {name: tensor_of(given) for name, given in extra.local.items()},
        None if mask is None else torch.from_numpy(mask.copy()),
    ]
