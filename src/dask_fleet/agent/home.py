"""Who an agent is to the server: the name of its data folder, which one agent at a time locks."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dask_fleet.model.errors import SetupError
from dask_fleet.model.ids import random_id

HOME_FILE = "agent.home"
_HOME = re.compile(r"[A-Za-z0-9._-]{1,120}\Z")


def ensure_home(data_dir: Path, name: str) -> str:
    """Return what names the folder for good: `name` and a random part, kept in ``DATA_DIR/agent.home``.

    Equal names on two hosts are thus two homes, and an agent that is started again in the folder of a dead one is known as
    its successor. Blocks; the folder must be locked.

    Raises
    ------
    SetupError
        If the file cannot be read or written.
    """
    path = data_dir / HOME_FILE
    try:
        if path.exists():
            home = path.read_text("ascii").strip()
            if _HOME.match(home):
                return home
        home = random_id(name)
        draft = path.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(f"{home}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, UnicodeDecodeError) as exc:
        raise SetupError(f"cannot keep {path}: {exc}; choose another folder with --data-dir") from exc
    return home


def default_data_dir(server: str, name: str, host: str, *, state: Path) -> Path:
    """Return the data folder of an agent that is told none: its own for each server, host and name.

    With the host in it, because home folders are often shared between hosts and locks on them are not always.

    Parameters
    ----------
    server
        The server's URL.
    name, host
        The agent's and this host's.
    state
        The user's folder for such things.
    """
    parts = (host, server.partition("://")[2], name)
    return state / "dask-fleet" / "agents" / "@".join(re.sub(r"[^A-Za-z0-9.-]+", "_", part) for part in parts)


def state_folder(environ: Mapping[str, str], home: Path) -> Path:
    """Return where this user's programs keep state: ``XDG_STATE_HOME``, else in the home folder, else among temporary files.

    Raises
    ------
    SetupError
        If it would be among temporary files, and somebody else has been there before.
    """
    named = environ.get("XDG_STATE_HOME", "")
    if named.startswith("/"):
        return Path(named)
    if os.access(home, os.W_OK | os.X_OK):
        return home / ".local" / "state"
    folder = Path(tempfile.gettempdir()) / f"dask-fleet-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or not folder.is_dir():  # anybody may make it there before us
        raise SetupError(f"{folder} is not this user's alone: choose a folder with --data-dir")
    return folder
