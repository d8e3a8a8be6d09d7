"""What Ray starts in place of an agent's interpreter: it asks the fork server for the process, or becomes it plainly.

``python -I -S launcher.py NAME SCRIPT ARGUMENTS``; run by its path and without packages, so that it starts in
hundredths of a second. It lives as long as the process that was forked: signals for it are passed on, and once it is
killed, the fork server kills the other.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

READY, REFUSED, FORKED = b"ready", b"refused", b"forked "

_READY_SECONDS = 30.0
"""Longest wait for the fork server to have imported everything. Ray gives a worker 60 s."""

_REQUEST_BYTES = 1 << 20
_CREDENTIALS = struct.Struct("3i")
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_")]
_READ_AT_START = (
    *("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_", "TZ"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "GOTO_", "BLIS_", "ATEN_", "TORCH", "PYTORCH", "DNNL_", "ONEDNN_"),
)
"""How variables begin that interpreters and libraries read once, when they start, so that a fork cannot change them."""

_SET_LATER = ("PYTHONBREAKPOINT", "KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK", "TORCHINDUCTOR_CACHE_DIR")
"""What Ray, scikit-learn and torch set in a driver while it runs; nothing of it counts when an agent starts."""


def address_of(name: str) -> str:
    """Return the address of a fork server: in Linux's abstract namespace, which has no files."""
    return f"\0ray-pcasgd-fork-{name}"


def is_own(connection: socket.socket) -> bool:
    """Return whether the process at the other end is of the same user."""
    given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(given)[1] == os.geteuid())


def read_at_start() -> dict[str, str]:
    """Return those of this process's environment variables that are read once."""
    names = sorted(name for name in os.environ if name.startswith(_READ_AT_START) and name not in _SET_LATER)
    return {name: os.environ[name] for name in names}


def surroundings() -> dict[str, Any]:
    """Return what a process has from its parent and cannot change later, or had better not.

    A process is forked only where it is the same as the launcher's: the same container, user and CPUs.
    """
    mask = os.umask(0)
    os.umask(mask)
    return {
        "variables": read_at_start(),
        "namespaces": [str(Path(f"/proc/self/ns/{name}").readlink()) for name in _NAMESPACES],
        "control groups": Path("/proc/self/cgroup").read_text(encoding="utf-8"),
        "ids": [*os.getresuid(), *os.getresgid(), *sorted(os.getgroups())],
        "CPUs": sorted(os.sched_getaffinity(0)),
        "mask of files": mask,
    }


def request(arguments: list[str], blocked: Iterable[int]) -> dict[str, Any]:
    """Return what the fork server has to know: what is run, and what the process is to have from this one."""
    return {
        "arguments": arguments,
        "environment": dict(os.environ),
        "directory": str(Path.cwd()),
        # Ray raises that of open files as it starts, after the fork server has been started.
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in sorted(_LIMITS)},
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "out of memory": Path("/proc/self/oom_score_adj").read_text(encoding="ascii"),
        "blocked": sorted(blocked),
        "ignored": sorted(n for n in signal.valid_signals() if signal.getsignal(n) is signal.SIG_IGN),
        "surroundings": surroundings(),
    }


def forked(name: str, arguments: list[str], blocked: Iterable[int]) -> tuple[socket.socket, int] | None:
    """Return the connection to a forked process, and its number; ``None`` where there is none.

    The process holds the other end as long as it lives, so that an end of the connection means that there is none.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.suppress(OSError):
        connection.settimeout(_READY_SECONDS)
        connection.connect(address_of(name))
        # Another user's process may have taken the name of one that has ended, and is not told our environment.
        if not is_own(connection) or connection.recv(len(READY)) != READY:
            raise OSError("no fork server")
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
        socket.send_fds(connection, [json.dumps(request(arguments, blocked)).encode()], [0, 1, 2])
        answer = connection.recv(100)
        if answer.startswith(FORKED):
            return connection, int(answer.removeprefix(FORKED))
        # Into the worker's log: it starts plainly, in seconds instead of tenths.
        print(f"fork server: not forked: {answer.removeprefix(REFUSED).decode()}", file=sys.stderr)
    connection.close()
    return None


def outlive(connection: socket.socket, process: int, blocked: Iterable[int]) -> int:
    """Pass on signals to a forked process as long as it lives; return its exit status, as a shell has it.

    ``blocked`` are the signals that stay blocked; those that have come since they all were are passed on, too.
    """

    def forward(number: int, _: Any) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(process, number)

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    status = connection.recv(100)  # empty where the fork server has ended, so that the status is not known
    code = int(status or 1)
    return code if code >= 0 else 128 - code


def main() -> None:
    """Become the worker, or stand for one that is forked."""
    name, *arguments = sys.argv[1:]
    # A signal that comes before there is anybody to pass it on to waits until there is.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    if (there := forked(name, arguments, blocked)) is None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.execv(sys.executable, [sys.executable, *arguments])
    sys.exit(outlive(*there, blocked))


if __name__ == "__main__":
    main()
