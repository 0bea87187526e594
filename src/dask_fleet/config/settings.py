"""Every setting of Fleet: what it means, its unit, and why its default is what it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dask_fleet.config.cpus import available_cpus
from dask_fleet.config.secret import Secret

DEFAULT_URL = "http://127.0.0.1:8000"
MAX_CERTIFICATE_LIFETIME_S = 24 * 3600.0
LOG_LEVELS = ("debug", "info", "warning", "error")
TLS_MODES = ("off", "auto")
LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Files, variables and flags name them without the unit: ``orphan_timeout_s`` is ``orphan-timeout``."""

    host: str = "127.0.0.1"
    """Address the server listens on. Loopback, because without TLS a token on another address could be read on its way:
    those are refused unless `tls` or `tls_cert` is set."""
    tls: str = "off"
    """``auto``: the server makes key and certificate in its data folder, and who connects pins the key's fingerprint. Off,
    as loopback needs none; other addresses need this or `tls_cert`."""
    tls_cert: Path | None = None
    """Certificate (PEM, with its chain) that the server shows; read anew when it changes. None: clear text on loopback."""
    tls_key: Path | None = None
    """Private key of the certificate (PEM, not encrypted). None: it is in the certificate's file."""
    port: int = 8000
    """TCP port the server listens on; 0 takes any free one. 8000 is what Python's web servers use."""
    data_dir: Path = Path(".fleet")
    """Folder of ledger, results, spool and token. In the working folder, so that two projects do not mix."""
    nworkers: int = field(default_factory=available_cpus)
    """Worker processes of the local agent. The CPUs this process may use: affinity and container quota counted."""
    nthreads: int = 1
    """Threads of each worker process. One, as functions in plain Python would only take turns on the GIL."""
    memory_limit: str = "auto"
    """Memory of each worker process: a size such as ``4GiB``, ``none``, or ``auto``, an equal share of what there is.
    Auto, so that a job that takes too much is killed (at 95 %) and told so, before the kernel kills anything else."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Named resources of each agent's host, such as ``GPU=2``: Dask workers that ask for one go where it is free. None, as
    nobody else can know them; a name that no agent of a pool declares is only a label, as Dask has it."""
    spare_schedulers: int = 1
    """Scheduler processes that each agent keeps ready for clusters, and twice as many fresh worker processes. One: a cluster
    is there in a few milliseconds, and what waits costs some megabytes and no CPU."""
    scheduler_memory_limit: str = "auto"
    """Memory of each cluster's scheduler process: a size, ``none``, or ``auto``, a quarter of what there is. At 95 % it is
    killed and replaced, so that one cluster's graphs cost no other cluster its scheduler."""
    certificate_lifetime_s: float = MAX_CERTIFICATE_LIFETIME_S
    """Seconds that certificates within a cluster hold, at most 24 h; they are renewed half-way. A day: what is stolen is of
    no use for long, and a server that is away for a night does no harm."""
    cluster_host: str | None = None
    """Address of this host on which schedulers and Dask workers listen. None: the one that faces the server."""
    agent: bool = True
    """Whether ``serve`` starts a local agent. Yes, so that one command is a working service."""
    orphan_timeout_s: float = 60.0
    """Seconds an agent goes on without its server before it ends. Long enough for a restart or an upgrade."""
    max_queued: int = 100_000
    """Jobs that may wait before a new one is answered with 429. About 100 MB of memory when full."""
    max_clusters_per_user: int = 20
    """Clusters of their own that one user may have at a time. A scheduler takes about 100 MB, and who needs more than these
    has mostly forgotten some."""
    job_share: float = 0.1
    """Part of each pool's slots that users' clusters may not take, rounded up; none of a pool of fewer than four slots,
    or of a server without services. A tenth: clusters that are kept for days slow jobs down, and stop none."""
    max_cluster_workers: int | None = None
    """Dask workers that one cluster may ask for. None: as many as the pool's slots allow."""
    spare_clusters: int = 1
    """Dask clusters that each pool keeps ready, workers joined, for tenants that asked for one in the last 20 minutes; 0 for
    none. One: the next cluster is there at once, and its slots are given back as soon as anybody else wants them."""
    max_connections_per_peer: int = 512
    """Open connections that one address may have; more are answered with 503. A reverse proxy is one address: set it to
    what the proxy opens at most."""
    drain_timeout_s: float = 30.0
    """Seconds that running jobs are given to end on SIGTERM or Ctrl-C. What service managers allow before they kill."""
    row_retention_s: float = 90 * 86_400.0
    """Seconds the record of an ended job is kept. 90 days: a quarter's questions can still be answered."""
    logs_max_bytes: int = 5 << 30
    """What the logs of all jobs may take on disk before the oldest are removed. 5 GiB: thousands of talkative jobs."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names in a request's Host header to answer for. None: loopback names always work, others could be DNS
    rebinding."""
    log_level: str = "info"
    """Least severe log line written: debug, info, warning or error."""
    log_format: str = "text"
    """``text`` for people, ``json`` (one object a line) for log collectors."""
    ledger: str = "sqlite"
    """Name of the ledger's implementation, or ``module:Class``. SQLite needs no service of its own and loses nothing."""
    result_store: str = "files"
    """Name of the result store's implementation, or ``module:Class``. Files in the data folder need nothing else."""
    url: str = DEFAULT_URL
    """Server that SDK and CLI talk to. What ``dask-fleet serve`` listens on when nothing else is said."""
    ca_file: Path | None = None
    """Certificates (PEM) of the authorities that SDK, CLI and agents trust to name the server. None: this machine's."""
    fingerprint: str | None = None
    """``sha256:…`` of the server's public key that SDK, CLI and agents insist on, whoever signed it. None: from the server
    in this folder, else the authorities decide."""
    token: Secret | None = None
    """Token that SDK and CLI show. None here: it comes from a variable, a file or a server in this folder."""
