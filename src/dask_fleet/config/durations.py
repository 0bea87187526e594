"""Durations as settings have them: read as everywhere in Fleet, written in the largest unit that fits."""

from __future__ import annotations

from dask_fleet.model.durations import parse_duration_s

_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60))


def parse_duration(value: object) -> float:
    """Return seconds.

    Raises
    ------
    ValueError
        If it is no duration; the message says what was wished for, to be put behind "must be".
    """
    try:
        return parse_duration_s(value)
    except ValueError:
        raise ValueError("a duration such as 30, '45s', '2m', '1h30m' or '90d'") from None


def format_duration(seconds: float) -> str:
    """Return `seconds` in the largest unit that holds them exactly: ``90d``, ``2m``, ``1.5s``."""
    for unit, size in _UNITS:
        if seconds and seconds % size == 0:
            return f"{int(seconds / size)}{unit}"
    return f"{seconds:g}s"
