"""Server-sent events: from lines to events (WHATWG HTML, section 9.2), as far as Fleet uses them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from dask_fleet.model.states import TERMINAL_STATES

_COMMON = frozenset({"event_id", "run", "attempt", "kind", "at"})
_TERMINAL = frozenset(str(state) for state in TERMINAL_STATES)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something that happened to a job."""

    kind: str
    """What: a word of `EventKind` (``accepted``, ``started``, ``succeeded`` …), or ``progress``."""
    event_id: int | None = None
    """Place in the ledger; ``None`` for progress, which is not kept."""
    run: int = 0
    attempt: int = 0
    at: str = ""
    """When, by the server's clock (RFC 3339)."""
    data: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    """The event in a sentence; empty for progress."""

    @property
    def is_terminal(self) -> bool:
        """Whether the run ended with this."""
        return self.kind in _TERMINAL


class EventParser:
    """Takes a stream's lines one by one and gives back events as they become whole."""

    def __init__(self) -> None:
        self._kind = ""
        self._id = ""
        self._data: list[str] = []

    def feed(self, line: str) -> JobEvent | None:
        """Take a line without its end; return the event it completes, if it does."""
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        return None  # a comment (keep-alive) or a field nobody here needs

    def _dispatch(self) -> JobEvent | None:
        kind, number, data = self._kind, self._id, "\n".join(self._data)
        self._kind, self._id, self._data = "", "", []
        if not data:
            return None
        try:
            document = json.loads(data)
        except ValueError:
            return None
        if not isinstance(document, dict):
            return None
        # Events of the ledger have members of their own in ``data``; progress has them beside run and attempt.
        inner = document.get("data", {name: value for name, value in document.items() if name not in _COMMON})
        return JobEvent(
            kind=str(kind or document.get("kind") or "message"),
            event_id=int(number) if number.isdecimal() else None,
            run=int(document.get("run") or 0),
            attempt=int(document.get("attempt") or 0),
            at=str(document.get("at") or ""),
            data=inner if isinstance(inner, dict) else {},
            text=str(document.get("text") or "") if "data" in document else "",
        )
