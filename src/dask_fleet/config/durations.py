"""Durations as people write them: ``90d``, ``2m``, ``1h30m``, ``250ms``, or plain seconds."""

from __future__ import annotations

import math
import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")


def parse_duration(value: object) -> float:
    """Return seconds.

    Raises
    ------
    ValueError
        If it is no duration, or a negative or infinite one.
    """
    wish = "a duration such as 30, '45s', '2m', '1h30m' or '90d'"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(wish)  # noqa: TRY004 - callers turn every refusal of a value into one kind of error
    if isinstance(value, str):
        text = value.strip().lower()
        try:
            seconds = float(text)
        except ValueError:
            parts = _PART.findall(text)
            if not parts or _PART.sub("", text).strip():
                raise ValueError(wish) from None
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    else:
        seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(wish)
    return seconds


def format_duration(seconds: float) -> str:
    """Return `seconds` in the largest unit that holds them exactly: ``90d``, ``2m``, ``1.5s``."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds / _SECONDS[unit])}{unit}"
    return f"{seconds:g}s"
