"""What a run raises, above all in the user's own code: which agent, at which step, and where in which file."""

import math
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray_pcasgd.agents.learner import LearnerError
from ray_pcasgd.agents.participant import Participant
from ray_pcasgd.base.state import State, check_rows, difference
from ray_pcasgd.engines.base import RunError, StateError
from ray_pcasgd.records import Event, StepReport
from ray_pcasgd.tasks.task import Task

_LONGEST = 300
"""Characters of a message that are shown."""
_LONGEST_TRACE = 20_000
_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARIES = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


class StepError(RunError):
    """A step or an evaluation that raised; made of texts alone, so that it travels between processes."""

    def __init__(self, message: str, agent: int = -1, step: int = -1, trace: str = "") -> None:
        super().__init__(message, agent, step, trace)
        self.agent = agent
        """-1 where it is no single agent."""
        self.step = step
        self.trace = trace
        """The traceback, as text."""

    def __str__(self) -> str:
        return str(self.args[0])


def as_step_error(error: BaseException, agent: int, step: int, who: str = "") -> StepError:
    """Return what names agent, step, the error, and the user's own file and line."""
    who = who or (f"agent {agent}" if agent >= 0 else "the run")
    at = f" at step {step}" if step >= 0 else ""
    trace = "".join(traceback.format_exception(error))[-_LONGEST_TRACE:]
    return StepError(f"{who}{at}: {described(error)}", agent, step, trace)


def described(error: BaseException) -> str:
    """Return an error in one line: its type, its message, and the last line of the user's own code that led to it."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # the user's own, too
        message = ""
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    place = next(filter(None, map(own_place, _chain(error))), "")
    return f"{type(error).__qualname__}{': ' if message else ''}{message}{f' ({place})' if place else ''}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def own_place(error: BaseException) -> str:
    """Return file and line of the innermost frame of the user's own code; empty where there is none."""
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if name.startswith("<"):
            # A prompt's or a notebook's, unless it was generated.
            found = f"{name}:{line}" if name.startswith(("<stdin", "<string", "<ipython")) else found
            continue
        path = Path(name).resolve()
        if _is_own(path):
            found = f"{_short(path)}:{line}"
    # Of one that another process has raised, a note has the traceback.
    return found or _place_in("\n".join(getattr(error, "__notes__", ())))


def described_text(text: str) -> str:
    """Return what ``described`` returns, of an error of which another process has left its traceback as text."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = lines[-1] if lines else ""
    place = _place_in(text)
    return message[:_LONGEST] + (f" ({place})" if place else "")


def _place_in(text: str) -> str:
    """Return the last frame of the user's own code in a traceback as text; empty where there is none."""
    frames = [(Path(name), line) for name, line in re.findall(r'File "([^"]+)", line (\d+)', text)]
    return next((f"{_short(path)}:{line}" for path, line in reversed(frames) if _is_own(path)), "")


def _is_own(path: Path) -> bool:
    return not any(path.is_relative_to(folder) for folder in (_PACKAGE, *_LIBRARIES))


def _short(path: Path) -> Path:
    """Return a path as seen from the working directory, where it lies within."""
    try:
        return path.relative_to(Path.cwd())
    except (OSError, ValueError):
        return path


class naming:  # noqa: N801 - a context, as those of contextlib
    """Names agent and step in whatever is raised within, but for what says so already."""

    # Not made by ``contextmanager``, which lets a StopIteration through that another error is raised from.
    def __init__(self, agent: int, step: int, who: str = "") -> None:
        self._names = (agent, step, who)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, RunError | LearnerError):
            raise as_step_error(error, *self._names) from error


def who_of(agents: Sequence[Participant]) -> str:
    """Return several agents' names, whose steps run as one."""
    numbers = sorted(agent.spec.agent for agent in agents)
    return f"agent {numbers[0]}" if len(numbers) == 1 else f"one of the agents {numbers[0]} to {numbers[-1]}"


def measured(
    evaluate: Callable[[], dict[str, float]], task: Task, agent: int, step: int, who: str = ""
) -> tuple[dict[str, float], Event | None]:
    """Return what an evaluation measures, and an event where it raises: the run goes on without figures."""
    try:
        return {name: float(value) for name, value in evaluate().items()}, None
    except Exception as error:
        failed = Event("evaluation_failed", agent, step, str(as_step_error(error, agent, step, who)))
        return dict.fromkeys(("loss", *(metric.key for metric in task.measured)), math.nan), failed


def evaluated(agent: Participant, report: StepReport) -> tuple[StepReport, Event | None]:
    """Return an agent's newest report with its evaluation, where there is one; and an event where that raises."""
    if report.snapshot is None or not agent.evaluates:
        return report, None
    spec = agent.spec
    evaluation, failed = measured(agent.evaluate, spec.recipe.task, spec.agent, report.progress)
    return report._replace(evaluation=evaluation), failed


def require_own(state: State, example: State, num_agents: int) -> None:
    """Raise ``StateError`` where a state of a run on the local engine is not one of its own kind.

    ``example`` is the run's state before its first step.
    """
    if (found := difference(example, state)) is not None:
        raise StateError(found)
    check_rows(state["window"], num_agents)


@contextmanager
def restoring() -> Iterator[None]:
    """Raise ``StateError`` for whatever is raised while a state is taken in."""
    try:
        yield
    except StateError:
        raise
    except Exception as error:
        raise StateError(described(error)) from error
