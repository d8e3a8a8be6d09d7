"""Whoever can write where a sweep lies runs no code in its driver: it reads no pickles but its own."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from ray_pcasgd.base.own_state import own_folder
from ray_pcasgd.sweep.guarded import TunesStorage, UnknownFileError, guarded, pickles_in
from ray_pcasgd.sweep.written import Written

PICKLES = ("tuner.pkl", "experiment_state-1.json", "searcher-state-1.pkl", "callback-states-1.pkl", "trial/error.pkl")
READERS: dict[str, Callable[[fs.FileSystem, str, Path], Any]] = {
    "stream": lambda files, path, to: files.open_input_stream(path).readall(),
    "file": lambda files, path, to: files.open_input_file(path).readall(),
    "copy": lambda files, path, to: fs.copy_files(path, str(to / "copy"), source_filesystem=files),
}


def storage(place: Path) -> fs.FileSystem:
    """Return storage as a new process gets it."""
    return guarded(TunesStorage(fs.LocalFileSystem(), str(place)), "sweep", Written(str(place))).files


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """What a sweep has written: Tune copies a folder of its own there."""
    own = tmp_path / "own"
    for name in (*PICKLES, "trial/result.json", "trial/checkpoint_0/state.pt"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text(f"whole {name}")
    fs.copy_files(str(own), str(tmp_path / "sweep"), destination_filesystem=storage(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("reader", READERS)
def test_a_pickle_is_read_as_it_was_written_alone(name: str, reader: str, place: Path) -> None:
    path = place / "sweep" / name
    assert path.read_text() == f"whole {name}"
    READERS[reader](storage(place), str(path), place)
    path.write_text("another's")
    with pytest.raises(UnknownFileError, match=f"^{name} is not as this user's sweep has left it, and may run code"):
        READERS[reader](storage(place), str(path), place)
    (place / "sweep" / "searcher-state-2.pkl").write_text("another's")
    with pytest.raises(UnknownFileError):
        READERS[reader](storage(place), str(place / "sweep" / "searcher-state-2.pkl"), place)


def test_what_a_killed_sweep_was_writing_is_known_as_it_was_before_and_after(place: Path) -> None:
    files, path = storage(place), str(place / "sweep" / "experiment_state-1.json")
    for number in range(3):
        with files.open_output_stream(path) as stream:
            stream.write(b"state ")
            stream.write(str(number).encode())
    for content in ("state 0", "state 2", "whole experiment_state-1.json"):
        Path(path).write_text(content)
        assert storage(place).open_input_stream(path).readall() == content.encode()
    Path(path).write_text("state 3")
    with pytest.raises(UnknownFileError):
        storage(place).open_input_stream(path)


def test_copies_that_tune_makes_in_the_driver_check_and_those_of_trials_do_not(place: Path) -> None:
    path = place / "sweep" / "tuner.pkl"
    path.write_text("another's")
    with pytest.raises(UnknownFileError):
        copy.deepcopy(storage(place)).open_input_stream(str(path))
    assert pickle.loads(pickle.dumps(storage(place))).open_input_stream(str(path)).readall() == b"another's"
    with pytest.raises(OSError, match="nothing is appended to pickles"):
        storage(place).open_append_stream(str(path))


def test_other_files_are_neither_noted_nor_checked(place: Path) -> None:
    for name in ("trial/result.json", "trial/checkpoint_0/state.pt", "packs.json", "runs/first/result.json"):
        path = place / "sweep" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("changed")
        assert storage(place).open_input_stream(str(path)).readall() == b"changed"
    found = dict(pickles_in(TunesStorage(fs.LocalFileSystem(), str(place)), "sweep"))
    assert found == {name: f"whole {name}".encode() for name in PICKLES}


def test_of_what_cannot_be_noted_nothing_is_known(place: Path) -> None:
    notes = list(own_folder("swept").iterdir())
    for note in notes:
        note.unlink()
        note.mkdir()
    with storage(place).open_output_stream(str(place / "sweep" / "tuner.pkl")) as stream:
        stream.write(b"new")
    with pytest.raises(UnknownFileError):
        storage(place).open_input_stream(str(place / "sweep" / "tuner.pkl"))
    for note in notes:
        note.rmdir()
