"""From another process to a running run: its status, and an operator's commands; in both directions as JSON."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.live.commands import Command, encoded
from ray_pcasgd.engines.ray.board import OTHERS_SECONDS, Board, EndedError, board_at
from ray_pcasgd.engines.ray.discovery import Address, NoAnswerError, NotRunningError, address_of, location_of
from ray_pcasgd.engines.ray.joining import ClusterError, open_address, reason_of
from ray_pcasgd.engines.ray.naming import Identity
from ray_pcasgd.engines.ray.status import viewed

_LONGEST_ANSWER = 2000
ANSWER_SECONDS = 60.0
"""How long a command waits for the run's driver."""


class Connection:
    """A running run, as another process reaches it."""

    def __init__(self, run: str, board: Board) -> None:
        self._run = run
        self._board = board

    def status(self) -> dict[str, Any]:
        """Return the run's status, see ``RunView``; empty where it has shown none yet.

        Raises:
            NotRunningError: it has no actors there.
            NoAnswerError: the cluster does not answer.

        """
        try:
            if not self._board.is_there():
                raise NotRunningError(f"{self._run}: is not running on that cluster")
            return viewed(self._board.status())
        except grpc.RpcError as error:
            raise NoAnswerError(f"{self._run}: cannot be reached ({reason_of(error)})") from error

    def send(self, command: Command) -> str:
        """Hand the run a command, and return its answer."""
        answer = self._board.ask(encoded(command), ANSWER_SECONDS)
        return "refused: the run does not answer" if answer is None else one_line(answer, _LONGEST_ANSWER)


@contextmanager
def connection_to(run: str, at: Address | None = None) -> Iterator[Connection]:
    """Return a connection to a running run, given its folder, and its cluster where that is known.

    Raises:
        NotRunningError: it is not running, or its cluster cannot be reached; also where that is so later.

    """
    try:
        address = open_address(*(at or address_of(run)))
        with board_at(address, Identity(location_of(run)), OTHERS_SECONDS) as board:
            yield Connection(run, board)
    except EndedError:
        raise NotRunningError(f"{run}: has ended before it answered") from None
    except grpc.RpcError as error:
        raise NotRunningError(f"{run}: cannot be reached ({reason_of(error)})") from error
    except (ClusterError, ValueError) as error:
        raise NotRunningError(f"{run}: cannot be reached ({one_line(error, _LONGEST_ANSWER)})") from error


def status_of(run: str, at: Address | None = None) -> dict[str, Any]:
    """Return the status of a running run; see ``connection_to``."""
    with connection_to(run, at) as connection:
        return connection.status()


def send_command(run: str, command: Command, at: Address | None = None) -> str:
    """Hand a command to a running run, and return its answer; see ``connection_to``."""
    with connection_to(run, at) as connection:
        connection.status()  # one who asks a run that is gone would wait
        return connection.send(command)
