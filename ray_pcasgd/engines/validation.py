"""Checks of a peer's message, made before any of it is used."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray_pcasgd.agents.mailbox import Answer, Delivery, Header
from ray_pcasgd.engines.messages import Contents, RejectedError
from ray_pcasgd.engines.raw_tensors import Form, problem_of
from ray_pcasgd.engines.transport import DType, Transport

_LARGEST_COUNT = 2**31 - 1
"""Versions and steps are whole numbers of 32 bits wherever they are kept."""

_LARGEST_TIME = 1e11
"""Seconds of a clock, or of a delay: the year 5138."""


class Expected(NamedTuple):
    """What an agent's messages must be."""

    senders: Sequence[int]
    last_version: int | None
    """The largest version; None where there is no bound."""
    weights: int | None
    """Numbers in the weights, and in a direction; None where these differ from message to message."""
    buffers: int
    """Numbers in the mixed buffers; a message may also have none."""
    note: type[Answer] | type[Delivery] | None = None
    """What a message between workers and servers says besides; None between peers."""
    forms: Mapping[str, Form | None] | None = None
    """Of the tensors that a worker may send with its gradient; not given: no tensor is sent with it."""
    num_tensors: int = 0
    """The number of the model's parameter tensors."""
    encoded: Mapping[str, int | None] = {}
    """Bytes of what travels in a format of fewer of them, by name: ``weights``, ``direction``, ``difference``;
    ``None``: any number."""
    are_differences: bool = False
    """Whether messages may hold differences in place of weights."""

    def form(self, name: str) -> tuple[int | None, DType]:
        """Return the size and the type of a parcel's array."""
        if name in self.encoded:
            return self.encoded[name], "uint8"
        return self.buffers if name == "buffers" else self.weights, "float32"


def check_header(expected: Expected, header: Any) -> None:
    """Raise ``RejectedError`` where a header is not that of a message that the agent could have been sent."""
    if not isinstance(header, Header):
        raise RejectedError(f"its header is of type {type(header).__name__}")
    if not _is_count(header.sender) or header.sender not in expected.senders:
        raise RejectedError(f"its sender is {shown(header.sender)}; allowed are {list(expected.senders)}")
    last = _LARGEST_COUNT if expected.last_version is None else expected.last_version
    if not _is_count(header.version) or header.version > last:
        raise RejectedError(f"its version is {shown(header.version)}; allowed are 0 to {last}")
    for name in ("sent_at", "step_seconds", "latency_seconds", "mass"):
        value = getattr(header, name)
        if not _is_number(value) or not 0 <= value <= _LARGEST_TIME:
            raise RejectedError(f"its {name} is {shown(value)}; allowed are numbers from 0 to {_LARGEST_TIME:g}")
    if not _is_count(header.hold_steps):
        raise RejectedError(f"its hold_steps is {shown(header.hold_steps)}; allowed are whole numbers from 0 on")
    if not all(isinstance(flag, bool) for flag in (header.final, header.isolated, header.is_difference)):
        raise RejectedError("its flags are not true or false")
    if header.is_difference and not expected.are_differences:
        raise RejectedError("it is a difference; allowed are whole weights")
    _check_note(expected, header)


def _check_note(expected: Expected, header: Header) -> None:
    note = header.note
    if expected.note is None and note is not None:
        raise RejectedError(f"its note is of type {type(note).__name__}; allowed between peers is no note")
    if expected.note is not None and type(note) is not expected.note:
        allowed = expected.note.__name__
        raise RejectedError(f"its note is of type {type(note).__name__}; allowed is {allowed}")
    if isinstance(note, Answer):
        if not _is_count(note.newest) or note.newest < header.version:
            raise RejectedError(
                f"its newest version is {shown(note.newest)}; allowed are those from {header.version} on"
            )
        if not _is_count(note.answers):
            raise RejectedError(f"it answers {shown(note.answers)}; allowed are whole numbers from 0 on")
    if isinstance(note, Delivery):
        if not _is_count(note.computed_at) or not _is_count(note.round) or note.round < note.computed_at:
            raise RejectedError(
                f"it was computed at version {shown(note.computed_at)} and begun at {shown(note.round)}; allowed are "
                "whole numbers, the second not below the first"
            )
        # Compared, not converted: math.isfinite does not take a whole number of 400 digits.
        if not _is_number(note.loss) or not -sys.float_info.max <= note.loss <= sys.float_info.max:
            raise RejectedError(f"its loss is {shown(note.loss)}; allowed are finite numbers")


def check_times(times: Any) -> None:
    """Raise ``RejectedError`` where these are not the two seconds of a run at which a gradient began, and was ready."""
    are_two = isinstance(times, tuple) and len(times) == 2 and all(map(_is_number, times))
    if not are_two or not -_LARGEST_TIME <= times[0] <= times[1] <= _LARGEST_TIME:
        raise RejectedError(f"its times are {shown(times)}; allowed are two seconds, the second not before the first")


def check_mark(expected: Expected, neighbor: Any, cut: Any, sent: Any) -> None:
    """Raise ``RejectedError`` where a neighbor's count of the messages that it sent before a cut is not valid."""
    if not _is_count(neighbor) or neighbor not in expected.senders:
        raise RejectedError(f"its sender is {shown(neighbor)}; allowed are {list(expected.senders)}")
    if not isinstance(cut, int) or cut < 0 or not _is_count(sent):
        raise RejectedError(f"its cut is {shown(cut)} and its count {shown(sent)}; allowed are whole numbers from 0 on")


def checked_contents(
    transport: Transport, expected: Expected, header: Header, contents: Any, pieces: Sequence[Any]
) -> Contents | None:
    """Return a message's contents with the arrays that came in pieces.

    Raises:
        RejectedError: they are not what the agent expects; see ``check_contents``.

    """
    try:
        whole: Contents | None = transport.joined(contents, pieces)
    except ValueError as error:
        raise RejectedError(f"its pieces do not fit together: {error!s:.200}") from error
    check_contents(transport, expected, header, whole)
    return whole


def check_contents(transport: Transport, expected: Expected, header: Header, contents: Any) -> None:
    """Raise ``RejectedError`` where a message's contents are not what the agent expects.

    What is still to be fetched is checked once it is: ``Transport.open``.
    """
    if contents is None:
        if not header.isolated:
            raise RejectedError("it is empty; allowed only where its sender has left the run")
        return
    if not isinstance(contents, Contents):
        raise RejectedError(f"its contents are of type {type(contents).__name__}")
    if contents.extra is not None:
        if expected.forms is None:
            raise RejectedError(f"its extra is of type {type(contents.extra).__name__}; allowed is no extra")
        if problem := problem_of(contents.extra, expected.forms, expected.num_tensors):
            raise RejectedError(f"its {problem}")
    for name, parcel in zip(contents._fields[:3], contents[:3], strict=True):
        if parcel is None and name == "direction":
            continue
        transport.check(name, parcel, *expected.form(weights_form(header) if name == "weights" else name))


def weights_form(header: Header) -> str:
    """Return the name of what a message holds in place of weights, by which its form is known."""
    return "difference" if header.is_difference else "weights"


def shown(value: Any) -> str:
    """Return a value that came from outside, in a few characters."""
    if isinstance(value, int) and abs(value) > _LARGEST_COUNT:
        return f"a whole number of {value.bit_length()} bits"
    return f"{value!r:.80}"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_COUNT


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)
