"""Damaged settings files: valid ones of every kind, changed byte by byte and line by line."""

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from ray_pcasgd.base.yaml_text import write_yaml
from ray_pcasgd.cli.starter import _SETTINGS
from ray_pcasgd.config import Config
from ray_pcasgd.runs.settings.loading import SettingsError, load_config
from tests.fuzz.executing import Outcome, _line, _refused, _where
from tests.fuzz.generating import Resources, make_case

_PIECES = [
    *(b": ", b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a ", b"!!python/object:os.system ", b"!!binary ", b"'", b'"'),
    *(b"|\n", b">\n", b"#", b"\t", b"\x00", b"\xff", b"\xc3\x28", b"<<: ", b"? ", b"%YAML 1.1\n", b"---\n", b"...\n"),
    *(b"null", b"~", b"1e999", b"9" * 400, b"0x", b".nan", b"\xef\xbb\xbf", b"=", b"!", b"@", b"`", b"name", b"value"),
    *(b"links", b"on"),
]


@cache
def originals() -> tuple[bytes, ...]:
    """Return the files that are damaged: the defaults as a run writes them, the starter, and settings of every kind."""
    whole = write_yaml(Config().model_dump(mode="json"))
    starter = _SETTINGS.format(name="some", module="tests.fuzz.objects")
    plain = [make_case(0, number, Resources(Path("nowhere"), ())).tree for number in range(60)]
    return tuple(text.encode() for text in (whole, starter, *filter(None, map(_text, plain))))


def _text(tree: dict[str, Any]) -> str | None:
    try:
        load_config(tree)
        return write_yaml(tree)
    except (SettingsError, yaml.YAMLError):
        return None


def make_file(seed: int, number: int) -> bytes:
    """Return one damaged file; the same each time."""
    random = Random(f"file {seed}:{number}")
    content = bytearray(random.choice(originals()))
    for _ in range(random.choice([1, 1, 1, 1, 2, 3, 8, 40])):
        if not content:
            break
        first = random.randrange(len(content))
        last = min(len(content), first + random.choice([1, 1, 2, 5, 20, 100]))
        match random.randrange(6):
            case 0:
                content[first] = random.randrange(256)
            case 1:
                del content[first:last]
            case 2:
                content[first:first] = random.choice(_PIECES)
            case 3:
                content[first:first] = content[first:last] * random.choice([1, 2, 30])
            case 4:
                lines = content.split(b"\n")
                random.shuffle(lines)
                content = bytearray(b"\n".join(lines))
            case _:
                lines = content.split(b"\n")
                place = random.randrange(len(lines))
                lines[place] = b" " * random.choice([1, 2, 3, 4]) + lines[place].lstrip()
                content = bytearray(b"\n".join(lines))
    return bytes(content)


def examine_file(content: bytes, resources: Resources) -> Outcome:
    """Load a file: settings, or an error of settings, come of it."""
    path = resources.folder / "damaged.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except SettingsError as error:
        return _refused(error)
    except Exception as error:
        return Outcome("traceback", _line(error), _where(error))
    return Outcome("ran", "")
