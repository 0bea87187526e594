"""One agent a data folder."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from dask_fleet.model.errors import SetupError

_PATIENCE_S = 1.0
"""A backend that looks whether an agent lives holds the lock for a moment."""


class AgentLock:
    """``DATA_DIR/agent.lock``, held by ``flock`` as long as the process lives; contains its pid."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "agent.lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Blocks for at most a second.

        Raises
        ------
        SetupError
            If another agent holds it.
        """
        # Not inheritable: neither the forkserver nor a worker process can hold it longer than the agent lives.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.02)
                    continue
                holder = os.read(descriptor, 20).decode("ascii", "replace").strip() or "unknown"
                os.close(descriptor)
                raise SetupError(
                    f"another agent (pid {holder}) works in {self._path.parent}: stop it, or choose another --data-dir"
                ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go. Twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
