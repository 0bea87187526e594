"""Outcomes until the server has acknowledged them: in memory while connected, on disk while not.

One file an outcome, ``<seq>-<attempt>.outcome``: msgpack of ``[ledger_id, outcome]``, written whole, fsync'ed and renamed
into place. An agent that dies while disconnected leaves them to its successor in the same folder.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import msgspec

from dask_fleet.agent.attempts import AttemptKey
from dask_fleet.config.threads import started
from dask_fleet.protocol.frames import AttemptRef, Outcome

log = logging.getLogger(__name__)

_SUFFIX = ".outcome"
_SPOOL_KEPT_S = 3_600.0
"""The server may just be taking over a file that a predecessor announced before it died; this is long enough for any."""
_decode = msgspec.msgpack.Decoder(tuple[str, Outcome]).decode
_encode = msgspec.msgpack.Encoder().encode


class Outbox:
    """Unacknowledged outcomes of one ledger. Only its own thread touches the disk, so the event loop never waits for it.

    Parameters
    ----------
    folder
        ``DATA_DIR/agent-outbox``; made if it is not there.
    spool
        Where results too large to travel inline lie; of an outcome that is dropped, its spool file is removed.
    """

    def __init__(self, folder: Path, spool: Path) -> None:
        self._folder = folder
        self._spool = spool
        self._waiting: dict[AttemptKey, Outcome] = {}
        self._on_disk: set[AttemptKey] = set()
        self._looked_at: set[AttemptKey] = set()
        self._online = False
        self._thread = started(1, "outbox")
        self.ledger_id = ""
        """Whose outcomes these are; empty before the first welcome."""

    def load(self) -> None:
        """Read what a predecessor left. Blocks; call it before there is an event loop."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(self._folder.iterdir()):
            if path.suffix != _SUFFIX:
                path.unlink()  # an interrupted write
                continue
            try:
                ledger_id, outcome = _decode(path.read_bytes())
            except msgspec.DecodeError:
                log.warning("unreadable outcome removed", extra={"action": "outbox_unreadable", "file": path.name})
                path.unlink()
                continue
            if self._waiting and ledger_id != self.ledger_id:
                log.warning("outcome of another ledger removed", extra={"action": "outbox_foreign", "file": path.name})
                path.unlink()
                continue
            self.ledger_id = ledger_id
            key = (outcome.seq, outcome.attempt)
            self._waiting[key] = outcome
            self._on_disk.add(key)
        self._clear_spool()

    def _clear_spool(self) -> None:
        """Remove what a predecessor's worker processes wrote and nobody will fetch: one that is killed tells of no file."""
        wanted = {outcome.spool for outcome in self._waiting.values()}
        before = time.time() - _SPOOL_KEPT_S
        for path in self._spool.iterdir():
            if path.name not in wanted and path.is_file() and path.lstat().st_mtime < before:
                log.warning("forgotten spool file removed", extra={"action": "spool_cleared", "file": path.name})
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: AttemptKey) -> bool:
        return key in self._waiting

    def refs(self) -> list[AttemptRef]:
        """Return the attempts whose outcomes wait."""
        return [AttemptRef(o.seq, o.run, o.attempt) for o in self._waiting.values()]

    def outcomes(self) -> list[Outcome]:
        """Return what waits, oldest first."""
        return list(self._waiting.values())

    def overdue(self) -> list[Outcome]:
        """Return what already waited when this was last called: an acknowledgement should have come since."""
        late = [outcome for key, outcome in self._waiting.items() if key in self._looked_at]
        self._looked_at = set(self._waiting)
        return late

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome until it is acknowledged."""
        key = (outcome.seq, outcome.attempt)
        self._waiting[key] = outcome
        if not self._online:
            self._write(key, outcome)

    def acknowledge(self, seq: int, attempt: int) -> None:
        """Forget an outcome. Repeating it is harmless."""
        key = (seq, attempt)
        if self._waiting.pop(key, None) is not None and key in self._on_disk:
            self._remove(key)

    def welcomed(self, ledger_id: str) -> bool:
        """A server answered: keep what waits if it is of this ledger, else drop it. Returns whether it was kept."""
        kept = self.ledger_id in {"", ledger_id}
        if not kept:
            log.warning("the server has another ledger: undelivered outcomes are dropped", extra={
                "action": "outbox_dropped", "outcomes": len(self._waiting), "ledger_id": ledger_id,
            })  # fmt: skip
            for key, outcome in list(self._waiting.items()):
                del self._waiting[key]
                if key in self._on_disk:
                    self._remove(key)
                self.discard_spool(outcome)
        self.ledger_id = ledger_id
        self._online = True
        return kept

    def disconnected(self) -> None:
        """The server is away: what waits, and what comes, goes to disk."""
        if not self._online:
            return
        self._online = False
        for key, outcome in self._waiting.items():
            if key not in self._on_disk:
                self._write(key, outcome)

    def discard_spool(self, outcome: Outcome) -> None:
        """Remove the spool file of a result that nobody will fetch."""
        if outcome.spool:
            path = self._spool / outcome.spool
            self._do(lambda: path.unlink(missing_ok=True))

    def discard_spool_of(self, token: str) -> None:
        """Remove the spool files of a worker process that has ended, but for those that wait to be fetched: one that is
        killed while it writes tells of no file.
        """
        wanted = {outcome.spool for outcome in self._waiting.values()}

        def clear() -> None:
            for path in self._spool.glob(f"{token}*"):
                if path.name not in wanted:
                    path.unlink(missing_ok=True)

        self._do(clear)

    def close(self) -> None:
        """Bring all that waits to disk; blocks until it is there."""
        self.disconnected()
        self._thread.shutdown(wait=True)

    def _path(self, key: AttemptKey) -> Path:
        return self._folder / f"{key[0]}-{key[1]}{_SUFFIX}"

    def _write(self, key: AttemptKey, outcome: Outcome) -> None:
        self._on_disk.add(key)
        path, data = self._path(key), _encode((self.ledger_id, outcome))
        self._do(lambda: _write_durably(path, data))

    def _remove(self, key: AttemptKey) -> None:
        self._on_disk.discard(key)
        path = self._path(key)
        self._do(lambda: path.unlink(missing_ok=True))

    def _do(self, work: Callable[[], None]) -> None:
        self._thread.submit(work).add_done_callback(_log_failure)


def _write_durably(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _log_failure(done: Future[None]) -> None:
    # It is still in memory and is delivered from there; only a crash of the agent now would lose it (and run it again).
    if exc := done.exception():
        log.error("outbox: %s", exc, extra={"action": "outbox_failed"})
