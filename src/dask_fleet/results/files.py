"""The result store on a file system: one file a result, named by its digest and its origin."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from dask_fleet.model.errors import ProtocolError, ResultCorrupt
from dask_fleet.plugins.result_store import ResultStore

PIECE_BYTES = 1 << 20
SERVED_PIECE_BYTES = 32 << 10
"""Small: each reader that has stopped reading holds one or two of them."""
_SERVED_AT_ONCE = 2
"""Pieces that are read at a time, whosever they are. Each that has been read is sent in the next turn of the event loop: of
fifty large results at a time all would come before the next request of anybody else, and take milliseconds."""

_LOCATION = re.compile(r"([0-9a-f]{2})/([0-9a-f]{62})-([0-9a-f]{16})\.bin")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SPOOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""Names come from an agent: plain ones only, no separators, no ``..``, nothing hidden."""


class FileResultStore(ResultStore):
    """Takes over spool files by renaming them into a tree of its own; both must be on one file system.

    A location is made of the digest and of the spool file's name. So two jobs with equal bytes have a file each, and
    deleting one leaves the other; and an adoption that is repeated after a crash finds what the first one made.

    Parameters
    ----------
    root
        Folder of the results (made if missing, readable by its owner only).
    spool
        Folder into which the local agent writes; only files directly in it are adopted.
    """

    def __init__(self, root: Path, spool: Path) -> None:
        self._root = root
        self._spool = spool
        self._served = asyncio.Semaphore(_SERVED_AT_ONCE)

    async def open(self) -> None:
        """Make both folders. Nothing is to be cleaned: a rename is done or not."""
        await asyncio.to_thread(self._make_folders)

    def _make_folders(self) -> None:
        for folder in (self._root, self._spool):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def close(self) -> None:
        """Nothing is held."""

    async def adopt(self, spool: Path, *, digest: str, size: int) -> str:
        """See the port.

        Raises
        ------
        ProtocolError
            If `spool` is not a plain file directly in the spool folder, or `digest` is none.
        """
        return await asyncio.to_thread(self._adopt, spool, digest, size)

    async def size(self, location: str) -> int | None:
        """See the port."""
        return await asyncio.to_thread(self._size, location)

    async def read(self, location: str, *, start: int = 0, stop: int | None = None) -> AsyncIterator[bytes]:
        """See the port."""
        file = await asyncio.to_thread(self._open_at, location, start)
        try:
            position = start
            while stop is None or position < stop:
                most = SERVED_PIECE_BYTES if stop is None else min(SERVED_PIECE_BYTES, stop - position)
                async with self._served:
                    piece = await asyncio.to_thread(file.read, most)
                if not piece:
                    return
                position += len(piece)
                yield piece
        finally:
            file.close()

    async def verify(self, location: str, *, digest: str) -> bool:
        """See the port."""
        return await asyncio.to_thread(self._verify, location, digest)

    async def stamp(self, location: str) -> str | None:
        """See the port: which file it is, its size, and when content and metadata were changed."""
        return await asyncio.to_thread(self._stamp, location)

    async def delete(self, location: str) -> None:
        """See the port."""
        path = self._path(location)
        if path is not None:
            await asyncio.to_thread(path.unlink, missing_ok=True)

    async def older(self, *, than_s: float, after: str = "") -> tuple[list[str], str | None]:
        """See the port. One call looks into one of the 256 folders."""
        return await asyncio.to_thread(self._older, than_s, after)

    # ------------------------------------------------------------------ in a thread

    def _older(self, than_s: float, after: str) -> tuple[list[str], str | None]:
        folders = sorted(entry.name for entry in os.scandir(self._root) if entry.name > after)
        if not folders:
            return [], None
        name = folders[0]
        before = time.time() - than_s
        found = []
        with contextlib.suppress(NotADirectoryError), os.scandir(self._root / name) as entries:
            for entry in entries:
                location = f"{name}/{entry.name}"
                with contextlib.suppress(FileNotFoundError):
                    # The change time: renaming sets it, the content's time may be of long before.
                    if _LOCATION.fullmatch(location) and entry.stat(follow_symlinks=False).st_ctime < before:
                        found.append(location)
        return found, name if len(folders) > 1 else None

    def _adopt(self, spool: Path, digest: str, size: int) -> str:
        name = spool.name
        if spool != self._spool / name or not _SPOOL_NAME.fullmatch(name):
            raise ProtocolError("a spool file must lie directly in the spool folder and have a plain name")
        if not _DIGEST.fullmatch(digest):
            raise ProtocolError("a digest is 64 hexadecimal digits in lower case")
        origin = hashlib.sha256(name.encode()).hexdigest()[:16]
        location = f"{digest[:2]}/{digest[2:]}-{origin}.bin"
        target = self._root / location
        if _is_file_of(target, size):
            # An earlier adoption got this far; its renaming was made durable or will be now.
            spool.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return location
        try:
            fd = os.open(spool, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise ResultCorrupt("the result's bytes are nowhere: neither spooled nor stored") from None
        except OSError as exc:
            if exc.errno in {errno.ELOOP, errno.ENXIO}:
                raise ProtocolError("a spool file must be a plain file") from exc
            raise
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ProtocolError("a spool file must be a plain file")
            with os.fdopen(fd, "rb", closefd=False) as file:
                found_size, found = _measure(file)
            if (found_size, found) != (size, digest):
                spool.unlink(missing_ok=True)
                raise ResultCorrupt(
                    f"the spooled result has {found_size} bytes and SHA-256 {found[:12]}…, "
                    f"announced were {size} and {digest[:12]}…"
                )
            os.fchmod(fd, 0o600)
            os.fsync(fd)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            spool.rename(target)
        finally:
            os.close(fd)
        _sync_folder(target.parent)
        _sync_folder(self._root)
        return location

    def _path(self, location: str) -> Path | None:
        return self._root / location if _LOCATION.fullmatch(location) else None

    def _size(self, location: str) -> int | None:
        path = self._path(location)
        try:
            return None if path is None else path.stat().st_size
        except FileNotFoundError:
            return None

    def _stamp(self, location: str) -> str | None:
        path = self._path(location)
        try:
            found = None if path is None else path.stat()
        except FileNotFoundError:
            return None
        return None if found is None else f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"

    def _open_file(self, location: str) -> BinaryIO:
        path = self._path(location)
        if path is None:
            raise FileNotFoundError(errno.ENOENT, "no such result", location)
        return path.open("rb")

    def _open_at(self, location: str, start: int) -> BinaryIO:
        file = self._open_file(location)
        file.seek(start)
        return file

    def _verify(self, location: str, digest: str) -> bool:
        try:
            with self._open_file(location) as file:
                return _measure(file)[1] == digest
        except FileNotFoundError:
            return False


def _is_file_of(path: Path, size: int) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_size == size


def _measure(file: BinaryIO) -> tuple[int, str]:
    size = 0
    digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        size += len(piece)
        digest.update(piece)
    return size, digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
