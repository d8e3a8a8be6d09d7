"""From another process to a running run: its status, and an operator's commands; in both directions as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.live.commands import Command, encoded
from ray_pcasgd.engines.ray.board import OTHERS_SECONDS, Board, EndedError, board_at
from ray_pcasgd.engines.ray.discovery import Address, NotRunningError, address_of, location_of
from ray_pcasgd.engines.ray.joining import ClusterError, open_address, reason_of
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.engines.ray.status import viewed

_LONGEST_ANSWER = 2000
ANSWER_SECONDS = 60.0
"""How long a command waits for the run's driver."""


def status_of(run: str, at: Address | None = None) -> dict[str, Any]:
    """Return the status of a running run, given its folder, and its cluster where that is known; see ``RunView``.

    Raises:
        NotRunningError: it is not running, or its cluster cannot be reached.

    """
    with _board_of(run, at) as board:
        return viewed(board.status())


def send_command(run: str, command: Command, at: Address | None = None) -> str:
    """Hand a command to a running run, and return its answer.

    Raises:
        NotRunningError: it is not running, or its cluster cannot be reached.

    """
    with _board_of(run, at) as board:
        answer = board.ask(encoded(command), ANSWER_SECONDS)
        return "refused: the run does not answer" if answer is None else one_line(answer, _LONGEST_ANSWER)


@contextmanager
def _board_of(run: str, at: Address | None) -> Iterator[Board]:
    try:
        address = open_address(*(at or address_of(run)))
        with board_at(address, Identity(location_of(run)), OTHERS_SECONDS) as board:
            if not board.is_there():
                raise NotRunningError(f"{run}: is not running on that cluster")
            yield board
    except EndedError:
        raise NotRunningError(f"{run}: has ended before it answered") from None
    except grpc.RpcError as error:
        raise NotRunningError(f"{run}: cannot be reached ({reason_of(error)})") from error
    except (ClusterError, ValueError) as error:
        raise NotRunningError(f"{run}: cannot be reached ({one_line(error, _LONGEST_ANSWER)})") from error
