"""Files of run folders, which may come from anybody: read in bounded time and memory, checked, or refused."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from ray_pcasgd.base.text import one_line

MOST_BYTES = 16 * 2**20
"""Of a file that is read as a whole."""
_MOST_EVENT_BYTES = 256 * 2**20
"""Bytes of a run's events that are read at most, the last ones."""
_LONGEST_LINE = 2**20
_LONGEST_TEXT = 2000
"""Characters of an event's text that are kept."""
_LARGEST = 10**15


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading, if it is a file: a pipe or a device would be waited for, or never end.

    Raises:
        OSError: it cannot be read, or is not a file.

    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    return os.fdopen(descriptor, "rb")


def read_text(path: Path, most_bytes: int = MOST_BYTES, pipes: bool = False) -> str:
    """Return a UTF-8 file's text, with or without a byte order mark.

    ``pipes``: whether it may be a pipe too, as the shell's ``<(...)`` is.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it is too long, or not UTF-8.

    """
    with path.open("rb") if pipes else open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the one mapping that a JSON file holds.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: it does not hold one mapping.

    """
    try:
        content = json.loads(read_text(path))
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON ({one_line(error, 200)})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}; allowed is a mapping")
    return content


def events_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a run's ``events.jsonl``, which may not exist.

    Lines that hold no event are left out, as the last one is where its writer was killed. Of each event there are the
    known parts alone, its texts in one line each.
    """
    try:
        file = open_regular(path)
    except OSError:
        return
    with file:
        for line in _lines(file):
            event = _event(line)
            if event is not None:
                yield event


def _lines(file: BufferedReader) -> Iterator[bytes]:
    """Yield the lines that are not too long."""
    begins = max(0, os.fstat(file.fileno()).st_size - _MOST_EVENT_BYTES)
    file.seek(begins)
    read, is_inside = 0, begins > 0  # of a line that began before
    while read < _MOST_EVENT_BYTES and (line := file.readline(_LONGEST_LINE)):
        read += len(line)
        is_whole = line.endswith(b"\n") or len(line) < _LONGEST_LINE
        if is_whole and not is_inside:
            yield line
        is_inside = not is_whole


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, Mapping) or not isinstance(found.get("kind"), str):
        return None
    event: dict[str, Any] = {}
    for key, kind in (("time", float), ("kind", str), ("agent", int), ("step", int), ("detail", str)):
        value: Any = found.get(key)
        if kind is str and isinstance(value, str):
            event[key] = one_line(value, _LONGEST_TEXT)
        elif kind is not str and is_number(value):
            event[key] = kind(value)
    return event


def is_number(value: Any) -> bool:
    """Return whether a value that was read is a number of a size that figures have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST
