"""Keeps the Dask clients of jobs apart that share a worker process.

``distributed`` remembers default clients process-wide, and ``Client()`` points the process-wide setting ``scheduler``
at them: a plain ``.compute()`` of one job would run on the cluster of another one (or of none, if that is closed). So

* each job has its own table of default clients, chosen by a context variable;
* the setting stays at ``dask.distributed`` for good, and what that means is decided at each look-up: the job's own client
  if it has one, else our threaded scheduler. That way nobody's change of the setting changes anything for others.

What of Dask 2026 this leans on is listed in `install`, which refuses to go on if one of it is missing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, MutableMapping
from contextvars import ContextVar
from typing import Any


class _Table:
    """A job's default clients. Few jobs have any, so the mapping is made when it is first written to."""

    __slots__ = ("clients",)

    def __init__(self) -> None:
        self.clients: MutableMapping[int, Any] | None = None


_NONE: MutableMapping[int, Any] = {}
_job_clients: ContextVar[_Table | None] = ContextVar("fleet_job_clients", default=None)


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


class _NoClient:
    """What Dask takes for a client where there is none: its ``get`` is the threaded scheduler."""

    asynchronous = False

    def __init__(self, get: Callable[..., Any]) -> None:
        self.get = get


def enter_job() -> None:
    """Give the current context (each job runs in one of its own) an empty table of default clients."""
    _job_clients.set(_Table())


def own_client() -> Any | None:
    """Return the client a plain ``.compute()`` should use here: the job's own, the one of our Dask task, or ``None``."""
    from distributed.worker import get_client

    try:
        return get_client()
    except ValueError:
        return None


def install(get: Callable[..., Any]) -> None:
    """Set this process up: `get` computes wherever a job has no client of its own.

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
    stand_in = _NoClient(get)

    class _AlwaysAClient:
        """`get_scheduler` asks only whether there is one."""

        @staticmethod
        def current(*, allow_global: bool = True) -> Any:  # noqa: ARG004
            return own_client() or stand_in

    setattr(dask.base, "_DistributedClient", _AlwaysAClient)  # noqa: B010 - mypy would refuse the plain assignment
    setattr(dask.base, "_get_distributed_client", lambda: own_client() or stand_in)  # noqa: B010
    clients = distributed.client._global_clients  # noqa: SLF001
    if not isinstance(clients, _ClientsOfThisJob):
        distributed.client._global_clients = _ClientsOfThisJob(clients)  # noqa: SLF001
    dask.config.set(scheduler="dask.distributed")
