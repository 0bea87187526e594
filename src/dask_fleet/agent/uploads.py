"""Takes large results to a server whose data folder is another one: each as one upload, before its outcome is told.

An outcome waits in the outbox until it is acknowledged, and until its upload is done it is held back here; so whoever dies
in between, agent or server, finds the bytes in the agent's spool folder and begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dask_fleet.agent.address import read_address
from dask_fleet.agent.attempts import AttemptKey
from dask_fleet.agent.options import AgentOptions
from dask_fleet.model.errors import FleetError
from dask_fleet.protocol.frames import Outcome

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

UPLOAD_PATH = "/v1/agents/spool/"
_AT_ONCE = 2
"""More would only share one wire."""
_PIECE_BYTES = 256 << 10
_BACKOFF_S = (0.2, 10.0)
_CONNECT_S, _SILENCE_S = 10.0, 60.0
"""The answer comes when all is on the server's disk, which may take a while."""
_USELESS = frozenset({400, 404, 405, 409, 413})
"""Answers that another try would get again: the attempt is no longer ours, or its bytes are refused."""


class Uploads:
    """The uploads under way and done. Everything happens on the event loop's thread; files are read in others.

    Parameters
    ----------
    uploaded
        Called when an outcome can be sent: its bytes are with the server, or the server does not want them and will say so.
    """

    def __init__(self, options: AgentOptions, *, uploaded: Callable[[Outcome], None]) -> None:
        self._options = options
        self._uploaded = uploaded
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._files: dict[AttemptKey, Path] = {}
        self._done: set[AttemptKey] = set()
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}
        self._http: httpx.AsyncClient | None = None

    @property
    def under_way(self) -> int:
        """Uploads begun and not done."""
        return len(self._tasks)

    def is_due(self, outcome: Outcome) -> bool:
        """Whether an outcome must wait until its result is with the server; if so, see to it. Repeating it is harmless."""
        if outcome.spool is None:
            return False
        key = (outcome.seq, outcome.attempt)
        if key in self._done:
            return False
        if key not in self._tasks:
            self._files[key] = self._options.spool / outcome.spool
            task = asyncio.create_task(self._bring(outcome), name=f"upload-{outcome.seq}-{outcome.attempt}")
            self._tasks[key] = task
            task.add_done_callback(lambda task: self._ended(key, task))
        return True

    def forget(self, key: AttemptKey) -> None:
        """The server has acknowledged that outcome: its bytes are not needed here any more."""
        path = self._files.pop(key, None)
        if path is None:
            return
        self._done.discard(key)
        if (task := self._tasks.pop(key, None)) is not None:
            task.cancel()
        asyncio.get_running_loop().run_in_executor(None, _remove, path)

    def clear(self) -> None:
        """Forget all: the server has another ledger."""
        for key in list(self._files):
            self.forget(key)

    async def close(self) -> None:
        """Break off what is under way; it is begun again by the next agent in this folder."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._http is not None:
            await self._http.aclose()

    def _ended(self, key: AttemptKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("an upload failed for good", exc_info=exc, extra={"action": "upload_failed", "seq": key[0]})

    async def _bring(self, outcome: Outcome) -> None:
        first, longest = _BACKOFF_S
        delay_s = first
        async with self._slots:
            while (problem := await self._try(outcome)) is not None:
                log.warning(
                    "upload of a result, again in %.1f s: %s",
                    delay_s,
                    problem,
                    extra={"action": "upload_retried", "seq": outcome.seq, "attempt": outcome.attempt},
                )
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(longest, delay_s * 2)
        self._done.add((outcome.seq, outcome.attempt))
        self._uploaded(outcome)

    async def _try(self, outcome: Outcome) -> str | None:
        """Upload once; returns why another try is needed."""
        import httpx

        assert outcome.spool is not None
        try:
            address = read_address(self._options)
            if self._http is None:
                timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
                verify = await asyncio.to_thread(address.context)
                self._http = httpx.AsyncClient(verify=verify or False, trust_env=False, timeout=timeout)
            file = await asyncio.to_thread((self._options.spool / outcome.spool).open, "rb")
        except FileNotFoundError:
            return None  # lost: the server will say so, and the attempt is run again
        except (OSError, ValueError, FleetError) as exc:
            return str(exc)

        async def pieces() -> AsyncIterator[bytes]:
            while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield piece

        try:
            answer = await self._http.put(
                f"{address.url}{UPLOAD_PATH}{outcome.spool}",
                params={"seq": outcome.seq, "attempt": outcome.attempt},
                headers={"Authorization": f"Bearer {address.token}", "Content-Length": str(outcome.size)},
                content=pieces(),
            )
        except (httpx.HTTPError, OSError) as exc:
            return str(exc) or type(exc).__name__
        finally:
            file.close()
        if answer.is_success or answer.status_code in _USELESS:
            if not answer.is_success:
                log.warning(
                    "the server does not take a result: %s",
                    answer.text[:300],
                    extra={"action": "upload_refused", "seq": outcome.seq, "attempt": outcome.attempt},
                )
            return None
        return f"the server answered {answer.status_code}"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # what stays is cleared away by the next agent in this folder
        path.unlink()
