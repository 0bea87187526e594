"""Durations given as flags."""

from __future__ import annotations

from dask_fleet.config.durations import parse_duration
from dask_fleet.model.errors import BadRequest


def duration(flag: str, text: str) -> float:
    """Return seconds.

    Raises
    ------
    BadRequest
        If `text` is no duration; the message names the flag.
    """
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise BadRequest(f"{flag} must be {exc}, not {text!r}") from None
