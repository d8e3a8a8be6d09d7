"""Which tests `make test` leaves to `make test-all`."""

from typing import Any

import pytest
from hypothesis import settings


def slow_unless(quick: bool, *values: Any) -> Any:
    """Return a test's parameters, marked as slow unless they are to be tested always."""
    return pytest.param(*values, marks=[] if quick else [pytest.mark.slow])


def examples(quick: int, whole: int) -> settings:
    """Return hypothesis's settings with so many examples, and with the whole number in ``make test-all``."""
    return settings(max_examples=whole if settings.get_current_profile_name() == "whole" else quick)
