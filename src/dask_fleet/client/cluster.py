"""``FleetCluster``: a Dask cluster on a fleet's warm processes, as any other ``distributed.deploy.Cluster``."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from distributed.core import Status, rpc
from distributed.utils import NoOpAwaitable

from dask_fleet.client import cluster_clients, cluster_watch, embedded
from dask_fleet.client.cluster_questions import Questions
from dask_fleet.client.cluster_request import Duration, request_body
from dask_fleet.client.cluster_security import ClusterSecurity
from dask_fleet.client.cluster_shown import ShownCluster
from dask_fleet.client.cluster_taking import ENDED, POLL_S, TELL_AFTER_S, GivenUp, Taken
from dask_fleet.client.control import in_thread
from dask_fleet.config import Secret, load_client_here
from dask_fleet.model.clusters import DEFAULT_IDLE_TIMEOUT_S
from dask_fleet.model.durations import parse_duration_s
from dask_fleet.model.errors import FleetError, NotFound

_FOUND_AGAIN_S = 60.0
"""How long a client that is being made waits for a scheduler in place of one that was lost."""
_LOOK_S = 0.05
_FIRST_LOOK_S = 5.0


class FleetCluster(ShownCluster):
    """A Dask cluster taken from a fleet, usually within a fraction of a second.

    Without a server configured it runs on an embedded fleet: a process of its own on this machine, which ends with this one.

    Parameters
    ----------
    n_workers
        Dask workers. It starts with what is free and grows. By default 1, on an embedded fleet as many as there are CPUs.
    threads_per_worker, memory_limit, resources
        Of each worker. Without a memory limit it may use the part of its host's memory that goes with its threads.
    name
        To find it by; unique among the living clusters of the tenant. Made up if not given.
    pool
        Where its workers run.
    idle_timeout, max_lifetime
        Seconds, or text such as ``"20m"``; ``None`` for no limit. Idle is who computes nothing and whose clients are silent.
    config
        Dask's configuration for its scheduler and workers.
    env
        Variables of each worker process, set before any preload and task there. What is read when Python or a library is
        loaded comes too late; and they are kept in the cluster's record, so give no secrets.
    preload, scheduler_preload
        Modules that workers, and the scheduler, import first.
    scheduler_memory_limit
        Of the scheduler, which is killed at 95 % of it and replaced. The fleet's if not given.
    worker_options
        The same by the names of ``distributed.Worker`` and ``Nanny``: ``nthreads``, ``memory_limit``, ``resources``,
        ``preload``, ``env``, ``local_directory`` (where it spills to). Others are refused, saying what to use instead.
    dashboard
        Whether the scheduler serves one, on its host's loopback.
    access
        Who may use, scale and close it: ``"user"`` (the default) whose it is, ``"tenant"`` all of the tenant. Administrators
        always may. Who uses it can run code in it and read all that it holds.
    shared
        Whether its workers join warm processes that the tenant's jobs and other shared clusters use as well, instead of
        fresh ones. There is less to start, but process state is everybody's: modules, environment, ``dask.config``.
    shutdown_on_close
        Whether it ends with this object. If not, find it again with `from_name`. It can be changed later.
    timeout
        How long to wait until it runs; ``None`` for ever. What it waits for is printed.
    quiet
        Print nothing.
    url, token, ca_file, fingerprint
        The server, as of `Client`.
    asynchronous, loop
        As of ``distributed.LocalCluster``.

    Raises
    ------
    ValueError, TypeError
        If an argument cannot be.
    Conflict
        If the name is in use.
    ClusterImpossible, QuotaExceeded
        If the pool, or the user, can never have such a cluster.
    VersionMismatch
        If Dask would fail between the versions here and there; lesser differences are warned of.
    ClusterFailed
        If it could not be brought up.
    WaitTimeout
        If it does not run within `timeout`. In each case nothing is left running.

    Examples
    --------
    ::

        with FleetCluster(n_workers=8) as cluster, distributed.Client(cluster) as client:
            client.submit(sum, range(10)).result()
    """

    _instances: ClassVar[weakref.WeakSet[FleetCluster]] = weakref.WeakSet()

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        *,
        memory_limit: str | float | None = None,
        resources: Mapping[str, float] | None = None,
        name: str | None = None,
        pool: str | None = None,
        idle_timeout: Duration = DEFAULT_IDLE_TIMEOUT_S,
        max_lifetime: Duration = None,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, Any] | None = None,
        preload: str | Iterable[str] = (),
        scheduler_preload: str | Iterable[str] = (),
        scheduler_memory_limit: str | float | None = None,
        worker_options: Mapping[str, Any] | None = None,
        dashboard: bool = True,
        access: str | None = None,
        shared: bool = False,
        shutdown_on_close: bool = True,
        timeout: Duration = None,
        quiet: bool = False,
        url: str | None = None,
        token: str | Secret | None = None,
        ca_file: str | Path | None = None,
        fingerprint: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        _join: str | None = None,
    ) -> None:
        self.status = Status.closed  # should the constructor fail, there is nothing to warn of
        given = {"url": url, "token": token, "ca_file": ca_file, "fingerprint": fingerprint}
        found = load_client_here(given)
        on_embedded = found.origins["url"] == "default"
        if n_workers is None:
            n_workers = embedded.default_workers(threads_per_worker) if on_embedded and _join is None else 1
        body = request_body(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            memory_limit=memory_limit,
            resources=resources,
            worker_options=worker_options,
            name=name,
            pool=pool,
            idle_timeout=idle_timeout,
            max_lifetime=max_lifetime,
            config=config,
            env=env,
            preload=preload,
            scheduler_preload=scheduler_preload,
            scheduler_memory_limit=scheduler_memory_limit,
            dashboard=dashboard,
            access=access,
            shared=shared,
            shutdown_on_close=shutdown_on_close,
        )
        self._taken = Taken(None if on_embedded else found.settings, body, join=_join)
        self._taken.shutdown_on_close = shutdown_on_close
        self._timeout_s = None if timeout is None else parse_duration_s(timeout)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._leaving = set()
        self._release: weakref.finalize[Any, Any] | None = None
        self.security: Any = None
        self._info: Any = {"workers": {}}
        self._info_is_there = threading.Event()
        self._first_look_s = _FIRST_LOOK_S
        self.info_is_wanted = asyncio.Event()
        """Somebody asks what the scheduler tells: do not wait with following it."""
        self.is_lost = False
        """Its scheduler does not answer, and no other one has been found yet."""
        self.questions = Questions()
        self._asynchronous = asynchronous
        super().__init__(asynchronous=asynchronous, loop=loop, quiet=quiet, name=name or _join or "")
        if not asynchronous:
            try:
                self._loop_runner.start()  # its thread comes up while the server answers
                self._take()
                self.sync(self._begin)
            except BaseException:
                self._give_up()
                raise

    @classmethod
    def from_name(cls, name: str, *, shutdown_on_close: bool = False, **options: Any) -> Self:
        """Find a living cluster of one's own, or one with ``access="tenant"``, and join it.

        Parameters
        ----------
        name
            Its name, or its id.
        shutdown_on_close
            Whether it ends with this object.
        options
            ``url``, ``token``, ``ca_file``, ``fingerprint``, ``timeout``, ``quiet``, ``asynchronous`` and ``loop`` as of
            the constructor.

        Raises
        ------
        NotFound
            If there is none of that name in one's tenant.
        Forbidden
            If it is another user's, who has not given it ``access="tenant"``.
        """
        return cls(_join=name, shutdown_on_close=shutdown_on_close, **options)

    # ------------------------------------------------------------------ life

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._started().__await__()

    async def _started(self) -> Self:
        if self.status == Status.created:
            self.status = Status.starting
            try:
                await in_thread(self._take)
                await self._begin()
            except BaseException:
                # Ctrl-C and time-outs as well: nothing is left running, whatever had been asked for by then.
                await asyncio.shield(asyncio.create_task(in_thread(self._give_up), name="give-up"))
                raise
        elif self.is_lost:
            # A client that is being made: at the old address it would try in vain until its time-out.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FOUND_AGAIN_S):
                    while self._is_looked_for():  # noqa: ASYNC110 - whoever looks for it may end at any step
                        await asyncio.sleep(_LOOK_S)
        if self.status == Status.running:
            self.loop.add_callback(_quicken, weakref.ref(self))  # whoever waits for a cluster may do so on a loop of its own
        return self

    def _is_looked_for(self) -> bool:
        return bool(self.is_lost and self.status == Status.running)

    def _take(self) -> None:
        self._taken.take(self._timeout_s, self._log)

    async def _begin(self) -> None:
        """Begin to use the cluster, on the loop."""
        taken, document = self._taken, self._taken.document
        assert taken.key is not None
        if self.status not in (Status.created, Status.starting):
            raise GivenUp("the cluster was closed before it ran")
        self.name = document["name"]
        self.security = ClusterSecurity(taken.key, ca=document["ca"], certificate=document["certificate"])
        self._connect(document["address"])
        self.status = Status.running
        me = weakref.ref(self)
        tasks = [self._spawn(cluster_watch.follow(me), "follow"), self._spawn(cluster_watch.keep_certificate(me), "renew")]
        if document["workers"] < document["n_workers"]:
            tasks.append(self._spawn(_tell_of_workers(me), "workers"))
        self._instances.add(self)
        self._release = weakref.finalize(self, _forgotten, taken, self.loop, tasks)
        self._release.atexit = False  # `_close_all` does it in good order

    def _connect(self, address: str) -> None:
        self.connection_args = self.security.get_connection_args("client")
        # It connects when it is first used: most programs only ever use their client's connections.
        self.scheduler_comm = rpc(address, connection_args=self.connection_args)

    def _give_up(self) -> None:
        """Let nothing run of a cluster that we do not get. Blocks for some seconds at most."""
        self.status = Status.closed
        if self._release is not None:
            self._release.detach()
        with contextlib.suppress(RuntimeError):
            self._loop_runner.stop()
        self._taken.give_back()

    @property
    def shutdown_on_close(self) -> bool:
        """Whether it ends with this object."""
        return self._taken.shutdown_on_close

    @shutdown_on_close.setter
    def shutdown_on_close(self, wanted: bool) -> None:
        self._taken.shutdown_on_close = bool(wanted)

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        if not self._taken.is_of_this_process:
            self.status = Status.closed  # a forked child's copy: neither the cluster nor its connections are the child's
            return
        was = self.status
        self.status = Status.closing
        self._instances.discard(self)
        if self._release is not None:
            self._release.detach()
        with contextlib.suppress(AttributeError):
            self._adaptive.stop()
        self.questions.drop()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.scheduler_comm is not None:
            await self.scheduler_comm.close_rpc()
        for callback in self.periodic_callbacks.values():
            callback.stop()
        try:
            if was in (Status.created, Status.starting):
                await in_thread(self._taken.give_back)
            elif self.shutdown_on_close:
                await in_thread(self._taken.close)
        finally:
            self._taken.let_go()
            self.status = Status.closed

    def close(self, timeout: float | None = None) -> Any:
        """Close it, or, without `shutdown_on_close`, leave it to itself. Twice is harmless."""
        if not self._taken.is_of_this_process:
            self.status = Status.closed
            return NoOpAwaitable() if self._asynchronous else None
        closing = super().close(timeout)
        if not self._asynchronous and not self.asynchronous:
            self._loop_runner.stop()
        return closing

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def _shut(self, reason: str) -> None:
        """The cluster has ended, not by us."""
        self._log(f"cluster {self.name} has ended: {reason}")
        self.shutdown_on_close = False
        self._instances.discard(self)
        if self._release is not None:
            self._release.detach()
        with contextlib.suppress(AttributeError):
            self._adaptive.stop()
        self.questions.drop()
        self.status = Status.closed
        for callback in self.periodic_callbacks.values():
            callback.stop()
        await self.scheduler_comm.close_rpc()
        self._taken.let_go()

    # ------------------------------------------------------------------ what there is to see

    async def _wait_for_workers(self, n_workers: int = 0, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as Dask has it
        try:
            await super()._wait_for_workers(n_workers, timeout)
        except TimeoutError as exc:
            with contextlib.suppress(FleetError, OSError):
                await in_thread(self._taken.look)
                exc.add_note(f"The cluster waits for {self._document['waiting_for'] or 'nothing that the server knows of'}.")
            raise

    @property
    def followed(self) -> bool:
        """Whether `scheduler_info` is up to date."""
        return self._info_is_there.is_set()

    @property
    def scheduler_info(self) -> Any:
        """What the scheduler tells of itself and its workers.

        Right after the start the first look waits until it has; on the event loop, it comes a moment later.
        """
        if self.status == Status.running and not (self.followed or self.is_lost):
            if self.asynchronous:
                self.info_is_wanted.set()
            else:
                self.loop.add_callback(self.info_is_wanted.set)
                if not self._info_is_there.wait(self._first_look_s):
                    self._first_look_s = 0.0  # it does not answer: the next look is not to wait in vain as well
        return self._info

    @scheduler_info.setter
    def scheduler_info(self, info: Any) -> None:
        self._info = info

    def learn(self, info: Any) -> None:
        """Take what a scheduler tells, which is followed from now on."""
        self.scheduler_info = info
        self.is_lost = False
        self._info_is_there.set()
        self._first_look_s = _FIRST_LOOK_S

    def sync(self, func: Any, *args: Any, **options: Any) -> Any:
        """See ``distributed``.

        Raises
        ------
        RuntimeError
            If the cluster is closed, or was taken by the process that this one was forked from.
        """
        if not self.asynchronous and self.status not in (Status.created, Status.starting) and func != self._close:
            self._check_use()
        return super().sync(func, *args, **options)

    def _check_use(self) -> None:
        if self.status in (Status.created, Status.starting) and self.scheduler_comm is None:
            raise RuntimeError("the cluster is not started: await it, or use it in an async with statement")
        if not self._taken.is_of_this_process:
            raise RuntimeError(
                f"cluster {self.name} was taken by the process that this one was forked from: join it by "
                f"FleetCluster.from_name({self.name!r})"
            )
        if self.status == Status.closed and self._document:
            raise RuntimeError(
                f"cluster {self.name} is closed: take another one, or FleetCluster.from_name({self.name!r}) if it lives on"
            )

    def __del__(self) -> None:
        taken = getattr(self, "_taken", None)
        if taken is not None and taken.is_of_this_process:
            super().__del__()

    # ------------------------------------------------------------------ the background's steps

    def lose_scheduler(self) -> None:
        """Its scheduler does not answer: nobody is to wait for it."""
        self.is_lost = True
        self.questions.drop()

    async def renew(self) -> None:
        """Have the certificate signed again.

        Raises
        ------
        FleetError
            If the server, or the cluster, does not.
        """
        await in_thread(self._taken.sign)
        self.security.renew(ca=self._document["ca"], certificate=self._document["certificate"])

    async def relocate(self) -> bool:
        """Find out why the scheduler does not answer; return whether another one has been found."""
        epoch = self._document["epoch"]
        told = False
        while self.status == Status.running:
            try:
                await in_thread(functools.partial(self._taken.look, POLL_S if told else 0))
            except NotFound:
                await self._shut("the server knows it no more")
                return False
            except FleetError:
                return False  # the server is away as the scheduler is: both are asked again
            status = self._document["status"]
            if status in ENDED:
                await self._shut(self._taken.why)
                return False
            if status == "running":
                if self._document["epoch"] == epoch:
                    return False
                await self._follow_to_new_scheduler()
                return True
            if not told:
                told = True
                self._log(f"cluster {self.name} has lost its scheduler ({self._taken.why}); another one is on its way")
        return False

    async def _follow_to_new_scheduler(self) -> None:
        await self.renew()
        old = self.scheduler_comm
        self._info_is_there.clear()
        self.scheduler_info = {"workers": {}}
        self._connect(self._document["address"])
        self.is_lost = False
        self.questions.drop()  # whoever has asked the old one meanwhile
        await old.close_rpc()
        await cluster_clients.move_clients(self, self._document["address"])
        self._log(
            f"cluster {self.name} has a new scheduler at {self._document['address']}: futures of before are cancelled, "
            "submit them again"
        )

    def _spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, name=f"{name} {self.name}")
        # Not a bound method: a task's callback must not keep the cluster.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _quicken(cluster_ref: weakref.ref[FleetCluster]) -> None:
    cluster = cluster_ref()
    if cluster is not None and cluster.status == Status.running:
        cluster._spawn(cluster_clients.quicken(cluster_ref), "quicken")  # noqa: SLF001


async def _tell_of_workers(cluster_ref: weakref.ref[FleetCluster]) -> None:
    """Say for what a cluster waits that has fewer workers than were asked for."""
    await asyncio.sleep(TELL_AFTER_S)
    cluster = cluster_ref()
    if cluster is None or cluster.status != Status.running or cluster.quiet:
        return
    with contextlib.suppress(FleetError, OSError):
        await in_thread(cluster._taken.look)  # noqa: SLF001
        document = cluster._document  # noqa: SLF001
        if document["workers"] < document["n_workers"] and document["waiting_for"]:
            there, wanted = document["workers"], document["n_workers"]
            cluster._log(f"cluster {cluster.name} has {there} of {wanted} workers; it waits for {document['waiting_for']}")  # noqa: SLF001


def _forgotten(taken: Taken, loop: Any, tasks: list[asyncio.Task[Any]]) -> None:
    """A cluster was forgotten without being closed."""
    if not taken.is_of_this_process:
        return  # a forked child forgets its copy

    def give_back() -> None:
        with contextlib.suppress(FleetError, OSError):
            if taken.shutdown_on_close:
                taken.close()
        taken.let_go()

    with contextlib.suppress(RuntimeError):
        for task in tasks:
            loop.add_callback(task.cancel)
    threading.Thread(target=give_back, name="dask-fleet close", daemon=True).start()


@atexit.register
def _close_all() -> None:
    for cluster in list(FleetCluster._instances):  # noqa: SLF001
        if cluster.status == Status.closed or not cluster._taken.is_of_this_process:  # noqa: SLF001
            continue
        with contextlib.suppress(Exception):
            if cluster._asynchronous:  # noqa: SLF001 - its loop has ended with its program
                cluster.status = Status.closed
                if cluster.shutdown_on_close:
                    cluster._taken.close()  # noqa: SLF001
            else:
                cluster.close(timeout=10)
