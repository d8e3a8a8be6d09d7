"""What is remembered outside of run folders: no more than so much, and nobody else's files."""

import hashlib
import os
from pathlib import Path

from ray_pcasgd.base.own_state import keep_newest


def test_the_oldest_own_files_go_and_other_files_stay(tmp_path: Path) -> None:
    names = [hashlib.blake2b(bytes([number]), digest_size=32).hexdigest() for number in range(5)]
    for age, name in enumerate(["mine.txt", *names]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    (tmp_path / "a folder").mkdir()
    keep_newest(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.txt", "a folder", *names[2:]}
