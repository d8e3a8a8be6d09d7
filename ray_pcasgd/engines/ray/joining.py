"""Which cluster an address names, and whether it lets us in: asked in seconds; Ray's own client tries for minutes.

The token goes only to clusters that the user has named or started, and only once they ask for it.
"""

import os
import stat
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import grpc
from ray import _raylet
from ray._common.utils import get_ray_address_file
from ray._private import services
from ray._private.authentication.authentication_token_setup import _enable_token_auth
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from ray_pcasgd.base.text import one_line
from ray_pcasgd.engines.base import RunError
from ray_pcasgd.engines.ray.discovery import host_and_port

# Made by protoc and by Cython, so without types.
_ray: Any = _raylet
_messages: Any = gcs_service_pb2
_nodes: Any = gcs_pb2

ANSWER_SECONDS = 10.0
"""Longest wait for a cluster to answer."""
_LONGEST_ADDRESS = 300


class ClusterError(RunError):
    """There is no cluster at an address, it does not let this user in, or Ray does not start here."""


def open_address(subject: str, address: str) -> str:
    """Return the ``host:port`` of the cluster that an address names, once it has let this user in.

    Args:
        subject: which setting or option names it, for errors, such as ``engine.address``.
        address: ``host:port``, or ``auto`` for the one that this user runs on this machine.

    Raises:
        ValueError: it is not the address of a cluster.
        ClusterError: no cluster answers there, it does not take the user's token, or it has no node on this machine.

    """
    named = f"{subject} = {address!r}"
    if address == "auto":
        address = own_cluster(named, frozenset(_own_addresses()), started_last())
    host_and_port(subject, address)
    nodes = _local_nodes(named, address)
    if not nodes:
        raise ClusterError(
            f"{named}: no node of that cluster runs on this machine; allowed is a command on one of them"
        )
    return address


def _local_nodes(named: str, address: str) -> list[bytes]:
    """Return the cluster's nodes that run on this machine."""
    try:
        return _asked(address)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(f"{named}: no Ray cluster answers there ({reason_of(error)})") from None
    if is_token_auth_enabled():
        raise ClusterError(f"{named}: the cluster does not take this user's token (ray get-auth-token prints it)")
    if "RAY_AUTH_MODE" in os.environ:
        raise ClusterError(
            f"{named}: the cluster asks for a token; allowed with it is RAY_AUTH_MODE=token, not "
            f"{os.environ['RAY_AUTH_MODE']}"
        )
    if not _ray.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True):
        raise ClusterError(f"{named}: the cluster asks for a token; allowed is its own one, in ~/.ray/auth_token")
    _enable_token_auth()
    return _local_nodes(named, address)


def _asked(address: str) -> list[bytes]:
    """Ask a cluster for its nodes on this machine; Ray's own channel shows the token where that is switched on."""
    selectors = [
        _messages.GetAllNodeInfoRequest.NodeSelector(node_id=bytes.fromhex(number))
        for number in services.find_node_ids()
    ]
    request = _messages.GetAllNodeInfoRequest(node_selectors=selectors, state_filter=_nodes.GcsNodeInfo.ALIVE)
    channel = init_grpc_channel(address, [("grpc.enable_http_proxy", 0)])
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        answer = stub.GetAllNodeInfo(request, timeout=ANSWER_SECONDS)
    finally:
        channel.close()
    return [node.node_id for node in answer.node_info_list] if selectors else []


def reason_of(error: grpc.RpcError) -> str:
    """Return why a cluster did not answer, as gRPC has it, in plain words where we know it."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {ANSWER_SECONDS:g} s"
    details = one_line(error.details(), 200)
    return next((words for mark, words in _WORDS.items() if mark in details), details)


_WORDS = {
    "Connection refused": "connection refused",
    "Domain name not found": "no such host",
    "HTTP/2": "another kind of server answers there",
}


def own_cluster(named: str, running: Set[str], started_last: str | None) -> str:
    """Return the address of the cluster that a user runs on a machine, of the ones that are ``running`` there.

    Ray's own ``auto`` takes any process of any user for it that looks like one, and shows the token there.
    """
    if started_last is not None and started_last in running:
        return started_last
    if not running:
        raise ClusterError(f"{named}: this user runs no Ray cluster on this machine; allowed is host:port")
    if len(running) > 1:
        raise ClusterError(f"{named}: this user runs several clusters here; allowed are {', '.join(sorted(running))}")
    return next(iter(running))


def _own_addresses() -> Iterator[str]:
    """Yield the addresses of the clusters whose nodes this user runs on this machine."""
    import psutil  # Ray brings it along, and makes it known as it is imported

    for process in psutil.process_iter(["cmdline", "uids"]):
        command, users = process.info["cmdline"], process.info["uids"]
        if users is None or users.effective != os.geteuid() or not services._is_raylet_process(command):
            continue
        for argument in command:
            name, _, value = argument.partition("=")
            if name == "--gcs-address" and value:
                yield value


def started_last() -> str | None:
    """Return the address that ``ray start`` noted last, if for this user: anybody may write to the note's folder."""
    try:
        descriptor = os.open(Path(get_ray_address_file(None)), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or not stat.S_ISREG(status.st_mode):
            return None
        return file.read(_LONGEST_ADDRESS).decode("ascii", errors="replace").strip()
