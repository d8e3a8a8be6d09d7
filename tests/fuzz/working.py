"""Processes that try cases, each with bounded time and memory."""

import argparse
import multiprocessing
import os
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.executing import Outcome, examine, make_resources
from tests.fuzz.generating import Resources, make_case
from tests.fuzz.mutating import examine_file, make_file

_COMMAND_EVERY = 25
"""Every so many cases, one goes through the command line."""


class _TooLongError(BaseException):
    """A case has used its processor time."""


def _worker(connection: Connection, options: argparse.Namespace, folder: Path) -> None:
    """Try the cases that are asked for."""
    import torch

    torch.set_num_threads(1)
    resources = make_resources(folder)
    os.chdir(folder)  # where whatever takes a default or a relative path falls
    used = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + int(options.gigabytes * 2**30),) * 2)
    signal.signal(signal.SIGPROF, _too_long)
    connection.send(None)
    while (number := connection.recv()) is not None:
        signal.setitimer(signal.ITIMER_PROF, options.seconds)
        try:
            outcome = _tried(options, number, resources)
        except _TooLongError as error:
            outcome = Outcome("hang", f"more than {options.seconds:g} s of processor time", _deepest(error))
        except MemoryError:
            outcome = Outcome("memory", f"more than {options.gigabytes:g} GB")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send((number, outcome))


def _tried(options: argparse.Namespace, number: int, resources: Resources) -> Outcome:
    if options.what == "files":
        return examine_file(make_file(options.seed, number), resources)
    return examine(make_case(options.seed, number, resources), resources, number % _COMMAND_EVERY == 0)


def _too_long(*_: Any) -> None:
    raise _TooLongError


def _deepest(error: BaseException) -> str:
    places, trace = [], error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "ray_pcasgd" in code.co_filename:
            places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return places[-1] if places else ""


class Process:
    """A worker, which is started anew where it has died or takes too long."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.number: int | None = None
        self.began = 0.0
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_worker, args=(theirs, self.options, self.folder), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()

    def ask(self, number: int) -> None:
        self.number, self.began = number, time.monotonic()
        self.connection.send(number)

    def answer(self) -> tuple[int, Outcome] | None:
        """Return what became of the case, if that is known by now."""
        assert self.number is not None
        try:
            if self.connection.poll(0.05):
                number, outcome = self.connection.recv()
                self.number = None
                return number, outcome
        except (EOFError, OSError):
            number, self.number = self.number, None
            self.process.join()
            outcome = Outcome("killed", f"the process ended with {self.process.exitcode}")
            self.start()
            return number, outcome
        if time.monotonic() - self.began > self.options.patience:
            number, self.number = self.number, None
            self.process.kill()
            self.process.join()
            self.start()
            return number, Outcome("hang", f"no answer within {self.options.patience:g} s")
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
