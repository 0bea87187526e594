"""Durations and sizes as people write them: ``90d``, ``1h30m``, ``250ms``, ``2GiB``."""

from __future__ import annotations

import math
import re
from datetime import timedelta

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_NUMBER = r"\d+(?:\.\d+)?"
_DURATION = re.compile(rf"(?:{_NUMBER}\s*(?:ms|s|m|h|d|w)\s*)+\Z")
_PART = re.compile(rf"({_NUMBER})\s*(ms|s|m|h|d|w)")
_PLAIN = re.compile(rf"{_NUMBER}\Z")

_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_SIZE = re.compile(rf"({_NUMBER})\s*([a-z]*)\Z")


def parse_duration_s(value: object) -> float:
    """Return seconds, of a number of seconds, a ``timedelta``, or text such as ``"90s"`` or ``"1h30m"``.

    Raises
    ------
    ValueError
        If it is no duration, negative, or not finite; the message shows what can be written.
    """
    seconds = _seconds(value)
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(
            f"{_shown(value)} is no duration: write seconds such as 30, or text such as '45s', '2m', '1h30m' or '90d'"
        )
    return seconds


def _seconds(value: object) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, str):
        text = value.strip().lower()
        if _PLAIN.match(text):
            return float(text)
        if _DURATION.match(text):
            return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return None


def parse_bytes(value: object) -> int:
    """Return a number of bytes, of an ``int`` or text such as ``"2GiB"`` (binary units) or ``"500 MB"``
    (decimal ones).

    Raises
    ------
    ValueError
        If it is no size or negative; the message shows what can be written.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and (found := _SIZE.match(value.strip().lower())) and found[2] in _BYTES:
        number, unit = found[1], _BYTES[found[2]]
        return int(number) * unit if number.isdecimal() else int(float(number) * unit)
    raise ValueError(f"{_shown(value)} is no size: write a number of bytes, or text such as '256KiB', '500MB' or '2GiB'")


def format_bytes(size: int) -> str:
    """Return a size in the largest binary unit that holds it exactly: ``5GiB``, ``256KiB``, ``1000B``."""
    for unit, bits in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << bits) == 0:
            return f"{size >> bits}{unit}"
    return f"{size}B"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
