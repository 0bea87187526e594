"""One owner: an advisory lock beside the database, held as long as the process lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from dask_fleet.model.errors import ConfigError, LedgerInUse

NETWORK_FILE_SYSTEMS = frozenset({
    "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs",
})
"""Where a write-ahead log cannot be used: it needs memory that all processes of one host share."""


class OwnerLock:
    """The lock of a ledger's one owner; the kernel lets go of it however the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take it.

        Raises
        ------
        LedgerInUse
            If another process (or another ledger of this one) holds it; the message names its process.
        """
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise LedgerInUse(
                f"{self._path.parent} is in use by process {holder}: stop that server first, "
                "or give this one another --data-dir", pid=holder,
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd

    def release(self) -> None:
        """Let go. Twice is harmless. The file stays: removing it would race with the next owner."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def file_system_of(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds `path`, by the text of ``/proc/mounts``; ``""`` if it is not there."""
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def refuse_network_file_system(folder: Path) -> None:
    """Refuse a folder on a network file system.

    Raises
    ------
    ConfigError
        If it is on one; the message names the cure.
    """
    try:
        mounts = Path("/proc/mounts").read_text("utf-8", "replace")
    except OSError:  # not Linux: nothing cheap to ask
        return
    kind = file_system_of(folder.resolve(), mounts)
    if kind in NETWORK_FILE_SYSTEMS:
        raise ConfigError(
            f"{folder} is on a network file system ({kind}), where the ledger would not be safe: "
            "give --data-dir on a local disk"
        )
