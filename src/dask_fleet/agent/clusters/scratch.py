"""Scratch folders of leases and schedulers: one each, gone with it, and swept when the agent that made them could not."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

_ELSEWHERE = "dask-fleet-"


class Scratch:
    """``DATA_DIR/scratch``: of one agent at a time, which holds the lock of the data folder.

    A cluster may want its workers to spill to another disk (``temporary-directory``): then the lease's entry is a link to
    the folder there, so that it is found by the next agent if this one is killed. All methods block.
    """

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "scratch"

    def sweep(self) -> None:
        """Remove what an earlier agent has left."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # for schedulers, which make their own
            # Those of a sweep that was cut short, too.
            for entry in list(os.scandir(self._folder)):
                self._remove(Path(entry.path))

    def make(self, lease: str, wanted: object = None) -> Path:
        """Make a lease's folder, within the folder `wanted` if that names one.

        Raises
        ------
        OSError
            If it cannot be made.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry = self._folder / lease
        self._remove(entry)
        if not isinstance(wanted, str) or not wanted:
            entry.mkdir(mode=0o700)
            return entry
        elsewhere = Path(wanted).expanduser().absolute() / f"{_ELSEWHERE}{secrets.token_hex(8)}"
        entry.symlink_to(elsewhere)  # first: what is made after it is found
        elsewhere.mkdir(mode=0o700, parents=True)
        return elsewhere

    def of_scheduler(self, cluster: str, epoch: int) -> Path:
        """Return the folder of a scheduler, which makes it itself. `wipe` it by its name."""
        return self._folder / f"{cluster}-{epoch}"

    def wipe(self, name: str) -> None:
        """Remove the folder of a lease or a scheduler. Twice is harmless."""
        self._remove(self._folder / name)

    def _remove(self, entry: Path) -> None:
        try:
            if entry.is_symlink():
                target = entry.readlink()
                if target.name.startswith(_ELSEWHERE):
                    shutil.rmtree(target, ignore_errors=True)
                entry.unlink()
            elif entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("a scratch folder stays: %s", exc, extra={"action": "scratch_kept"})
