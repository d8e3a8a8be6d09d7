"""The fork server's process: imports what agents need, and forks whenever a launcher asks.

``python server.py NAME DRIVER THREADS MODULES``; run by its path. Never is Ray imported before a fork: it reads its
environment once. Nor is there a second thread, or a use of a GPU: neither comes through a fork.
"""

import contextlib
import gc
import importlib.util
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGES = str(Path(__file__).resolve().parents[4])
_FOLDER = str(Path(__file__).resolve().parent)
if __name__ == "__main__":
    # Where Python found this file: not where anything is to be imported from.
    sys.path[:] = [folder for folder in sys.path if folder != _FOLDER]
_PATH = list(sys.path)
"""Where a plain interpreter in the same environment looks for modules, without its script's own folder."""

_MESSAGE_BYTES = 1 << 20
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_THREADS = "OMP_NUM_THREADS"


class Forked(NamedTuple):
    """What a forked process has to become."""

    asked: dict[str, Any]
    descriptors: list[int]
    """Its standard input, output and error."""
    connection: socket.socket
    """To its launcher."""


def end_with(driver: int) -> None:
    """Let this process be killed when the thread of the driver that has started it ends, also while it imports."""
    import ctypes

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != driver:
        sys.exit("fork server: the driver has ended")


def load(modules: list[str], threads: str) -> None:
    """Import modules as an agent's process does, whose libraries read the number of their threads then.

    Ray's workers import NumPy with Ray itself, and torch when Ray has set the number of threads of the actor.
    """
    if importlib.util.find_spec("numpy"):
        importlib.import_module("numpy")
    unset = _THREADS not in os.environ
    if unset:
        os.environ[_THREADS] = threads
    for module in modules:
        with contextlib.suppress(ImportError):  # whoever is forked needs it, and says so
            importlib.import_module(module)
    if unset:
        del os.environ[_THREADS]


def require_fit() -> None:
    """Make sure that this process can be forked, or end it: agents then start plainly."""
    # NumPy's BLAS ends its threads before a fork, and starts them again when it is used.
    if (process := os.fork()) == 0:
        os._exit(0)
    os.waitpid(process, 0)
    if not has_one_thread():
        sys.exit("fork server: there is a second thread")
    if "ray" in sys.modules:
        sys.exit("fork server: Ray is imported")
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        sys.exit("fork server: a GPU is in use")


def has_one_thread() -> bool:
    """Return whether this process has no second thread, so that a fork of it has all that it has."""
    return len(list(Path("/proc/self/task").iterdir())) == 1


