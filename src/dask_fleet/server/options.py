"""Options of a call: what goes beside it, in headers and query string, and is no part of its identity."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import msgspec

from dask_fleet.model.errors import BadRequest
from dask_fleet.model.jobs import DEFAULT_PRIORITY, MAX_PRIORITY, MIN_PRIORITY
from dask_fleet.server.auth import refuse_token
from dask_fleet.server.documents import parse_rfc3339

MAX_WAIT_S = 60.0
MAX_TAGS = 20

Headers = list[tuple[bytes, bytes]]
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,63}\Z")
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})\"?(?=$|[,;\s])", re.IGNORECASE)
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}\Z")
_PRIORITY = re.compile(r"[+-]?[0-9]{1,4}\Z")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?\Z")
_TRUE = frozenset({"true", "1", ""})
_FALSE = frozenset({"false", "0"})


class CallOptions(msgspec.Struct, kw_only=True):
    """What goes beside a call, not into its identity."""

    wait_s: float = 0.0
    preference_applied: bytes | None = None
    refresh: bool = False
    priority: int = DEFAULT_PRIORITY
    deadline_us: int | None = None
    tags: tuple[str, ...] = ()
    idempotency_key: str | None = None


_NO_OPTIONS = CallOptions()
_OPTION_HEADERS = frozenset({b"prefer", b"fleet-priority", b"fleet-deadline", b"fleet-tags", b"idempotency-key"})


def parse_options(headers: Headers, query: bytes, *, now_us: int) -> CallOptions:
    """Read the options of a call from its headers and query string.

    Raises
    ------
    BadRequest
        Naming the header or query parameter that is malformed, given twice, or unknown, or that holds a token.
    """
    options = _NO_OPTIONS
    seen: dict[bytes, str] = {}
    for name, value in headers:
        if name in _OPTION_HEADERS:
            if name in seen and name != b"prefer":
                raise BadRequest(f"the header {name.decode()} is given more than once")
            text = value.decode("latin-1").strip()
            seen[name] = f"{seen[name]}, {text}" if name in seen else text
    if seen:
        options = CallOptions()
        if (prefer := seen.get(b"prefer")) is not None and (found := _WAIT.search(prefer)):
            # RFC 7240: a preference may be honoured in part; ours is cut to the longest wait we hold.
            seconds = min(int(found[1]), int(MAX_WAIT_S))
            options.wait_s = float(seconds)
            options.preference_applied = b"wait=%d" % seconds
        if (priority := seen.get(b"fleet-priority")) is not None:
            if not _PRIORITY.match(priority) or not MIN_PRIORITY <= int(priority) <= MAX_PRIORITY:
                raise BadRequest(f"the header Fleet-Priority must be a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}")
            options.priority = int(priority)
        if (deadline := seen.get(b"fleet-deadline")) is not None:
            options.deadline_us = _deadline(deadline, now_us)
        if (tags := seen.get(b"fleet-tags")) is not None:
            options.tags = _tags(tags)
        if (key := seen.get(b"idempotency-key")) is not None:
            if not _IDEMPOTENCY_KEY.match(key):
                raise BadRequest("the header Idempotency-Key must be 1 to 255 visible ASCII characters")
            refuse_token(key, "the header Idempotency-Key")
            options.idempotency_key = key
    if query:
        try:
            pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=10)
        except ValueError as exc:
            raise BadRequest("the query string has too many parameters (known: refresh=true)") from exc
        for name_, value_ in pairs:
            if name_ != "refresh" or value_ not in _TRUE | _FALSE:
                raise BadRequest(f"unknown query parameter or value: {name_[:40]}={value_[:40]} (known: refresh=true)")
            if options is _NO_OPTIONS:
                options = CallOptions()
            options.refresh = value_ in _TRUE
    return options


def _deadline(text: str, now_us: int) -> int:
    try:
        return now_us + int(float(text) * 1e6) if _SECONDS.match(text) else parse_rfc3339(text)
    except (ValueError, OverflowError) as exc:
        raise BadRequest(
            "the header Fleet-Deadline must be seconds from now, or an RFC 3339 time such as 2026-01-31T12:00:00Z"
        ) from exc


def _tags(text: str) -> tuple[str, ...]:
    tags = tuple(sorted({tag.strip() for tag in text.split(",") if tag.strip()}))
    if len(tags) > MAX_TAGS or not all(_TAG.match(tag) for tag in tags):
        raise BadRequest(
            f"the header Fleet-Tags takes at most {MAX_TAGS} tags, separated by commas,"
            " each of 1 to 64 letters, digits and . _ : / @ + -"
        )
    refuse_token(text, "the header Fleet-Tags")
    return tags
