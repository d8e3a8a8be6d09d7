"""The driver's side of the fork server: starts one for this process, and names it to Ray's workers."""

import atexit
import math
import os
import secrets
import shlex
import subprocess
import sys
import threading
from pathlib import Path

from ray_pcasgd.engines.ray.forkserver.allocator import allocator
from ray_pcasgd.engines.ray.forkserver.launcher import read_at_start
from ray_pcasgd.engines.ray.settings import RaySettings

_HERE = Path(__file__).resolve().parent
_OWN = (
    *("agents.pair", "agents.peer", "agents.server", "agents.worker", "tasks.task"),
    *("engines.live.pair", "engines.live.peer", "engines.live.server", "engines.live.worker"),
    *("engines.raw_tensors", "engines.shared.door", "engines.shared.on_device", "engines.validation"),
)
_OF_RAY = ("asyncio", "filelock", "google.protobuf.descriptor_pb2", "jsonschema", "msgpack", "requests", "yaml")
"""Packages that Ray imports; never a part of Ray itself."""
_OF_TORCH = ("torch", "torch.fx.experimental.symbolic_shapes")
"""The second with the first measured curvature."""
MODULES = (*_OF_TORCH, *(f"ray_pcasgd.{name}" for name in _OWN), *_OF_RAY)
"""What agents need: what they import besides takes its time in each of them."""

# A node that has neither this interpreter nor the launcher takes its own Python: Ray's script, which is the next
# argument, lies in the packages of that.
_SCRIPT = (
    'p=$1 l=$2 n=$3; shift 3; test -x "$p" && test -f "$l" && exec "$p" -I -S "$l" "$n" "$@"; '
    'p=${1%/lib*/python*/*}/bin/python; test -x "$p" || p=python3; exec "$p" "$@"'
)


class ForkServerProcess:
    """A fork server that this process has started, and that ends with it.

    Args:
        threads: What Ray sets ``OMP_NUM_THREADS`` to in agents' processes.

    """

    def __init__(self, threads: int) -> None:
        self.made_for = _made_for(threads)
        self._name = secrets.token_hex(8)
        command = [sys.executable, str(_HERE / "server.py"), self._name, str(os.getpid()), str(threads), *MODULES]
        # It ends with its standard input, whose other end only this process holds. What it has to say nobody can use:
        # without it, agents start plainly.
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, env=os.environ | allocator()
        )
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def number(self) -> int:
        """The number of its process."""
        return self._process.pid

    @property
    def is_there(self) -> bool:
        """Whether its process, and this one's claim to it, are there."""
        return self._owner == os.getpid() and self._process.poll() is None

    @property
    def interpreter(self) -> str:
        """What is to be started in place of a worker's interpreter, for a shell; a plain one where it does not go."""
        return command(sys.executable, str(_HERE / "launcher.py"), self._name)

    def close(self) -> None:
        """End it; what it has forked goes on."""
        atexit.unregister(self.close)
        if self._owner != os.getpid():
            return  # a process that was forked of the owner
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()  # it may be importing still
        self._process.wait()


def command(python: str, launcher: str, name: str) -> str:
    """Return what starts a launcher with the arguments that follow; where there is none, what starts Ray's Python."""
    return "sh -c " + " ".join(map(shlex.quote, (_SCRIPT, "sh", python, launcher, name)))


_server: ForkServerProcess | None = None
_starting = threading.Lock()


def fork_server(settings: RaySettings) -> ForkServerProcess:
    """Return the fork server of this process, which runs share one after another; start it where it is not there."""
    global _server
    threads = max(math.floor(settings.cpus_per_agent or 1), 1)  # as Ray reckons it
    with _starting:
        if _server is None or not _server.is_there or _server.made_for != _made_for(threads):
            if _server is not None:
                _server.close()
            _server = ForkServerProcess(threads)
        return _server


def forks(settings: RaySettings) -> bool:
    """Return whether agents may be forked at all: on Linux, without GPUs, where it was not tried."""
    return settings.preload == "auto" and sys.platform == "linux" and not settings.gpus_per_agent


def _made_for(threads: int) -> tuple[int, dict[str, str]]:
    return threads, read_at_start()
