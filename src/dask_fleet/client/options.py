"""The options of a call, as they travel: beside the parameters, never part of a job's identity."""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

from dask_fleet.model.jobs import MAX_PRIORITY, MIN_PRIORITY

MAX_WAIT_S = 60
"""Longest time the server holds an answer back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What may be said beside a call's parameters."""

    wait: float = 0.0
    """Seconds the server may hold its answer until the job is done."""
    priority: int | None = None
    """-100 to 100, higher first."""
    deadline: float | timedelta | datetime | str | None = None
    """When it is no use to start any more: seconds from now, or a time with its zone."""
    tags: tuple[str, ...] = ()
    refresh: bool = False
    """Compute again even if a result is there; the old one is served meanwhile."""
    idempotency_key: str | None = None

    def changed(self, **changes: Any) -> CallOptions:
        """Return a copy with some options replaced.

        Raises
        ------
        TypeError
            If there is no such option.
        """
        if "tags" in changes:
            tags = changes["tags"]
            changes["tags"] = (tags,) if isinstance(tags, str) else tuple(tags or ())
        return replace(self, **changes)

    @property
    def wait_s(self) -> int:
        """Whole seconds to wait, within what the server allows."""
        return max(0, min(MAX_WAIT_S, math.ceil(self.wait)))

    def headers(self) -> dict[str, str]:
        """Return the options' request headers.

        Raises
        ------
        ValueError
            If an option is out of its range.
        """
        headers: dict[str, str] = {}
        if self.wait_s:
            headers["Prefer"] = f"wait={self.wait_s}"
        if self.priority is not None:
            if not MIN_PRIORITY <= self.priority <= MAX_PRIORITY:
                raise ValueError(f"priority must be from {MIN_PRIORITY} to {MAX_PRIORITY}, not {self.priority}")
            headers["Fleet-Priority"] = str(self.priority)
        if self.deadline is not None:
            headers["Fleet-Deadline"] = _deadline_text(self.deadline)
        if self.tags:
            if any("," in tag for tag in self.tags):
                raise ValueError("a tag cannot hold a comma")
            headers["Fleet-Tags"] = ",".join(self.tags)
        if self.idempotency_key is not None:
            headers["Idempotency-Key"] = self.idempotency_key
        return headers


def _deadline_text(deadline: float | timedelta | datetime | str) -> str:
    if isinstance(deadline, str):
        return deadline
    if isinstance(deadline, datetime):
        return time_text(deadline)
    seconds = deadline.total_seconds() if isinstance(deadline, timedelta) else float(deadline)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("deadline must be seconds from now, a time with its zone, or RFC 3339 text")
    return f"{seconds:.3f}"


def time_text(moment: datetime | str) -> str:
    """Return a time as RFC 3339.

    Raises
    ------
    ValueError
        If it has no zone: nobody could say which moment it is.
    """
    if isinstance(moment, str):
        return moment
    if moment.tzinfo is None:
        raise ValueError("the time needs a zone, such as datetime.now(UTC)")
    return moment.isoformat()


def encode_params(params: Mapping[str, Any]) -> bytes:
    """Return parameters as JSON. Dates, enums, dataclasses, pydantic models and numpy scalars and arrays are understood.

    Raises
    ------
    TypeError
        If a value has no JSON form; the message names its type.
    ValueError
        If a number is not finite: JSON has no word for it.
    """
    try:
        return json.dumps(dict(params), default=_json_form, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as exc:
        raise ValueError(f"parameters travel as JSON, which has no NaN, no infinity and no circles: {exc}") from exc


def _json_form(value: Any) -> Any:
    """Return what stands for `value` in JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        sign, whole = ("-", -value) if value < timedelta(0) else ("", value)
        part = f".{whole.microseconds:06d}".rstrip("0") if whole.microseconds else ""
        return f"{sign}P{whole.days}DT{whole.seconds}{part}S"  # an ISO 8601 duration, exact
    if isinstance(value, uuid.UUID | PurePath | Decimal):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)  # one order, so that equal sets are one job
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for method in ("model_dump", "tolist"):  # pydantic models; numpy scalars and arrays
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            return convert(mode="json") if method == "model_dump" else convert()
    raise TypeError(
        f"a parameter of type {type(value).__module__}.{type(value).__qualname__} cannot travel as JSON; "
        "pass numbers, text, lists, dicts, dates, dataclasses or pydantic models"
    )
