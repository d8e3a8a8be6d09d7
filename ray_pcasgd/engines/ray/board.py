"""What a run on actors shows to other processes, and what they say to it: texts in the cluster's own key-value store.

Asked by plain calls to the cluster's head: whoever only looks needs no Ray in its process, and is no job there.
"""

import contextlib
import hashlib
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from ray_pcasgd.engines.ray.naming import Identity

_messages: Any = gcs_service_pb2  # made by protoc, so without types
_NAMESPACE = b"ray_pcasgd"
_MOST_BYTES = 256 * 2**20
"""Of an answer; gRPC's own limit, 4 MiB, is less than the status of a run of a thousand agents."""
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", _MOST_BYTES)]
_MOST_COMMANDS = 100
"""Commands that are taken at once."""
_POLL_SECONDS = 0.05
_ALIVE_SECONDS = 2.0
"""How often one who waits for an answer asks whether the run is still there."""
OWN_SECONDS = 2.0
"""Longest wait of a run's driver, whose agents are waiting meanwhile."""
OTHERS_SECONDS = 10.0
"""Longest wait of other processes."""


class EndedError(Exception):
    """The run has ended."""


class Board:
    """One run's place in the store: its driver shows its status and takes commands, others read and ask.

    All methods but ``show`` raise ``grpc.RpcError`` where the cluster does not answer.
    """

    def __init__(self, channel: grpc.Channel, identity: Identity, seconds: float) -> None:
        self._store: Any = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
        self._actors: Any = gcs_service_pb2_grpc.ActorInfoGcsServiceStub(channel)
        self._identity = identity
        self._seconds = seconds
        self._place = hashlib.blake2b(identity.location.encode(errors="replace"), digest_size=16).hexdigest()
        self._showing: Any = None

    def show(self, status: str) -> None:
        """Show the run's status, without waiting for the cluster; nothing happens while it has not taken the last."""
        if self._showing is None or self._showing.done():
            request = self._writing("status", status)
            self._showing = self._store.InternalKVPut.future(request, timeout=self._seconds)

    def status(self) -> str:
        """Return what the run shows; empty where it has shown nothing yet."""
        return self._read("status").decode(errors="replace")

    def is_there(self) -> bool:
        """Return whether actors of the run are on the cluster."""
        asked = _messages.ListNamedActorsRequest(all_namespaces=False, ray_namespace=self._identity.namespace)
        return bool(self._actors.ListNamedActors(asked, timeout=self._seconds).named_actors_list)

    def ask(self, command: str, seconds: float) -> str | None:
        """Give the run a command, and return its answer; ``None`` where there is none within that time.

        Raises:
            EndedError: the run has ended before it answered.

        """
        number = secrets.randbits(62)
        self._store.InternalKVPut(self._writing(f"command/{number}", command), timeout=self._seconds)
        asked_at = alive_at = time.monotonic()
        try:
            while not (answer := self._read(f"answer/{number}")):
                now = time.monotonic()
                if now - asked_at > seconds:
                    return None
                if now - alive_at > _ALIVE_SECONDS:
                    alive_at = now
                    if not self.is_there() and not self._read(f"answer/{number}"):
                        raise EndedError
                threading.Event().wait(_POLL_SECONDS)
            return answer.decode(errors="replace")
        finally:
            with contextlib.suppress(grpc.RpcError):
                self._remove(f"command/{number}")
                self._remove(f"answer/{number}")

    def asked(self) -> Iterator[tuple[int, str]]:
        """Take the commands that wait for the run: yield their numbers and their texts."""
        prefix = self._key("command/")
        asked = _messages.InternalKVKeysRequest(namespace=_NAMESPACE, prefix=prefix)
        for key in sorted(self._store.InternalKVKeys(asked, timeout=self._seconds).results)[:_MOST_COMMANDS]:
            number = key.removeprefix(prefix).decode(errors="replace")
            command = self._read(f"command/{number}")
            self._remove(f"command/{number}")
            if command and number.isdecimal():
                yield int(number), command.decode(errors="replace")

    def answer(self, number: int, text: str) -> None:
        """Answer a command."""
        self._store.InternalKVPut(self._writing(f"answer/{number}", text), timeout=self._seconds)

    def clear(self) -> None:
        """Remove the run's status and the commands that it has not taken; answers are for those who have asked."""
        if self._showing is not None:
            self._showing.exception()  # which waits: a status that arrives later would stay
        self._remove("status")
        request = _messages.InternalKVDelRequest(namespace=_NAMESPACE, key=self._key("command/"), del_by_prefix=True)
        self._store.InternalKVDel(request, timeout=self._seconds)

    def _key(self, name: str) -> bytes:
        return f"{self._place}/{name}".encode()

    def _writing(self, name: str, text: str) -> Any:
        value = text.encode(errors="replace")
        return _messages.InternalKVPutRequest(namespace=_NAMESPACE, key=self._key(name), value=value, overwrite=True)

    def _read(self, name: str) -> bytes:
        request = _messages.InternalKVGetRequest(namespace=_NAMESPACE, key=self._key(name))
        value: bytes = self._store.InternalKVGet(request, timeout=self._seconds).value
        return value

    def _remove(self, name: str) -> None:
        request = _messages.InternalKVDelRequest(namespace=_NAMESPACE, key=self._key(name))
        self._store.InternalKVDel(request, timeout=self._seconds)


@contextmanager
def board_at(address: str, identity: Identity, seconds: float) -> Iterator[Board]:
    """Return a run's board on the cluster with that address, ``host:port``."""
    channel = init_grpc_channel(address, _OPTIONS)
    try:
        yield Board(channel, identity, seconds)
    finally:
        channel.close()


@contextmanager
def own_board(address: str, identity: Identity) -> Iterator[Board]:
    """Return the board of this driver's own run: it has no status and no commands before the run, and none after it."""
    with board_at(address, identity, OWN_SECONDS) as board:
        with contextlib.suppress(grpc.RpcError):
            board.clear()
        try:
            yield board
        finally:
            with contextlib.suppress(grpc.RpcError):
                board.clear()
