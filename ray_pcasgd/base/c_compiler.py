"""C that is compiled where it runs, by the machine's own compiler; whoever asks goes on without it where there is none.

A process compiles for itself, in a few tenths of a second: nothing is left on a disk that a later process, perhaps on
another processor, would have to trust.
"""

import ctypes
import logging
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from ray_pcasgd.base.text import one_line

logger = logging.getLogger("ray_pcasgd")

_COMPILERS = ("cc", "gcc", "clang")

# No -ffast-math, and no product and sum in one rounding: the bits are to be those of single operations. Measured,
# gcc's -O3 makes loops over long vectors a third slower than -O2 does.
_FLAGS = ("-O2", "-ftree-vectorize", "-ffp-contract=off", "-shared", "-fPIC")

_FOR_THIS_PROCESSOR = ("-march=native",)

_LONGEST_SECONDS = 60


@cache
def compiled(source: Path, *flags: str) -> ctypes.CDLL | None:
    """Return the library that a C file makes, compiled once a process; ``None`` without a compiler that makes it."""
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        logger.info("there is no C compiler (%s): it goes on without %s", ", ".join(_COMPILERS), source.name)
        return None
    command = [compiler, *_FLAGS, *flags, str(source)]
    try:
        with tempfile.TemporaryDirectory(prefix="ray_pcasgd_") as folder:
            library = str(Path(folder) / "library.so")
            try:
                _compile([*command, *_FOR_THIS_PROCESSOR, "-o", library])
            except subprocess.CalledProcessError:  # some compilers do not know this processor
                _compile([*command, "-o", library])
            return ctypes.CDLL(library)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
        logger.info("it goes on without %s: %s", source.name, one_line(f"{error} {said}", 300))
    return None


def _compile(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=_LONGEST_SECONDS)
