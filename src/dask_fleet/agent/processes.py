"""The worker processes of an agent: how many there are, what they have loaded, and how they come and go.

Attempts are the supervisor's business; here they count only as what a process still carries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from itertools import chain

from dask_fleet.agent.attempts import common_versions
from dask_fleet.agent.deaths import Death
from dask_fleet.agent.launcher import Launcher
from dask_fleet.agent.watch import Watch
from dask_fleet.agent.worker_frames import FromWorker
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.protocol.frames import Load, Loaded, Ready, Stop, Welcome

log = logging.getLogger(__name__)

_RELAUNCH_S = (0.2, 30.0)
"""First and longest wait after a worker process died before it had loaded: nothing forks in a hot loop."""
_STOP_S = 5.0
"""How long an idle worker process may take to stop before it is killed."""
_READY_S = 30.0
"""How long a process for a Dask worker may take to say that it is ready."""
_SWEEP_S = (0.01, 5.0)
"""First and longest wait between two looks for orphans."""
_ALONE_IDLE_S = 30.0
"""How long a process for a suspect is kept when the suspect it was started for has gone elsewhere."""


class Processes:
    """`nworkers` processes that share the attempts, and at most as many for suspects, each for one and on demand.

    Parameters
    ----------
    report
        Gets `Ready`, after each change.
    on_frame
        Gets what a process says of its attempts.
    on_change
        Called when a process has loaded, so that what waits is placed.
    on_exit
        Called when a process has ended, with its death; it may carry attempts.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        nworkers: int,
        nthreads: int,
        memory_limit_bytes: int,
        report: Callable[[Ready], None],
        on_frame: Callable[[WorkerProcess, FromWorker], None],
        on_change: Callable[[], None],
        on_exit: Callable[[WorkerProcess, Death], None],
    ) -> None:
        self.shared: list[WorkerProcess] = []
        """Those that take any attempt."""
        self.alone: list[WorkerProcess] = []
        """Those for a suspect."""
        self.leased: list[WorkerProcess] = []
        """Those for one Dask worker each, spares included."""
        self._launcher = launcher
        self._nworkers = nworkers
        self._nthreads = nthreads
        self._report = report
        self._on_frame = on_frame
        self._on_change = on_change
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(
            self.all, lambda: launcher.forkserver_pid, tend=launcher.have_standby, limit_bytes=memory_limit_bytes
        )
        self._sweep: asyncio.Task[None] | None = None
        self._swept_enough = True
        self._launching: set[asyncio.Task[None]] = set()
        self._launching_alone = 0
        self._coming: dict[str, asyncio.Future[bool]] = {}
        """Processes for Dask workers that are not ready yet, by token."""
        self._failed_launches = 0
        self._load_deaths = ""
        """How processes end that die while they load; empty when none did."""
        self._welcome: Welcome | None = None
        self._generation = 0
        self._last_ready: Ready | None = None
        self._ready_once = False
        self._closing = False
        self._gone = asyncio.Event()

    def all(self) -> Iterator[WorkerProcess]:
        """Return every living process."""
        return chain(self.shared, self.alone, self.leased)

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Fork the first processes; they load their services when the server has said which."""
        self._watch.begin()
        for _ in range(self._nworkers):
            self._launch(0.0)

    def replace_no_more(self) -> None:
        """Let those that end be the last."""
        self._closing = True
        # Else the server would send what is given back again at once, for as long as the drain takes.
        self._report(Ready({}, {}, 0))

    async def close(self) -> None:
        """Kill all processes and wait until they have ended. Twice is harmless."""
        self._closing = True
        tasks = [*self._launching, *([self._sweep] if self._sweep else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in self.all():
            worker.kill()
        if any(True for _ in self.all()):
            self._gone.clear()
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._gone.wait()
            except TimeoutError:
                log.critical("worker processes survive SIGKILL", extra={"action": "unkillable"})
        self._watch.close()

    def welcome(self, welcome: Welcome) -> None:
        """Load what the server serves; processes that loaded something else, or failed to, make room for new ones."""
        self._welcome = welcome
        self._generation += 1
        self._failed_launches, self._load_deaths = 0, ""
        self._last_ready = None  # a new connection is told again
        for worker in [*self.shared, *self.alone]:
            if worker.generation == 0:
                worker.load_services(welcome.targets, self._generation)
            elif worker.versions is not None and self._is_outdated(worker, welcome):
                self.retire(worker)
        self._tell_ready()

    # ------------------------------------------------------------------ what can run here

    @property
    def one_is_ready(self) -> bool:
        """Whether any of the shared processes can run something."""
        return any(worker.ready for worker in self.shared)

    def is_hopeless(self, service: str, version: str, *, alone: bool) -> bool:
        """Return whether nothing here could load that, and nothing is about to."""
        if alone:
            idle = [worker for worker in self.alone if worker.ready]
            return bool(idle) and all((worker.versions or {}).get(service) != version for worker in idle)
        if len(self._launching) > self._launching_alone or len(self.shared) < self._nworkers:
            return False
        return all(worker.ready and (worker.versions or {}).get(service) != version for worker in self.shared)

    def problems(self) -> str:
        """Return why services could not be loaded, in one text."""
        return "; ".join(sorted({problem for worker in self.all() for problem in worker.problems.values()}))

    @property
    def load_deaths(self) -> str:
        """How processes end that die while they load, again and again; empty when none did."""
        return self._load_deaths

    # ------------------------------------------------------------------ processes for suspects

    def provide_alone(self, suspects: int) -> None:
        """See to it that processes come for so many waiting suspects, as far as there may be so many."""
        coming = self._launching_alone + sum(not worker.attempts and not worker.retiring for worker in self.alone)
        room = self._nworkers - len(self.alone) - self._launching_alone
        for _ in range(min(suspects - coming, room)):
            self._launch(self._backoff_s() if self._load_deaths else 0.0, alone=True)

    # ------------------------------------------------------------------ processes for Dask workers, and for tenants

    async def launch_for_lease(self) -> WorkerProcess:
        """Fork a process for one Dask worker; it can join at once.

        Raises
        ------
        OSError, EOFError
            If the forkserver died, the host has no process left to give, or it ended before it was ready.
        """
        worker = await self._launcher.launch(for_lease=True)
        ready = self._coming[worker.token] = self._loop.create_future()
        self.leased.append(worker)
        worker.watch(self._frame, self._exited)
        try:
            if self._closing:
                raise OSError("the agent is ending")
            worker.send(Load([]))
            await asyncio.wait([ready], timeout=_READY_S)
            if not ready.done() or not ready.result():
                raise OSError("a worker process ended, or hung, before it was ready")
        except BaseException:
            worker.kill()
            raise
        finally:
            self._coming.pop(worker.token, None)
        return worker

    def choose_for_lease(self, tenant: str, threads: int) -> WorkerProcess | None:
        """Return a shared process that could carry a Dask worker of that tenant, best one that serves it already."""
        return min(
            (
                worker
                for worker in self.shared
                if worker.ready and worker.tenant in {None, tenant} and worker.load + threads <= worker.nthreads
            ),
            key=lambda worker: (worker.tenant is None, worker.load),
            default=None,
        )

    def make_room_for(self, tenant: str) -> bool:
        """Let a process of another tenant be replaced, if that is why this tenant has none; returns whether one comes."""
        if any(worker.tenant in {None, tenant} and not worker.retiring for worker in self.shared):
            return False
        if not self.shared or any(worker.retiring for worker in self.shared) or len(self._launching) > self._launching_alone:
            return True
        self.retire(min(self.shared, key=lambda worker: worker.load))
        return True

    def _stop_idle(self, worker: WorkerProcess) -> None:
        if worker in self.alone and not worker.attempts and not worker.retiring:
            self.retire(worker)

    # ------------------------------------------------------------------ coming and going

    def retire(self, worker: WorkerProcess) -> None:
        """Give a process no new attempts, and end it when it has none."""
        worker.retiring = True
        self.stop_if_done(worker)

    def stop_if_done(self, worker: WorkerProcess) -> None:
        """End a retiring process that carries nothing any more."""
        if worker.retiring and not worker.attempts and not worker.leases:
            worker.send(Stop())
            # A thread of user code can hold the interpreter so that the stop is never read.
            self._loop.call_later(_STOP_S, worker.kill)

    def _launch(self, delay_s: float, *, alone: bool = False) -> None:
        if self._closing:
            return
        self._launching_alone += alone
        task = self._loop.create_task(self._bring_up(delay_s, alone=alone), name="launch-worker")
        self._launching.add(task)
        task.add_done_callback(self._launched_alone if alone else self._launched)

    def _launched_alone(self, task: asyncio.Task[None]) -> None:
        self._launching_alone -= 1
        self._launched(task)

    def _launched(self, task: asyncio.Task[None]) -> None:
        self._launching.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("no worker process could be launched", exc_info=exc, extra={"action": "launch_failed"})

    async def _bring_up(self, delay_s: float, *, alone: bool) -> None:
        first, longest = _RELAUNCH_S
        while True:
            if delay_s:
                await asyncio.sleep(delay_s)
            try:
                worker = await self._launcher.launch(alone=alone)
            except Exception as exc:
                foreseen = isinstance(exc, (OSError, EOFError))
                delay_s = min(longest, max(first, delay_s * 2))
                log.warning(
                    "fork failed, again in %.1f s: %s", delay_s, exc,
                    exc_info=None if foreseen else exc, extra={"action": "fork_failed"},
                )  # fmt: skip
                continue
            break
        (self.alone if alone else self.shared).append(worker)
        worker.watch(self._frame, self._exited)
        if self._closing:
            worker.kill()
        elif self._welcome is not None:
            worker.load_services(self._welcome.targets, self._generation)

    def _frame(self, worker: WorkerProcess, frame: FromWorker) -> None:
        if not isinstance(frame, Loaded):
            self._on_frame(worker, frame)
            return
        if worker.for_lease:
            worker.versions = {}
            if (ready := self._coming.get(worker.token)) is not None and not ready.done():
                ready.set_result(True)
            return
        worker.versions, worker.problems = frame.versions, frame.problems
        if frame.problems:
            log.warning("services not loaded: %s", frame.problems, extra={"action": "load_failed"})
        else:
            self._failed_launches, self._load_deaths = 0, ""
        if self._welcome is not None and worker.generation != self._generation and self._is_outdated(worker, self._welcome):
            self.retire(worker)  # the server has changed its mind meanwhile
        if worker.alone:
            self._loop.call_later(_ALONE_IDLE_S, self._stop_idle, worker)
        self._tell_ready()
        self._on_change()

    def _exited(self, worker: WorkerProcess, code: int | None) -> None:
        (self.leased if worker.for_lease else self.alone if worker.alone else self.shared).remove(worker)
        death = worker.death or self._watch.of_exit(worker, code)
        expected = self._closing or (worker.retiring and worker.death is None and not worker.attempts and not worker.leases)
        if not expected and worker.death is None:  # else whoever killed it has said so
            log.warning(
                "worker process %s", death.how,
                extra={"action": "worker_exit", "worker": worker.name, "cause": str(death.cause), "how": death.how},
            )  # fmt: skip
        delay_s = 0.0
        if worker.for_lease:
            if (ready := self._coming.get(worker.token)) is not None and not ready.done():
                ready.set_result(False)
        elif worker.versions is None and not expected:
            delay_s = self._backoff_s()
            self._failed_launches += 1
            if self._welcome is not None and self._failed_launches > 1:
                self._load_deaths = death.how
        if not worker.alone and not worker.for_lease:
            self._launch(delay_s)  # before anything else: the sooner there is another, the better
        self._on_exit(worker, death)
        self._end_orphans()
        if not any(True for _ in self.all()):
            self._gone.set()
        self._tell_ready()

    def _end_orphans(self) -> None:
        """Look for what an ended process has left, now and until nothing is found."""
        self._swept_enough = False
        if not self._closing and (self._sweep is None or self._sweep.done()):
            self._sweep = self._loop.create_task(self._end_all_orphans(), name="end-orphans")

    async def _end_all_orphans(self) -> None:
        wait_s, longest = _SWEEP_S
        while not self._swept_enough:
            self._swept_enough = True
            try:
                found = await self._launcher.end_orphans()
            except Exception:
                log.exception("orphans not ended", extra={"action": "sweep_failed"})
                return
            if found:  # the dying take a moment, and then their children turn up
                self._swept_enough = wait_s > longest  # the last one cannot be killed; the next exit tries again
                await asyncio.sleep(wait_s)
                wait_s *= 2

    def _backoff_s(self) -> float:
        first, longest = _RELAUNCH_S
        return min(longest, first * 2.0 ** min(self._failed_launches, 10))

    def _is_outdated(self, worker: WorkerProcess, welcome: Welcome) -> bool:
        loaded = worker.versions or {}
        return bool(worker.problems) or any(loaded.get(name) != version for name, version in welcome.versions.items())

    def _tell_ready(self) -> None:
        """Report what the processes have loaded, when all of the first have, and after each change."""
        if self._welcome is None or self._closing:
            return
        ready = [worker for worker in self.shared if worker.ready]
        if len(ready) < self._nworkers and not self._ready_once and not self._load_deaths:
            return
        self._ready_once = True
        versions = common_versions([worker.versions or {} for worker in ready])
        problems: dict[str, str] = {}
        for worker in ready:
            problems.update(worker.problems)
        if self._load_deaths and len(ready) < self._nworkers:
            for target in self._welcome.targets:
                problems[target] = f"a worker process that was loading the services {self._load_deaths}"
        for name, wanted in self._welcome.versions.items():
            if ready and versions.get(name, wanted) != wanted:
                problems[name] = (
                    f"the files of {name} here are not those the server has read: if they have changed, restart the server "
                    "to serve the new version; on another host, bring the server's files to it"
                )
        frame = Ready(versions, problems, len(ready) * self._nthreads)
        if frame != self._last_ready:
            self._last_ready = frame
            self._report(frame)
            for target, problem in problems.items():
                log.warning(
                    "this agent gets no jobs of %s: %s (a service must be importable here, under the same path or name as "
                    "on the server; then start the agent again)",
                    target,
                    problem,
                    extra={"action": "service_unavailable"},
                )
