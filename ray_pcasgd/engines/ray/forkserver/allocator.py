"""The memory allocator of forked agents: jemalloc, which Ray's package ships, keeps what is freed for the next vector.

glibc's own gives each vector of more than 32 MB back to the system when it is freed, so that all pages of the next one
are asked for anew: ResNet-18's agents spent up to a tenth of their CPU time on that.
"""

import importlib.util
import os
from pathlib import Path

_LIBRARY, _OPTIONS = "LD_PRELOAD", "MALLOC_CONF"
_OURS = "RAY_PCASGD_ALLOCATOR"
"""Set where the others are not the user's own."""

# One arena for all threads, so that what one has freed serves the next. Memory is kept, long vectors' too, which have
# an arena of their own else, and in huge pages: the agent will need as much in its next step. With a finite
# muzzy_decay_ms, jemalloc 5.3 gave each of them back at once.
_KEEPING = "narenas:1,oversize_threshold:0,muzzy_decay_ms:-1,thp:always"


def allocator() -> dict[str, str]:
    """Return the variables that a process has to be started with to use it; none where it is not there.

    Nor where the user has preloaded something, or has chosen how an allocator works.
    """
    if any(name == _LIBRARY or name.startswith(("MALLOC_", "GLIBC_")) for name in os.environ):
        return {}
    ray = importlib.util.find_spec("ray")  # without importing it
    library = Path(ray.origin).parent / "core" / "libjemalloc.so" if ray is not None and ray.origin else None
    # The linker takes spaces and colons for the ends of a path.
    if library is None or not library.is_file() or set(" :") & set(str(library)):
        return {}
    return {_LIBRARY: str(library), _OPTIONS: _KEEPING, _OURS: "1"}


def forget() -> None:
    """Remove what ``allocator`` gave from this process's environment: its children are to be plain ones."""
    if _OURS in os.environ:
        for name in (_LIBRARY, _OPTIONS, _OURS):
            del os.environ[name]
