"""Being told by Ray that something is there, in a thread that may wait for locks."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

logger = logging.getLogger("ray_pcasgd")

_TELLER = ThreadPoolExecutor(1, "teller")


def once_there(reference: Any, then: Callable[[], None]) -> None:
    """Call ``then``, from another thread, once what a reference stands for is on this machine, or lost."""

    def tell() -> None:
        try:
            then()
        except Exception:  # nobody looks at what this thread comes to
            logger.exception("what waited for a message's answer or transfer failed")

    # Not in Ray's own thread, which must not wait for anybody: those who hold a lock may wait for that thread.
    reference.future().add_done_callback(lambda _: _TELLER.submit(tell))
