"""Bandwidths in text, ``200 Mbit/s`` or ``25 MB/s``, and the time that bytes take at them."""

import re
from fractions import Fraction
from functools import cache
from typing import Annotated, Any

from pydantic import BeforeValidator

from ray_pcasgd.base.scalars import number

_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BITS = {"bit": 1, "B": 8}
_LEAST, _MOST = 1, 10**15
"""In bit/s."""

_ALLOWED = "allowed are a number and a unit, as 200 Mbit/s or 25 MB/s: bit/s or B/s, with k, M, G or T before it"


def bits_per_second(text: str) -> Fraction:
    """Return a bandwidth in bit/s; prefixes are decimal, and a byte (B) has 8 bits.

    >>> bits_per_second("200 Mbit/s"), bits_per_second("25MB/s")
    (Fraction(200000000, 1), Fraction(200000000, 1))

    Raises:
        ValueError: the text is no bandwidth, or one below 1 bit/s or above 1000 Tbit/s.

    """
    found = re.fullmatch(r"\s*(.*?)\s*([kMGT]?)(bit|B)/s\s*", text, re.DOTALL)
    value = number(found[1]) if found else None
    if not found or value is None:
        raise ValueError(f"{text!r}: {_ALLOWED}{_hint(text)}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r}: allowed are finite numbers above 0")
    # The number as it is written: 0.1 in binary is more than that.
    bits = Fraction(repr(value)) * _PREFIXES[found[2]] * _BITS[found[3]]
    if not _LEAST <= bits <= _MOST:
        raise ValueError(f"{text!r}: allowed are 1 bit/s to 1000 Tbit/s")
    return bits


@cache
def transmission_nanoseconds(num_bytes: int, bandwidth: str) -> int:
    """Return the whole nanoseconds that so many bytes take at a bandwidth; halves are rounded to even.

    >>> transmission_nanoseconds(25_000_000, "200 Mbit/s")
    1000000000
    """
    return round(8 * num_bytes * 10**9 / bits_per_second(bandwidth))


def _hint(text: str) -> str:
    """Return what a bare number, or a unit as it is often written, may mean."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kKmMgGtT]?)(bps|bit|bits|b/s|Bps|B|)\s*", text)
    if not found:
        return ""
    prefix = found[2].lower() if found[2] in ("k", "K") else found[2].upper()
    return f"; write {found[1]} {prefix}{'B' if found[3].startswith('B') else 'bit'}/s"


def _checked(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r}: {_ALLOWED}")
    if not isinstance(value, str):
        raise ValueError(f"{value!r}: {_ALLOWED}; write '{value} bit/s' where bits a second are meant")
    bits_per_second(value)
    return value.strip()


Bandwidth = Annotated[str, BeforeValidator(_checked)]
"""A number of bits or bytes a second with its unit, from 1 bit/s to 1000 Tbit/s.

**Choice**: a bare number is refused, since it may be of bits or of bytes.
"""
