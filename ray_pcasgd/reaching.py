"""How another process reaches a run on its way: the address that the run has noted, before Ray is imported."""

import json
import os
import socket
from pathlib import Path

_ANSWER_SECONDS = 5.0


class NotRunningError(RuntimeError):
    """There is no run on its way in that folder."""


def location_of(run: str) -> str:
    """Return the location by which a run's actors are known; ``run`` is its folder."""
    return run if "://" in run else str(Path(run).resolve())


def address_of(run: str, address: str | None = None) -> str:
    """Return the address of a run's cluster: the one that is given, RAY_ADDRESS, or what the run has noted.

    Raises:
        NotRunningError: there is none, or nobody answers there.

    """
    address = address or os.environ.get("RAY_ADDRESS") or _noted_address(location_of(run))
    if address is None:
        raise NotRunningError(f"{run}: no run on a Ray cluster; allowed is the folder of one that is on its way")
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if port.isdecimal() and "//" not in address:
        # Ray itself would try for minutes.
        try:
            socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
        except OSError as error:
            raise NotRunningError(
                f"{run}: is not on its way; its cluster {address} does not answer ({error})"
            ) from None
    return address


def present_token() -> None:
    """Let Ray present its user's token to the clusters that it joins, where there is one; call before importing Ray."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or path.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _noted_address(location: str) -> str | None:
    """Return the cluster that a run's events name last."""
    events = Path(location) / "events.jsonl"
    if not events.is_file():
        return None
    noted = None
    for line in events.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "cluster_joined":
            noted = str(event["detail"])
    return noted
