"""Requests and connections under way, by the token that let them in: they end with it, not only the next ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class LiveRequests:
    """Knows the task of every request and websocket that a token has opened.

    `tasks` is written by the application alone, twice a request: two steps in a dict are all that a plain call pays for
    being endable. The tasks are uvicorn's; what is ended here is told by its own task (`was_ended`), which answers for it.
    """

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[Any], str] = {}
        """Task of a request, and the id of the token that let it in."""
        self._ended: set[asyncio.Task[Any]] = set()

    def end_invalid(self, is_valid: Callable[[str], bool]) -> int:
        """Cancel what was opened by tokens that are valid no more; return how many that were. Twice is harmless."""
        ended = 0
        for task, token_id in list(self.tasks.items()):
            if task not in self._ended and not is_valid(token_id):
                self._ended.add(task)
                task.cancel()
                ended += 1
        return ended

    def was_ended(self, task: asyncio.Task[Any]) -> bool:
        """Whether `task` was cancelled here, and by nobody else; it then goes on, to say so to its client."""
        if task not in self._ended:
            return False
        return task.uncancel() == 0

    def forget(self, task: asyncio.Task[Any]) -> None:
        """The request is over."""
        self.tasks.pop(task, None)
        self._ended.discard(task)
