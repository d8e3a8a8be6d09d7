"""A run's status and an operator's commands in the cluster's store: what is written there, and by whom it is taken."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from ray_pcasgd.engines.ray.board import Board, EndedError, board_at, own_board
from ray_pcasgd.engines.ray.naming import Identity

pytestmark = pytest.mark.usefixtures("ray_cluster")


def address() -> str:
    return str(ray.get_runtime_context().gcs_address)


@contextmanager
def other(location: Path | str) -> Iterator[Board]:
    """Return a run's board as another process sees it."""
    with board_at(address(), Identity(str(location)), 10.0) as board:
        yield board


def taken(board: Board) -> list[tuple[int, str]]:
    """Return the run's next commands, once there are some."""
    while not (commands := list(board.asked())):
        pass
    return commands


def test_a_status_is_shown_until_the_run_ends_and_to_nobody_who_asks_for_another(tmp_path: Path) -> None:
    with other(tmp_path / "first") as seen, other(tmp_path / "first2") as of_another:
        with own_board(address(), Identity(str(tmp_path / "first"))) as board:
            assert seen.status() == ""
            board.show("step 1 \N{SNOWMAN}")
            while not (status := seen.status()):
                pass
            assert status == "step 1 \N{SNOWMAN}"
            assert of_another.status() == ""
            board.show("x" * 10_000_000)  # more than gRPC takes by itself
            while len(seen.status()) < 10_000_000:
                pass
            board.show("the last one, which is on its way when the run ends")
        assert seen.status() == ""


def test_commands_and_answers_meet_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    answers: list[str | None] = []
    with own_board(address(), Identity(str(tmp_path))) as board, other(tmp_path) as operator:
        asking = threading.Thread(target=lambda: answers.append(operator.ask("heal", 60.0)))
        asking.start()
        ((number, command),) = taken(board)
        assert command == "heal"
        assert list(board.asked()) == []
        board.answer(number, "all links are as the settings have them")
        asking.join()
        assert answers == ["all links are as the settings have them"]
        assert board._read(f"answer/{number}") == b""


def test_an_answer_comes_although_the_run_ends_with_it(tmp_path: Path) -> None:
    answers: list[str | None] = []
    with other(tmp_path) as operator:
        asking = threading.Thread(target=lambda: answers.append(operator.ask("leave", 60.0)))
        with own_board(address(), Identity(str(tmp_path))) as board:
            asking.start()
            ((number, _),) = taken(board)
            board.answer(number, "agent 1 is asked to leave")
        asking.join()
        assert answers == ["agent 1 is asked to leave"]


def test_who_asks_is_told_that_nobody_answers_and_takes_the_command_back(tmp_path: Path) -> None:
    with own_board(address(), Identity(str(tmp_path))) as board, other(tmp_path) as operator:
        assert operator.ask("heal", 0.0) is None
        assert list(board.asked()) == []
        assert not operator.is_there()
        with pytest.raises(EndedError):
            operator.ask("heal", 60.0)


def test_what_was_left_of_a_run_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    with other(tmp_path) as killed:
        killed.show("an old status")
        killed._store.InternalKVPut(killed._writing("command/7", "leave"), timeout=10.0)
        with own_board(address(), Identity(str(tmp_path))) as board:
            assert (board.status(), list(board.asked())) == ("", [])