class ForkServer:
    """Forks whenever it is asked, and tells who asked how the process has ended."""

    def __init__(self, listener: socket.socket, surroundings: dict[str, Any]) -> None:
        self._listener = listener
        self._surroundings = surroundings
        self._selector = selectors.DefaultSelector()
        self._processes: dict[int, socket.socket] = {}
        """Connections to the launchers of processes that were forked, by the processes' numbers."""
        self._ended, self._wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def serve(self) -> Forked:
        """Serve until the driver ends; return only in the processes that are forked."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        for file in (self._listener, self._ended, 0):
            self._selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    os._exit(0)
                if key.fileobj == self._ended:
                    self._reap()
                elif key.fileobj is self._listener:
                    self._welcome()
                else:
                    connection: Any = key.fileobj
                    if (forked := self._answer(connection)) is not None:
                        return forked

    def _welcome(self) -> None:
        from ray_pcasgd.engines.ray.forkserver.launcher import READY, is_own

        connection, _ = self._listener.accept()
        if not is_own(connection):
            connection.close()
            return
        self._selector.register(connection, selectors.EVENT_READ)
        with contextlib.suppress(OSError):
            connection.send(READY)

    def _answer(self, connection: socket.socket) -> Forked | None:
        """Take in what a launcher asks, or that it has ended."""
        message = b""
        descriptors: list[int] = []
        with contextlib.suppress(OSError):
            message, descriptors, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
        if not message:
            self._killed(connection)
        elif (forked := self._fork(connection, json.loads(message), descriptors)) is not None:
            return forked
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _fork(self, connection: socket.socket, asked: dict[str, Any], descriptors: list[int]) -> Forked | None:
        given, own = asked["surroundings"], self._surroundings
        if others := [name for name in own if given.get(name) != own[name]]:
            self._refuse(connection, f"other {' and '.join(others)} than those of the fork server")
            return None
        if len(descriptors) != 3 or not has_one_thread():
            self._refuse(connection, "it cannot be")
            return None
        try:
            process = os.fork()
        except OSError as error:
            self._refuse(connection, str(error))
            return None
        if process:
            self._processes[process] = connection
            return None
        self._leave_all_but(connection)
        return Forked(asked, descriptors, connection)

    def _leave_all_but(self, connection: socket.socket) -> None:
        """Close what a forked process has of the server: a launcher is to see the end of its own process alone."""
        signal.set_wakeup_fd(-1)
        open_here: set[Any] = {key.fileobj for key in self._selector.get_map().values()} | {*self._processes.values()}
        self._selector.close()
        for file in open_here - {connection, 0}:
            os.close(file) if isinstance(file, int) else file.close()
        os.close(self._wakes)

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        from ray_pcasgd.engines.ray.forkserver.launcher import REFUSED

        with contextlib.suppress(OSError):
            connection.send(REFUSED + reason.encode())

    def _killed(self, connection: socket.socket) -> None:
        """Let a process end with its launcher: Ray knows no other until the process has told it its own number."""
        self._selector.unregister(connection)
        for process, launcher in self._processes.items():
            if launcher is connection:
                os.kill(process, signal.SIGKILL)
                return
        connection.close()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._ended, 4096)
        while self._processes:
            process, status = os.waitpid(-1, os.WNOHANG)
            if not process:
                return
            connection = self._processes.pop(process)
            with contextlib.suppress(OSError):
                connection.send(str(os.waitstatus_to_exitcode(status)).encode())
            with contextlib.suppress(KeyError):  # its launcher was killed
                self._selector.unregister(connection)
            connection.close()


def take_on(forked: Forked) -> None:
    """Make this process what one that its launcher had started would be.

    Raises:
        OSError, ValueError: it cannot be that.

    """
    asked = forked.asked
    os.setpgid(0, 0)  # as Ray does with each worker
    for number, descriptor in enumerate(forked.descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in asked["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, asked["blocked"])
    for name, limits in asked["limits"].items():
        kind, limits = getattr(resource, name), tuple(limits)
        if resource.getrlimit(kind) != limits:
            resource.setrlimit(kind, limits)
    os.setpriority(os.PRIO_PROCESS, 0, asked["niceness"])
    Path("/proc/self/oom_score_adj").write_text(asked["out of memory"], encoding="ascii")
    os.chdir(asked["directory"])
    set_environment(asked["environment"])
    sys.argv = asked["arguments"]
    sys.path[:] = [*([] if sys.flags.safe_path else [str(Path(sys.argv[0]).resolve().parent)]), *_PATH]
    tempfile.tempdir = None  # found anew by the environment
    draw_apart()


def draw_apart() -> None:
    """Seed libraries' own generators anew, as each process does at its start; Python's own does it by itself."""
    numpy: Any = sys.modules.get("numpy")
    torch: Any = sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed()
    if torch is not None:
        torch.default_generator.seed()


def set_environment(wanted: dict[str, str]) -> None:
    """Change only what differs: the title of a process is written where the first of its variables was."""
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def become(forked: Forked) -> None:
    """Run what the launcher was asked to run, as the interpreter would."""
    from ray_pcasgd.engines.ray.forkserver.launcher import FORKED, REFUSED

    try:
        take_on(forked)
    except (OSError, ValueError) as error:
        forked.connection.send(REFUSED + str(error).encode())
        os._exit(1)
    forked.connection.send(FORKED + str(os.getpid()).encode())
    runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    """Serve; or, in a process that is forked, become what was asked for."""
    name, driver, threads, *modules = sys.argv[1:]
    end_with(int(driver))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the driver, not with a run
    found = importlib.util.find_spec("ray_pcasgd")
    if found is None or found.origin is None or not Path(found.origin).is_relative_to(_PACKAGES):
        sys.path.insert(0, _PACKAGES)  # the driver's own
    from ray_pcasgd.engines.ray.forkserver import allocator
    from ray_pcasgd.engines.ray.forkserver.launcher import address_of, surroundings

    allocator.forget()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address_of(name))
    listener.listen(4096)  # whoever asks meanwhile waits
    before = surroundings()
    gc.disable()
    load(modules, threads)
    require_fit()
    gc.enable()
    gc.freeze()
    become(ForkServer(listener, before).serve())


if __name__ == "__main__":
    main()
