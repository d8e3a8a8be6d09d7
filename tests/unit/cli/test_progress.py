import io
import math

import pytest
from rich.console import Console

from ray_pcasgd.cli.output import print_table
from ray_pcasgd.cli.progress import Progress


class Screen:
    """A console, and a clock that goes only where it is told to."""

    def __init__(self, is_terminal: bool, height: int = 40) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=is_terminal, width=110, height=height, color_system=None, _environ={}
        )
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()

    def last_drawing(self) -> list[str]:
        lines = self.lines()
        start = max(i for i, line in enumerate(lines) if "agent " in line and "step " in line and "loss" in line)
        return lines[start:]


def train(progress: Progress, screen: Screen, num_agents: int, first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        for agent in range(num_agents):
            progress.step(agent, step, 2.0, 5.0)
            screen.now += seconds


def test_plain_lines_come_every_five_seconds_and_at_evaluations() -> None:
    screen = Screen(is_terminal=False)
    progress = Progress(screen.console, 2, 100, clock=screen.clock)
    train(progress, screen, 2, 1, 12, 0.5)
    assert screen.lines() == [
        "step 5 to 6 of 100, loss 2, staleness 5, 2 agent-steps/s, 1:34 left",
        "step 10 to 11 of 100, loss 2, staleness 5, 2 agent-steps/s, 1:30 left",
    ]
    progress.evaluation(0, {"loss": 0.5, "accuracy": 0.75}, 6)
    progress.evaluation(1, {"loss": 0.4, "accuracy": 0.85}, 6)
    # One whose figures come late bears its own step, and one that failed no figures at all.
    progress.evaluation(None, {"test_loss": math.nan, "test_accuracy": math.nan}, 3)
    progress.evaluation(None, {"test_loss": 0.3, "test_accuracy": 0.9}, 6)
    assert screen.lines()[2:] == [
        "step 6: test accuracy of the averaged model 90.0 %, of the agents 80.0 % (75.0 % to 85.0 %)"
    ]
    progress.finish()
    progress.finish()
    assert screen.lines()[3:] == ["24 agent-steps in 0:12, 2 agent-steps/s"]
    assert "\x1b" not in screen.file.getvalue()


def test_a_long_run_s_log_grows_ever_more_slowly() -> None:
    screen = Screen(is_terminal=False)
    progress = Progress(screen.console, 2, 10**6, clock=screen.clock)
    lengths = []
    for hour in range(1, 49):
        train(progress, screen, 2, 360 * (hour - 1) + 1, 360 * hour, 5.0)
        lengths.append(len(screen.lines()))
    assert lengths[0] > 100  # in the first hour
    assert lengths[-1] - lengths[-2] <= 2  # in the last of two days
    assert lengths[-1] < 400


def test_a_title_stands_before_each_plain_line() -> None:
    screen = Screen(is_terminal=False)
    progress = Progress(screen.console, 1, 10, title="[d-asgd], seed 1", clock=screen.clock)
    train(progress, screen, 1, 1, 8, 1.0)
    progress.finish()
    assert len(screen.lines()) == 2
    assert all(line.startswith("[d-asgd], seed 1: ") for line in screen.lines())


def test_a_run_without_a_step_ends_silently() -> None:
    screen = Screen(is_terminal=True)
    Progress(screen.console, 2, 100, clock=screen.clock).finish()
    assert screen.file.getvalue() == ""


def test_time_left_follows_the_speed_so_far() -> None:
    screen = Screen(is_terminal=False)
    progress = Progress(screen.console, 4, 50, clock=screen.clock)
    assert progress.seconds_left(screen.now) is None
    progress.step(0, 1, 1.0, 0.0)
    assert progress.seconds_left(screen.now) is None
    for agent in (1, 2, 3):
        screen.now += 0.25
        progress.step(agent, 1, 1.0, 0.0)
    assert progress.seconds_left(screen.now) == pytest.approx(4 * 49 * 0.25)
    for step in range(2, 51):
        for agent in range(4):
            screen.now += 0.25
            progress.step(agent, step, 1.0, 0.0)
    assert progress.seconds_left(screen.now) == 0


def test_the_slowest_agent_decides_where_agents_run_at_once() -> None:
    screen = Screen(is_terminal=False)
    together = Progress(screen.console, 2, 101, at_once=True, clock=screen.clock)
    in_turn = Progress(screen.console, 2, 101, clock=screen.clock)
    for progress in (together, in_turn):
        screen.now = 100.0
        progress.step(1, 1, 1.0, 0.0)
        for step in range(1, 52):
            progress.step(0, step, 1.0, 0.0)
            screen.now += 0.02
        progress.step(1, 6, 1.0, 0.0)
    # Agent 1 has five steps more behind it in 51 * 0.02 seconds, but one report of them: as if resumed from step 5.
    assert together.seconds_left(screen.now) == pytest.approx(95 * 51 * 0.02)
    assert in_turn.seconds_left(screen.now) == pytest.approx((50 + 95) * 51 * 0.02 / 52)
    together.leave(1)
    assert together.seconds_left(screen.now) == pytest.approx(50 * 51 * 0.02 / 50)


def test_the_terminal_shows_a_line_for_each_agent() -> None:
    screen = Screen(is_terminal=True)
    progress = Progress(screen.console, 3, 10, title="pc-asgd-pv", clock=screen.clock)
    for agent in range(3):
        progress.step(agent, 4, 0.5 + agent, 2.5, 1.0 if agent else 0.0)
        progress.evaluation(agent, {"accuracy": 0.9 - agent / 10}, 4)
        screen.now += 0.5
    progress.evaluation(None, {"accuracy": 0.95}, 4)
    progress.finish()
    drawing = screen.last_drawing()
    assert drawing[0].split() == ["agent", "step", "loss", "test", "accuracy", "staleness", "predicting"]
    rows = [line.split() for line in drawing if line.strip()[:1].isdigit()]
    assert rows[0] == ["0", "4", "0.5", "90.0", "%", "2.5", "0.0", "%"]
    assert rows[2] == ["2", "4", "2.5", "70.0", "%", "2.5", "100.0", "%"]
    status = next(line for line in drawing if "left" in line)
    assert status == "12/30 agent-steps · 1 agent-steps/s · 0:14 left · averaged model 95.0 % at step 4"


def test_the_terminal_is_drawn_four_times_a_second_at_most() -> None:
    screen = Screen(is_terminal=True)
    progress = Progress(screen.console, 2, 5000, clock=screen.clock)
    train(progress, screen, 2, 1, 1000, 0.001)
    drawings = sum("staleness" in line for line in screen.lines())
    assert 7 <= drawings <= 9
    assert "predicting" not in screen.file.getvalue()


def test_agents_that_do_not_fit_the_terminal_share_a_line() -> None:
    screen = Screen(is_terminal=True, height=12)
    progress = Progress(screen.console, 20, 10, clock=screen.clock)
    for agent in range(20):
        progress.step(agent, 1 + agent % 2, float(agent), 0.0)
    progress.finish()
    lines = screen.last_drawing()
    assert [line.split()[0] for line in lines if line[:8].strip().isdigit()] == ["0", "1", "2", "3"]
    (others,) = [line.split() for line in lines if "16 more" in line]
    assert others[:6] == ["16", "more", "1", "to", "2", f"{sum(range(4, 20)) / 16:.4g}"]


def test_a_loss_that_is_no_number_is_shown_and_recovered_from() -> None:
    screen = Screen(is_terminal=True)
    progress = Progress(screen.console, 1, 10, clock=screen.clock)
    for step, loss in enumerate((1.0, math.inf, 3.0, 1.0), start=1):
        progress.step(0, step, loss, 0.0)
    progress.finish()
    (row,) = [line.split() for line in screen.last_drawing() if line.strip()[:1] == "0"]
    assert row[:3] == ["0", "4", "2.5"]


def test_tables_are_aligned_text_where_there_is_no_terminal() -> None:
    screen = Screen(is_terminal=False)
    rows = [
        {"method": "pc-asgd [x]", "accuracy": "96.1 %"},
        {"method": "d-asgd", "accuracy": "9.0 %", "note": "y" * 120},
    ]
    print_table(rows, screen.console)
    assert screen.lines() == [
        "method       accuracy" + " " * 118 + "note",
        "pc-asgd [x]    96.1 %",
        "d-asgd          9.0 %  " + "y" * 120,
    ]


def test_tables_are_drawn_on_a_terminal() -> None:
    screen = Screen(is_terminal=True)
    print_table([{"method": "[x]", "accuracy": "96.1 %"}], screen.console)
    assert "[x]" in screen.file.getvalue()
    assert "96.1 %" in screen.file.getvalue()
