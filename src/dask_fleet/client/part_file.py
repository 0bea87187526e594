"""A file that appears only when it is whole."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class PartFile:
    """Written beside its target, renamed onto it by `commit`; `discard` removes what was not committed.

    Its methods block; asynchronous callers use a thread.
    """

    def __init__(self, target: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        self._path = Path(name)
        self._target = target
        self._file = os.fdopen(handle, "wb")

    def write(self, piece: bytes) -> None:
        """Append `piece`."""
        self._file.write(piece)

    def commit(self) -> int:
        """Make the file appear with the permissions any new file has; return its size."""
        size = self._file.tell()
        self._file.close()
        mask = os.umask(0o077)  # a umask can be read only by setting it
        os.umask(mask)
        self._path.chmod(0o666 & ~mask)
        self._path.replace(self._target)
        return size

    def discard(self) -> None:
        """Remove the part, if it is still one."""
        self._file.close()
        self._path.unlink(missing_ok=True)
