"""What an agent is told at its start."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dask_fleet.config.fingerprint import parse_fingerprint
from dask_fleet.config.memory import AUTO, parse_memory_limit
from dask_fleet.config.resources import parse_resources
from dask_fleet.config.settings import MAX_CERTIFICATE_LIFETIME_S
from dask_fleet.model.logs import LOG_FOLDER

DEFAULT_ORPHAN_TIMEOUT_S = 60.0
"""Long enough for a server to be upgraded or to restart after a crash; short enough that no host runs for nobody."""
DEFAULT_TIMEOUT_GRACE_S = 10.0
"""A function that asks ``dask_fleet.cancelled()`` between its steps has time to put things in order."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOptions:
    """Settings of one agent process. Exactly one of `server` and `server_file` names the server."""

    token_file: Path
    """File with the agent's token (never the token itself: command lines are readable by everyone on the host)."""
    data_dir: Path
    """Holds the lock, the spool folder and the outbox."""
    server: str | None = None
    """Base URL, such as ``http://127.0.0.1:8000``."""
    server_file: Path | None = None
    """JSON file with a member ``url``; read again at every connect, so that a server may come back on another port."""
    ca_file: Path | None = None
    """Certificates of the authorities that vouch for an ``https`` server."""
    fingerprint: str | None = None
    """``sha256:…`` of the server's key, which is then all that counts. A server file that has one overrules it."""
    name: str = "local"
    """For people; the agent's id begins with it."""
    pool: str = "default"
    """What kind of agent it is, for people."""
    lifetime_s: float | None = None
    """After so long it takes nothing new, lets what runs end, and ends itself; ``None``: it goes on."""
    nworkers: int = 1
    """Worker processes."""
    nthreads: int = 1
    """Threads of each, that is attempts it runs at once."""
    memory_limit: str = AUTO
    """Memory each worker process may have: bytes as text, ``none``, or ``auto`` for an equal share of what there is."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Named resources of its host."""
    spares: int = 1
    """Scheduler processes kept ready for clusters, and twice as many worker processes."""
    scheduler_memory_limit: str = AUTO
    """Memory each scheduler process may have, as `memory_limit`; ``auto`` is a quarter of what there is."""
    certificate_lifetime_s: float = MAX_CERTIFICATE_LIFETIME_S
    """How long the certificates in its clusters hold; they are renewed half-way."""
    cluster_host: str = ""
    """Address on which schedulers and Dask workers listen; empty for the one that faces the server."""
    orphan_timeout_s: float = DEFAULT_ORPHAN_TIMEOUT_S
    """How long running attempts survive without a server."""
    log_file: Path | None = None
    """The file that its standard output and error are, for it to begin another one when that is large; ``None``: they are
    somebody else's to look after."""
    timeout_grace_s: float = DEFAULT_TIMEOUT_GRACE_S
    """How long a function may take to notice that its time is up, before its process is killed."""

    def __post_init__(self) -> None:
        if (self.server is None) == (self.server_file is None):
            raise ValueError("give the agent exactly one of server and server_file")
        if not 1 <= self.certificate_lifetime_s <= MAX_CERTIFICATE_LIFETIME_S:
            raise ValueError("certificate_lifetime must be from 1 s to 24 h")
        if self.spares < 0:
            raise ValueError("spares must not be negative")
        if self.cluster_host in {"0.0.0.0", "::"}:  # noqa: S104
            raise ValueError("cluster_host must be one address of this host, not all of them")
        if self.nworkers < 1 or self.nthreads < 1:
            raise ValueError("nworkers and nthreads must be at least 1")
        if not _NAME.match(self.name) or not _NAME.match(self.pool):
            raise ValueError("name and pool must be 1 to 64 letters, digits and . _ -")
        if self.lifetime_s is not None and self.lifetime_s < 0:
            raise ValueError("lifetime_s must not be negative")
        if self.orphan_timeout_s < 0 or self.timeout_grace_s < 0:
            raise ValueError("orphan_timeout_s and timeout_grace_s must not be negative")

    @property
    def slots(self) -> int:
        """Attempts that can run at once."""
        return self.nworkers * self.nthreads

    @property
    def shares_data(self) -> bool:
        """Whether the data folder is the server's too: then large results need no upload."""
        return self.server_file is not None

    @property
    def spool(self) -> Path:
        """Folder of results too large to travel inline."""
        return self.data_dir / "spool"

    @property
    def logs(self) -> Path:
        """Folder of what attempts write."""
        return self.data_dir / LOG_FOLDER


