"""What a worker process writes to its standard error: passed on to the agent's, and the end of it kept.

That is where C code, the C library and `faulthandler` say why they end a process. An attempt that was alone in it is told.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque

_KEPT_BYTES = 4_096
_READ_BYTES = 1 << 16
_DRAINED_BYTES = 1 << 20
"""What is still read of a dead process: what it has started may hold the pipe and write for ever."""


class LastWords:
    """The reading end of a pipe. `listen` must be called when it is readable."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept: deque[tuple[float, bytes]] = deque()
        self._kept_bytes = 0
        os.set_blocking(descriptor, False)

    def fileno(self) -> int:
        """Return what to wait for."""
        return self._descriptor

    def listen(self, now: float) -> int:
        """Take what has been written; returns how many bytes, 0 if there is nothing now or will never be."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except OSError:
            return 0
        if data:
            with contextlib.suppress(OSError):
                os.write(2, data)
            self._kept.append((now, data[-_KEPT_BYTES:]))
            self._kept_bytes += len(self._kept[-1][1])
            while self._kept_bytes - len(self._kept[0][1]) >= _KEPT_BYTES:
                self._kept_bytes -= len(self._kept.popleft()[1])
        return len(data)

    def drain(self, now: float) -> None:
        """Take what is left of a process that has ended, and close."""
        left = _DRAINED_BYTES
        while left > 0 and (taken := self.listen(now)):
            left -= taken
        self.close()

    def close(self) -> None:
        """Hear no more."""
        os.close(self._descriptor)

    def since(self, when: float) -> str:
        """Return the end of what has been written since then."""
        data = b"".join(data for written, data in self._kept if written >= when)
        return data[-_KEPT_BYTES:].decode("utf-8", "replace").strip()
