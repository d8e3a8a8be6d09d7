"""How another process reaches a running run.

Its driver notes the cluster for its own user, outside of the run's folder, whose files may come from anybody.
"""

import contextlib
import fcntl
import hashlib
import ipaddress
import json
import os
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ray_pcasgd.base.foreign_files import events_of
from ray_pcasgd.base.locations import refuse_key
from ray_pcasgd.base.own_state import digests_in, own_folder

_LONGEST_NOTE = 100_000
"""Bytes of a note that are read."""
_TRIES = 20


class NotRunningError(RuntimeError):
    """The run is not running, or cannot be reached."""


class NoClusterError(NotRunningError):
    """The run is running, and has no agents on a cluster."""


class NoAnswerError(NotRunningError):
    """The run's cluster has not answered."""


def location_of(run: str) -> str:
    """Return the location by which a run's actors are known; ``run`` is its folder.

    Raises:
        SettingsError: it holds a key.

    """
    refuse_key(run)
    return run.rstrip("/") if "://" in run else str(Path(run).resolve())


def host_and_port(subject: str, address: str) -> tuple[str, int]:
    """Return the host and the port of a cluster's address; ``subject`` is what has named it.

    >>> host_and_port("engine.address", "head.example:6379")
    ('head.example', 6379)

    Raises:
        ValueError: it is not an address.

    """
    found = re.fullmatch(r"(?:([A-Za-z0-9._-]+)|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", address)
    if not found or not 0 < int(found[3]) < 2**16:
        raise ValueError(f"{subject} = {address!r}: allowed are host:port, and auto for your own cluster here")
    return found[1] or found[2], int(found[3])


def is_loopback(address: str) -> bool:
    """Return whether a cluster's address can be reached from this machine alone."""
    host, _ = host_and_port("address", address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Address(NamedTuple):
    """Where a cluster is."""

    subject: str
    """What has named it, for errors: ``--address``, ``RAY_ADDRESS``, or the run itself."""
    address: str


def address_of(run: str, given: str | None = None) -> Address:
    """Return the address of a run's cluster: the one that is given, what its driver has noted, or RAY_ADDRESS.

    An address in the run's folder is shown, and never used: the folder may come from anybody.

    Raises:
        NotRunningError: there is no such address.
        NoClusterError: a driver of this user has the run; its agents are on no cluster.

    """
    if given:
        return Address("--address", given)
    location = location_of(run)
    note = _note(location)
    if note.address is not None:
        return Address("its cluster", note.address)
    is_driven = _is_driven(location)
    if is_driven:
        raise NoClusterError(
            f"{run}: is running, with no agents on a cluster: on the local engine, or it is starting or ending"
        )
    if note.has_ended or is_driven is False:
        raise NotRunningError(f"{run}: its driver has ended; ray-pcasgd train --resume goes on with it")
    if from_environment := os.environ.get("RAY_ADDRESS"):
        return Address("RAY_ADDRESS", from_environment)
    reason = "this user has no run here that is running"
    if "://" not in location and not Path(location).is_dir():
        reason = f"no such folder, and {reason}"
    elif (Path(location) / "result.json").exists():
        reason += "; it has its result already"
    elif named := _named_in_folder(location):
        reason += f"; its events.jsonl names the cluster {named}: if you know that one, --address {named}"
    raise NotRunningError(f"{run}: {reason}")


def _named_in_folder(location: str) -> str:
    """Return the cluster that a run's events name last, if they name one."""
    joined = [event for event in events_of(Path(location) / "events.jsonl") if event["kind"] == "cluster_joined"]
    named = joined[-1].get("detail", "") if joined else ""
    try:
        host_and_port("address", named)
    except ValueError:
        return ""
    return str(named)


@contextmanager
def noted(location: str, address: str) -> Iterator[None]:
    """Note, for as long as a run is running, on which cluster it is; its driver calls this.

    Where the note cannot be written, the run goes on, and commands need the address.
    """
    note = {"location": location, "address": address, "machine": platform.node()}
    with _kept("running", location, json.dumps(note)):
        yield


@contextmanager
def driven(location: str) -> Iterator[None]:
    """Note, for as long as a driver of this user has a run, that it is running, on whatever engine."""
    with _kept("driving", location, ""):
        yield


@contextmanager
def _kept(kind: str, location: str, note: str) -> Iterator[None]:
    """Keep a note of a run, which is locked; where it cannot be written, there is none."""
    descriptor, path = -1, Path()
    with contextlib.suppress(OSError):
        path = _note_of(location, kind)
        descriptor = _locked(path)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, note.encode())
        _forget_ended(path)
    try:
        yield
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


class _Note(NamedTuple):
    """What a driver has noted of its run."""

    address: str | None = None
    """Of its cluster; ``None`` where no cluster can be reached from here."""
    has_ended: bool = False
    """Whether the driver ended without removing its note."""


def _note(location: str) -> _Note:
    """Return what the driver of a run has noted.

    It holds a lock on its note, which ends with it: the port of a cluster that is gone may be another's by now.
    """
    try:
        descriptor = os.open(_note_of(location), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return _Note()
    with os.fdopen(descriptor, "rb") as file:
        if _lock(file.fileno(), fcntl.LOCK_SH):
            return _Note(has_ended=True)
        try:
            note = json.loads(file.read(_LONGEST_NOTE))
            address = str(note["address"])
            # On another machine that shares the home folder, loopback leads to another process.
            is_reached = note["machine"] == platform.node() or not is_loopback(address)
            return _Note(address if note["location"] == location and is_reached else None)
        except (ValueError, KeyError, TypeError, OSError):
            return _Note()


def _is_driven(location: str) -> bool | None:
    """Return whether a driver of this user has a run; ``None`` where none has had it, or it has ended as it should."""
    try:
        descriptor = os.open(_note_of(location, "driving"), os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        return not _lock(file.fileno(), fcntl.LOCK_SH)


def _note_of(location: str, kind: str = "running") -> Path:
    return own_folder(kind) / hashlib.blake2b(location.encode(errors="replace"), digest_size=16).hexdigest()


def _locked(path: Path) -> int:
    """Return the file of that path, locked for this process.

    Raises:
        OSError: another driver of the same run has it.

    """
    for _ in range(_TRIES):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if _lock(descriptor, fcntl.LOCK_EX):
            with contextlib.suppress(OSError):
                if _is_at(descriptor, path):
                    return descriptor
        # It was removed meanwhile, or another process looks at it, which will be done in an instant.
        os.close(descriptor)
        threading.Event().wait(0.02)
    raise OSError(f"{path} is locked")


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _forget_ended(own: Path) -> None:
    """Remove the notes of drivers that were killed."""
    for path in digests_in(own.parent):
        if path != own:
            with contextlib.suppress(OSError), os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "rb") as file:
                # Another driver may have put its own note in the place of one that was removed meanwhile.
                if _lock(file.fileno(), fcntl.LOCK_EX) and _is_at(file.fileno(), path):
                    path.unlink()


def _is_at(descriptor: int, path: Path) -> bool:
    return os.fstat(descriptor).st_ino == path.stat().st_ino
