"""What ``doctor`` looks at. Each check says what it found and, if that is bad, what to do."""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from dask_fleet.config import Settings, load_client_here
from dask_fleet.config.discovery import AGENT_TOKEN_FILE, TOKEN_FILE, is_loopback
from dask_fleet.config.trust import CURE, Trust, explain
from dask_fleet.model.errors import ConfigError, FleetError

PYTHON = (3, 11)
SQLITE = (3, 51, 3)
"""Before it, SQLite can corrupt a WAL database when two connections write and checkpoint at once."""
DISK_FREE_BYTES = 1 << 30
FSYNC_SLOW_S = 0.05
"""A call costs two commits: with this fsync no call is faster than a tenth of a second."""
SKEW_S = 5.0
REQUEST_TIMEOUT_S = 5.0
NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "beegfs", "glusterfs", "ceph", "fuse.sshfs"}
)
PACKAGES = ("dask-fleet", "dask", "distributed", "pyarrow", "pydantic", "starlette", "uvicorn", "httpx", "pandas")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found."""

    name: str
    ok: bool | None
    """``None``: could not be looked at, or does not matter here."""
    detail: str
    cure: str = ""


def run_checks(flags: Mapping[str, Any]) -> list[Check]:
    """Look at everything, the machine first; a check that cannot be made does not keep the others from it."""
    checks = [check_python(sys.version_info[:3]), check_packages(), check_sqlite()]
    try:
        settings = load_client_here(flags).settings
    except ConfigError as error:
        cure = "Correct it; the message says what would fit."
        return [*checks, Check(name="settings", ok=False, detail=error.detail, cure=cure)]
    folder = settings.data_dir.absolute()
    existing = nearest_folder(folder)
    checks += [
        Check(name="settings", ok=True, detail="`dask-fleet config show` lists them with their origins"),
        check_folder(folder),
        check_secret_file("token file", folder / TOKEN_FILE),
        check_secret_file("agent's token file", folder / AGENT_TOKEN_FILE),
        check_filesystem(existing, Path("/proc/self/mounts")),
        check_disk(existing, shutil.disk_usage(existing).free),
        check_fsync(existing),
    ]
    key = settings.tls_key or folder / "tls" / "key.pem"
    if key.exists():
        cure = f"Others could speak in the server's name: chmod 600 {key}, and make another if they may have read it."
        checks.append(replace(check_secret_file("TLS key", key), cure=cure))
    return checks + check_server(settings)


def nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def check_python(version: tuple[int, ...]) -> Check:
    """Look at the interpreter."""
    detail = ".".join(map(str, version))
    return Check(name="python", ok=version >= PYTHON, detail=detail, cure="Fleet needs Python 3.11 or newer.")


def check_packages() -> Check:
    """Look at what is installed."""
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if name != "pandas":  # an extra: without it tables come back as Arrow tables
                missing.append(name)
    detail = ", ".join(found) + (f"; missing: {', '.join(missing)}" if missing else "")
    return Check(name="packages", ok=not missing, detail=detail, cure="Install them: pip install --upgrade dask-fleet")


def check_sqlite() -> Check:
    """Look at the SQLite that the ledger would use."""
    import apsw

    version = apsw.sqlite_lib_version()
    new = tuple(int(part) for part in version.split(".")) >= SQLITE
    return Check(name="sqlite", ok=new, detail=version, cure="Older ones can lose data: pip install --upgrade apsw")


def check_folder(folder: Path) -> Check:
    """Look at the data folder's permissions."""
    name = "data folder"
    if not folder.exists():
        above = nearest_folder(folder)
        usable = os.access(above, os.W_OK | os.X_OK)
        cure = f"Make {above} writable for this user, or choose another folder with --data-dir."
        return Check(name=name, ok=usable, detail=f"{folder} will be made by `dask-fleet serve`", cure=cure)
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        cure = "Make it this user's own, or choose another with --data-dir."
        return Check(name=name, ok=False, detail=f"{folder} cannot be written", cure=cure)
    mode = folder.stat().st_mode & 0o777
    detail = f"{folder} has mode {mode:04o}"
    return Check(name=name, ok=not mode & 0o077, detail=detail, cure=f"Others can look into it: chmod 700 {folder}")


def check_secret_file(name: str, path: Path) -> Check:
    """Look at a token file's permissions."""
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return Check(name=name, ok=None, detail=f"{path} will be made by `dask-fleet serve`")
    except OSError as exc:
        return Check(name=name, ok=False, detail=f"{path}: {exc.strerror}", cure="Run this as the server's user.")
    return Check(
        name=name,
        ok=not mode & 0o077,
        detail=f"{path} has mode {mode:04o}",
        cure=f"Others could read it: chmod 600 {path}. Then remove it and restart the server: it makes a new one.",
    )


def check_filesystem(folder: Path, mounts: Path) -> Check:
    """Look at what kind of file system the data folder is on."""
    name = "file system"
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Check(name=name, ok=None, detail="unknown here")
    best, kind = "", ""
    for line in lines:
        point, fs = line.split(" ")[1:3]
        place = point.encode().decode("unicode_escape")
        if folder.is_relative_to(place) and len(place) >= len(best):
            best, kind = place, fs
    return Check(
        name=name,
        ok=kind not in NETWORK_FILESYSTEMS,
        detail=f"{kind} at {best}",
        cure="SQLite's locks do not hold on network file systems: choose a folder on a local disk with --data-dir.",
    )


