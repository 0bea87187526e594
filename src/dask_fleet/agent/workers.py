"""Worker processes, seen from the agent: what each has loaded, carries and may yet take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from dask_fleet.agent.attempts import Attempt, AttemptKey
from dask_fleet.agent.child_process import ChildProcess
from dask_fleet.agent.deaths import Death
from dask_fleet.agent.descendants import Descendants
from dask_fleet.agent.stray_output import StrayOutput
from dask_fleet.agent.vitals import KILL_AT, Vitals
from dask_fleet.agent.worker_frames import FromWorker
from dask_fleet.model.placement import MAX_ATTEMPTS
from dask_fleet.protocol.frames import Frame, Load, Start


class WorkerProcess:
    """A living worker process and what it carries.

    `on_frame` gets each frame of it. `on_exit` is called once, after its last frame, when it has ended: with its exit code,
    negative for a signal, or ``None`` if its forkserver or guard died with it.
    """

    def __init__(
        self,
        child: ChildProcess[FromWorker],
        stray: StrayOutput,
        *,
        name: str,
        token: str,
        nthreads: int,
        alone: bool = False,
        for_lease: bool = False,
        forkserver: int = 0,
    ) -> None:
        self.name = name
        self.nthreads = nthreads
        self._most_attempts = max(MAX_ATTEMPTS, nthreads)
        self.pid = child.pid
        self.attempts: dict[AttemptKey, Attempt] = {}
        self.versions: dict[str, str] | None = None
        """What it has loaded; ``None`` before it has said so."""
        self.problems: dict[str, str] = {}
        self.generation = 0
        """Of the welcome it loaded for."""
        self.retiring = False
        """Gets no new attempts and is replaced after its last one."""
        self.alone = alone
        """Whether it is for one suspect only."""
        self.for_lease = for_lease
        """Whether it is for one Dask worker only."""
        self.forkserver = forkserver
        """Pid of what it was forked from."""
        self.tenant: str | None = None
        """Whom it serves: the first it has served, for its whole life."""
        self.leases: set[str] = set()
        """Slot leases whose Dask workers it carries."""
        self.lent = 0
        """Threads of these, less those that attempts have given away for good."""
        self.limit_bytes: int | None = None
        """Memory it may have, where that is not the agent's: 0 for no limit."""
        self.kill_at = KILL_AT
        """The part of its limit at which it is killed."""
        self.death: Death | None = None
        """Why the agent killed it, if it did; told to the attempts that were in it."""
        self.vitals = Vitals(self.pid)
        self.descendants = Descendants(self.pid)
        self.stray = stray
        self.token = token
        """What the names of its spool files begin with."""
        self._child = child
        self._loop = asyncio.get_running_loop()

    def watch(
        self,
        on_frame: Callable[[WorkerProcess, FromWorker], None],
        on_exit: Callable[[WorkerProcess, int | None], None],
    ) -> None:
        """Begin to listen."""
        self.stray.watch(self.name)
        self._child.watch(partial(on_frame, self), partial(self._exited, on_exit))

    @property
    def ended(self) -> bool:
        """Whether it is no more."""
        return self._child.ended

    @property
    def load(self) -> int:
        """Threads that attempts and Dask workers have of it."""
        return len(self.attempts) + self.lent

    @property
    def ready(self) -> bool:
        """Whether it has loaded its services and is to stay."""
        return self.versions is not None and not self.retiring

    @property
    def has_room(self) -> bool:
        """Whether it could take another attempt of something it has loaded."""
        return (
            self.versions is not None
            and not self.retiring
            and len(self.attempts) + self.lent < self.nthreads
            and len(self.attempts) < self._most_attempts
        )

    def takes(self, start: Start) -> bool:
        """Whether it has a free thread, has loaded that service, and serves that tenant or nobody yet."""
        return (
            self.versions is not None
            and len(self.attempts) + self.lent < self.nthreads
            and len(self.attempts) < self._most_attempts
            and not self.retiring
            and self.versions.get(start.service) == start.version
            and (self.tenant is None or self.tenant == start.tenant)
        )

    def start(self, attempt: Attempt, now: float) -> None:
        """Hand over an attempt."""
        attempt.placed(now)
        self.tenant = attempt.start.tenant
        self.attempts[attempt.key] = attempt
        self.send(attempt.start)

    def load_services(self, targets: list[str], generation: int) -> None:
        """Let it import services; answered by `Loaded`."""
        self.generation = generation
        self.send(Load(targets))

    def send(self, frame: Frame) -> None:
        """Send a frame; what the socket does not take now follows when it can. To a dead process it is lost."""
        self._child.send(frame)

    def kill(self, death: Death | None = None) -> None:
        """Kill it together with what it has started; its exit is reported as any other. The first `death` told counts."""
        if self.ended:
            return
        self.retiring, self.death = True, self.death or death
        self._child.kill()

    def ask_for_end(self) -> None:
        """It is dead, yet nobody has said so: its guard may be stopped, and is told to go on."""
        self._child.ask_for_end()

    def _exited(self, on_exit: Callable[[WorkerProcess, int | None], None], code: int | None) -> None:
        self.stray.drain()
        self.vitals.close()
        on_exit(self, code)
