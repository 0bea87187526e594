"""A file system of a few megabytes that can really be full, and filled and emptied at will."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.prerequisites import lacking


class SmallDisk:
    """A mounted file system in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def free_bytes(self) -> int:
        """Return how much can still be written."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, *, but_bytes: int = 0) -> None:
        """Take all space but so much."""
        with self._filler.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free_bytes() - but_bytes)

    def make_room(self) -> None:
        """Give it back."""
        self._filler.unlink()


@contextmanager
def small_disk(folder: Path, *, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount one at `folder` while the block lasts; the test is skipped where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)],
        capture_output=True, timeout=30, check=False,
    )
    if mounted.returncode != 0:
        lacking(f"needs the right to mount: {mounted.stderr.decode().strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        # Lazily: whatever may still have a file open there must not keep the mount.
        subprocess.run(["umount", "--lazy", str(folder)], timeout=30, check=True)