def check_disk(folder: Path, free: int) -> Check:
    """Look at the room there is."""
    cure = f"Make room on the disk of {folder}: without it nothing can be accepted."
    return Check(name="disk space", ok=free >= DISK_FREE_BYTES, detail=f"{free / (1 << 30):,.1f} GiB free", cure=cure)


def check_fsync(folder: Path) -> Check:
    """Measure how long the disk takes to keep something for good: every accepted call waits for that."""
    name = "fsync"
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            times = []
            for _ in range(5):
                file.write(b"x" * 4096)
                file.flush()
                started = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - started)
    except OSError as exc:
        return Check(name=name, ok=None, detail=f"cannot write to {folder}: {exc.strerror}")
    median = statistics.median(times)
    cure = "Every call waits for it: choose a folder on a faster (local, solid-state) disk with --data-dir."
    return Check(name=name, ok=median < FSYNC_SLOW_S, detail=f"{median * 1000:.1f} ms (median of 5)", cure=cure)


def check_server(settings: Settings) -> list[Check]:
    """Ask the server whether it is there, ready, of our version, with agents, and what time it has."""
    import httpx

    from dask_fleet import __version__
    from dask_fleet.client import Client

    url = settings.url
    start = "Start one with `dask-fleet serve FILE`, or set FLEET_URL to where it runs."
    try:
        trust = Trust(ca_file=settings.ca_file, fingerprint=settings.fingerprint)
        verify = trust.context() if url.startswith("https:") else False
        with httpx.Client(base_url=url, timeout=REQUEST_TIMEOUT_S, trust_env=not is_loopback(url), verify=verify) as http:
            started = time.perf_counter()
            health = http.get("/healthz")
            took = time.perf_counter() - started
            ready = http.get("/readyz")
    except ConfigError as error:
        return [Check(name="tls", ok=False, detail=error.detail, cure="Correct --ca-file, --fingerprint or their settings.")]
    except httpx.HTTPError as exc:
        if (why := explain(exc)) is not None:
            return [Check(name="tls", ok=False, detail=f"{url}: {why}", cure=CURE)]
        return [Check(name="server", ok=False, detail=f"{url} does not answer ({exc})", cure=start)]
    if not health.is_success:
        cure = "Is that a Dask Fleet server?"
        return [Check(name="server", ok=False, detail=f"{url} answers {health.status_code}", cure=cure)]
    checks = [
        Check(name="server", ok=True, detail=f"{url} answers in {took * 1000:.0f} ms"),
        check_tls(settings),
        Check(
            name="ready",
            ok=ready.is_success,
            detail=ready.text.strip()[:100] or str(ready.status_code),
            cure="It is starting or ending, or waits for its agent: look into its log.",
        ),
        check_clock(health.headers.get("date"), datetime.now(UTC)),
    ]
    try:
        with Client(
            url,
            settings.token,
            timeout_s=REQUEST_TIMEOUT_S,
            patience_s=0,
            ca_file=settings.ca_file,
            fingerprint=settings.fingerprint,
        ) as client:
            status = client.status()
    except FleetError as error:
        cure = "Set FLEET_TOKEN_FILE to DATA_DIR/token of the server, or run this in its folder."
        return [*checks, Check(name="token", ok=False, detail=error.detail, cure=cure)]
    theirs = str(status.get("version"))
    return [
        *checks,
        Check(name="token", ok=True, detail="accepted"),
        Check(
            name="version",
            ok=theirs == __version__,
            detail=f"server {theirs}, client {__version__}",
            cure="Install the same version on both sides.",
        ),
        check_agents(status),
    ]


def check_tls(settings: Settings) -> Check:
    """Look at how the way to the server, which has answered, is protected."""
    name = "tls"
    if settings.url.startswith("https:"):
        how = "this machine's authorities" if settings.ca_file is None else str(settings.ca_file)
        return Check(name=name, ok=True, detail=f"key pinned: {settings.fingerprint}" if settings.fingerprint else how)
    if is_loopback(settings.url):
        return Check(name=name, ok=None, detail="not needed on loopback")
    cure = "Start the server with --tls auto (or --tls-cert), and use its https URL; or go through an SSH tunnel."
    return Check(name=name, ok=False, detail=f"{settings.url} is clear text: the token can be read on its way", cure=cure)


def check_clock(date: str | None, now: datetime) -> Check:
    """Compare the server's clock with ours (to a second: that is how an HTTP date is written)."""
    name = "clock"
    try:
        skew = (now - parsedate_to_datetime(date or "")).total_seconds()
    except (ValueError, TypeError):
        return Check(name=name, ok=None, detail="the server does not say its time")
    cure = "Deadlines would be wrong: synchronise both clocks (NTP)."
    if abs(skew) < SKEW_S:
        return Check(name=name, ok=True, detail="agrees with the server's")
    side = "ahead of" if skew > 0 else "behind"
    return Check(name=name, ok=False, detail=f"{abs(skew):.0f} s {side} the server's", cure=cure)


def check_agents(status: Mapping[str, Any]) -> Check:
    """Look whether somebody is there to run jobs."""
    agents = [agent for agent in status.get("agents") or () if agent.get("connected", True)]
    slots = sum(int(agent.get("slots") or 0) for agent in agents)
    detail = f"{len(agents)} connected, {slots} slots" if agents else "none connected: jobs wait"
    cure = "Start the server without --no-agent, or an agent with `dask-fleet agent`; its log says why it cannot connect."
    return Check(name="agents", ok=bool(agents) and slots > 0, detail=detail, cure=cure)

