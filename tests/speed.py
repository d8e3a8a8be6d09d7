"""Which tests `make test` leaves to `make test-all`."""

from typing import Any

import pytest


def slow_unless(quick: bool, *values: Any) -> Any:
    """Return a test's parameters, marked as slow unless they are to be tested always."""
    return pytest.param(*values, marks=[] if quick else [pytest.mark.slow])
