"""Logging in an actor's process: Ray keeps a log file for each, and its dashboard shows it."""

import logging
import sys
from collections.abc import Iterable

from ray_pcasgd.records import Event, StepReport

logger = logging.getLogger("ray_pcasgd")


def begin(line: str) -> None:
    """Write to this process's log from now on, first a line of who the actor is.

    Ray keeps what a process writes to its standard error. With ``log_format: json`` it has its own handler.
    """
    if not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
    write_line(line)


def write_line(line: str) -> None:
    """Write a line."""
    logger.info("%s", line)


def write(said: Iterable[object]) -> None:
    """Write what an agent tells the driver: events, and what its evaluations found."""
    for one in said:
        if isinstance(one, Event):
            logger.info("step %d: %s: %s", one.step, one.kind, one.detail)
        elif isinstance(one, StepReport) and one.evaluation is not None:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in one.evaluation.items())
            logger.info("step %d: %s", one.progress, figures)
