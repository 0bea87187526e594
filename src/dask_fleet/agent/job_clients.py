"""Keeps the Dask clients of jobs apart that share a worker process.

``distributed`` remembers default clients process-wide, and ``Client()`` points the process-wide setting ``scheduler``
at them: a plain ``.compute()`` of one job would run on the cluster of another one (or of none, if that is closed). So

* each job has its own table of default clients, chosen by a context variable;
* the setting stays at ``dask.distributed`` for good, and what that means is decided at each look-up: the job's own client
  if it has one, else our threaded scheduler. That way nobody's change of the setting changes anything for others.

What of Dask 2026 this leans on is listed in `install`, which refuses to go on if one of it is missing.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterator, MutableMapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from dask_fleet.model.placement import PlacementMode

if TYPE_CHECKING:
    from dask_fleet.agent.graphs import Size
    from dask_fleet.model.placement import Placement


class Driver(Protocol):
    """An attempt that can have a Dask cluster of its own."""

    placement: Placement

    def connect(self, size: Size | None = None) -> Any:
        """Return a synchronous client of the cluster, waiting until there is one. The calling thread loses its place."""
        ...


class ClientTable:
    """A job's default clients. Few jobs have any, so the mapping is made when it is first written to."""

    __slots__ = ("clients", "driver")

    def __init__(self, driver: Driver | None = None) -> None:
        self.driver = driver
        self.clients: MutableMapping[int, Any] | None = None

    def add(self, client: Any) -> None:
        """Make `client` the default one."""
        from distributed.client import _global_client_index as index

        if self.clients is None:
            self.clients = weakref.WeakValueDictionary()
        self.clients[index[0]] = client
        index[0] += 1


_NONE: MutableMapping[int, Any] = {}
_job_clients: ContextVar[ClientTable | None] = ContextVar("fleet_job_clients", default=None)


class _ClientsOfThisJob(MutableMapping[int, Any]):
    """Stands in for ``distributed.client._global_clients``; outside of jobs it is the table of the process."""

    def __init__(self, process_wide: MutableMapping[int, Any]) -> None:
        self._process_wide = process_wide

    def _mine(self) -> MutableMapping[int, Any]:
        table = _job_clients.get()
        if table is None:
            return self._process_wide
        return _NONE if table.clients is None else table.clients

    def __getitem__(self, key: int) -> Any:
        return self._mine()[key]

    def __setitem__(self, key: int, client: Any) -> None:
        table = _job_clients.get()
        if table is None:
            self._process_wide[key] = client
            return
        if table.clients is None:
            table.clients = weakref.WeakValueDictionary()
        table.clients[key] = client

    def __delitem__(self, key: int) -> None:
        del self._mine()[key]

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._mine()))

    def __len__(self) -> int:
        return len(self._mine())


def enter_job(driver: Driver | None = None) -> ClientTable:
    """Give the current context (each job runs in one of its own) an empty table of default clients."""
    table = ClientTable(driver)
    _job_clients.set(table)
    return table


def table() -> ClientTable:
    """Return the table of the job whose code runs here."""
    return _job_clients.get() or enter_job()


def driver() -> Driver | None:
    """Return the attempt whose code runs here, if it may have a cluster of its own."""
    table = _job_clients.get()
    return None if table is None else table.driver


def own_client() -> Any | None:
    """Return the client a plain ``.compute()`` should use here: the job's own, the one of our Dask task, or ``None``."""
    from distributed.worker import get_client

    try:
        return get_client()
    except ValueError:
        return None


def client_or(stand_in: Any) -> Any:
    """Return the client of a plain ``.compute()`` here; where the author forces a cluster, that of the job's own one.

    Dask asks before it optimises: how a dataframe is shuffled depends on whether there is a cluster.
    """
    client = own_client()
    if client is not None:
        return client
    job = driver()
    if job is not None and job.placement.mode is PlacementMode.CLUSTER and not on_event_loop():
        return job.connect()
    return stand_in


def on_event_loop() -> bool:
    """Whether an event loop runs in this thread: nobody may wait for another loop here."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def install(stand_in: Any) -> None:
    """Set this process up: wherever a job has no client of its own, Dask takes `stand_in` for one.

    It has a ``get`` and a ``persist``.

    Raises
    ------
    RuntimeError
        If the installed Dask has changed inside in a way that would let jobs meet.
    """
    import dask
    import dask.base
    import distributed.client

    for module, name in (
        (distributed.client, "_global_clients"),
        (distributed.client, "_current_client"),
        (distributed.client, "_global_client_index"),
        (dask.base, "_distributed_available"),
        (dask.base, "_get_distributed_client"),
        (dask.base, "_DistributedClient"),
    ):
        if not hasattr(module, name):
            raise RuntimeError(
                f"{module.__name__} no longer has {name}: this version of Dask cannot keep jobs apart; "
                "install the versions of constraints.txt"
            )
    dask.base._distributed_available()  # fills the two names that are replaced now  # noqa: SLF001

    class _AlwaysAClient:
        """`get_scheduler` asks only whether there is one."""

        @staticmethod
        def current(*, allow_global: bool = True) -> Any:  # noqa: ARG004
            return own_client() or stand_in  # asked for explicit schedulers, too: no reason to have a cluster

    setattr(dask.base, "_DistributedClient", _AlwaysAClient)  # noqa: B010 - mypy would refuse the plain assignment
    setattr(dask.base, "_get_distributed_client", lambda: client_or(stand_in))  # noqa: B010
    clients = distributed.client._global_clients  # noqa: SLF001
    if not isinstance(clients, _ClientsOfThisJob):
        distributed.client._global_clients = _ClientsOfThisJob(clients)  # noqa: SLF001
    dask.config.set(scheduler="dask.distributed")