def parse_arguments(argv: Sequence[str] | None = None) -> AgentOptions:
    """Return the options of a command line (``python -m dask_fleet.agent --help`` lists them); exits with 2 if it is bad."""
    parser = argparse.ArgumentParser(prog="python -m dask_fleet.agent", description="The agent of Dask Fleet.")
    home = parser.add_mutually_exclusive_group(required=True)
    home.add_argument("--server", help="base URL of the server")
    home.add_argument("--server-file", type=Path, help="JSON file with the server's url, DATA_DIR/server.json")
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--ca-file", type=Path)
    parser.add_argument("--fingerprint", type=parse_fingerprint)
    parser.add_argument("--name", default="local")
    parser.add_argument("--pool", default="default")
    parser.add_argument("--lifetime", type=float, metavar="SECONDS")
    parser.add_argument("--nworkers", type=int, default=1)
    parser.add_argument("--nthreads", type=int, default=1)
    parser.add_argument("--memory-limit", default=AUTO, metavar="SIZE", help="of each worker process: 4GiB, auto, none")
    parser.add_argument("--resources", default="", metavar="NAME=AMOUNT,...", help="named resources of this host")
    parser.add_argument("--spares", type=int, default=1, metavar="N", help="scheduler processes kept ready for clusters")
    parser.add_argument("--scheduler-memory-limit", default=AUTO, metavar="SIZE", help="of each scheduler process")
    parser.add_argument("--certificate-lifetime", type=float, default=MAX_CERTIFICATE_LIFETIME_S, metavar="SECONDS")
    parser.add_argument("--cluster-host", default="", metavar="ADDRESS", help="where schedulers and Dask workers listen")
    parser.add_argument("--orphan-timeout", type=float, default=DEFAULT_ORPHAN_TIMEOUT_S, metavar="SECONDS")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="what standard output and error are: kept small")
    parser.add_argument("--timeout-grace", type=float, default=DEFAULT_TIMEOUT_GRACE_S, metavar="SECONDS")
    given = parser.parse_args(argv)
    try:
        return AgentOptions(
            server=given.server,
            server_file=given.server_file,
            token_file=given.token_file,
            data_dir=given.data_dir,
            ca_file=given.ca_file,
            fingerprint=given.fingerprint,
            name=given.name,
            pool=given.pool,
            lifetime_s=given.lifetime,
            nworkers=given.nworkers,
            nthreads=given.nthreads,
            memory_limit=_memory_limit(given.memory_limit),
            resources=_resources(given.resources),
            spares=given.spares,
            scheduler_memory_limit=_memory_limit(given.scheduler_memory_limit, "--scheduler-memory-limit"),
            certificate_lifetime_s=given.certificate_lifetime,
            cluster_host=given.cluster_host,
            orphan_timeout_s=given.orphan_timeout,
            log_file=given.log_file,
            timeout_grace_s=given.timeout_grace,
        )
    except ValueError as exc:
        parser.error(str(exc))


def _resources(given: str) -> dict[str, float]:
    try:
        return parse_resources(given)
    except ValueError as exc:
        raise ValueError(f"--resources must be {exc}, not {given!r}") from None


def _memory_limit(given: str, flag: str = "--memory-limit") -> str:
    try:
        return parse_memory_limit(given)
    except ValueError as exc:
        raise ValueError(f"{flag} must be {exc}, not {given!r}") from None
