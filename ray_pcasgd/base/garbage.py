"""Python's garbage collector, which finds cycles: left out where many objects are made that have none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Let the collector of cycles rest: it would go over all objects of the process again and again as many are made.

    What is in no cycle is freed as always.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
