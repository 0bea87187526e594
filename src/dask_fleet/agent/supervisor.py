"""Owns the attempts of this agent: places them, watches their time, reports every end."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from dask_fleet.agent import deaths
from dask_fleet.agent.attempts import Attempt, AttemptKey, choose_host, due, ended, verdict
from dask_fleet.agent.clusters.frames import AgentBoundFromMembership, Joined, Left, Released, Stragglers
from dask_fleet.agent.deaths import Death
from dask_fleet.agent.launcher import Launcher
from dask_fleet.agent.processes import Processes
from dask_fleet.agent.worker_frames import FromWorker
from dask_fleet.agent.workers import WorkerProcess
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.cluster_frames import JobCluster, NeedCluster
from dask_fleet.protocol.frames import (
    AttemptRef,
    Cancel,
    LogGrown,
    Outcome,
    Progress,
    Ready,
    Start,
    Welcome,
)

log = logging.getLogger(__name__)

_GIVE_BACK_S = 0.1
"""How long an attempt may wait here for a free thread. The server sends short jobs a little ahead; when long ones hold all
threads, what waits behind them goes back, for another agent may be free."""
_NO_WORKER_S = 5.0
"""The same while no process is ready to run anything."""


class Supervisor:
    """The attempts, and the processes that carry them. Everything happens on the event loop's thread.

    Parameters
    ----------
    memory_limit_bytes
        Of each worker process; 0 for none.
    report
        Gets `Ready` and `Progress`; may drop them while disconnected.
    deliver
        Gets each attempt's one outcome; must not lose it.
    discard
        Gets an outcome whose result will not be used.
    discard_left
        Gets the token of a process that has ended, after its outcomes: files it has left that belong to none are of no use.
    on_member
        Gets what a worker process says of its Dask workers.
    on_members_lost
        Called when a process has ended that carried some.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        nworkers: int,
        nthreads: int,
        timeout_grace_s: float,
        report: Callable[[Ready | Progress | LogGrown | NeedCluster], None],
        deliver: Callable[[Outcome], None],
        discard: Callable[[Outcome], None],
        discard_left: Callable[[str], None],
        on_member: Callable[[AgentBoundFromMembership], None],
        on_members_lost: Callable[[WorkerProcess, Death], None],
        memory_limit_bytes: int = 0,
    ) -> None:
        self._slots = nworkers * nthreads
        self._timeout_grace_s = timeout_grace_s
        self._report = report
        self._deliver = deliver
        self._discard = discard
        self._discard_left = discard_left
        self._on_member = on_member
        self._on_members_lost = on_members_lost
        self._loop = asyncio.get_running_loop()
        self._lent = 0
        """Threads that leases have, less those that attempts have given away for good."""
        self._wanted: deque[tuple[int, asyncio.Future[None]]] = deque()
        """Leases that wait for so many threads."""
        self._processes = Processes(
            launcher=launcher,
            nworkers=nworkers,
            nthreads=nthreads,
            memory_limit_bytes=memory_limit_bytes,
            report=report,
            on_frame=self._on_frame,
            on_change=self._on_change,
            on_exit=self._on_exit,
        )
        self._waiting: deque[Attempt] = deque()
        self._suspects: deque[Attempt] = deque()
        """What waits for a process to be alone in. It waits as long as it takes: such processes come and go."""
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._carriers: dict[AttemptKey, WorkerProcess] = {}
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Fork the first worker processes; they load their services when the server has said which."""
        self._processes.begin()

    def take_no_more(self) -> None:
        """Refuse attempts from now on, and replace no worker process."""
        self._closing = True
        self._processes.replace_no_more()
        self._give_back_suspects()

    def give_back_waiting(self) -> None:
        """Return to the server what has not begun."""
        while self._waiting:
            self._return(self._waiting.popleft())
        self._give_back_suspects()

    async def drain(self, timeout_s: float | None) -> None:
        """Wait until all attempts under way have ended, at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("attempts cut off", extra={"action": "drain_timeout", "attempts": len(self._attempts)})

    async def close(self) -> None:
        """Kill all worker processes; attempts still there are reported lost. Twice is harmless."""
        self._closing = True
        self.abandon("its agent was shut down", given_back=True)
        if self._alarm is not None:
            self._alarm.cancel()
        await self._processes.close()

    def abandon(self, why: str, *, report: bool = True, given_back: bool = False) -> None:
        """Give up all attempts, killing the processes that carry them.

        Parameters
        ----------
        report
            Whether to say so.
        given_back
            On somebody's order, as at each upgrade: no fault that a job survives only so many times.
        """
        busy = [worker for worker in self._processes.all() if worker.attempts]
        for attempt in list(self._attempts.values()):
            carrier = self._carriers.get(attempt.key)
            self._forget(attempt)
            if report:
                failure = Failure.bounded(Cause.AGENT_LOST, why)
                name = carrier.name if carrier else ""
                state = AttemptState.CANCELLED if attempt.cancelled or given_back else AttemptState.LOST
                self._deliver(ended(attempt.start, state, name, _now_us(), failure))
        self._waiting.clear()
        self._suspects.clear()
        for worker in busy:
            worker.attempts.clear()
            worker.kill(deaths.GIVEN_UP)

    # ------------------------------------------------------------------ what the server asks

    def held(self) -> list[AttemptRef]:
        """Return the attempts that are under way."""
        return [attempt.ref for attempt in self._attempts.values()]

    @property
    def free(self) -> int:
        """Slots that nothing uses. A suspect has one, though not its thread, so that there is no more work than CPUs."""
        return max(0, self._slots - len(self._attempts) - self._lent)

    def welcome(self, welcome: Welcome) -> None:
        """Load what the server serves; processes that loaded something else, or failed to, make room for new ones."""
        self._processes.welcome(welcome)
        for attempt in self._attempts.values():
            if attempt.need is not None:
                self._report(attempt.need)  # the server may never have heard of it
        self._on_change()

    def start(self, start: Start) -> None:
        """Take an attempt. One that is here already (the server repeated itself) is not run twice."""
        key = (start.seq, start.attempt)
        if key in self._attempts:
            return
        attempt = Attempt(start)
        if self._closing:
            self._deliver(ended(start, AttemptState.CANCELLED, "", _now_us()))  # given back: nobody is to blame
            return
        self._attempts[key] = attempt
        self._idle.clear()
        if start.alone:
            self._suspects.append(attempt)
            self._place_suspects()
        elif self._waiting or not self._place(attempt):
            self._waiting.append(attempt)
            comes = self._processes.make_room_for(start.tenant)
            attempt.waits_until = self._loop.time() + (_NO_WORKER_S if comes else _GIVE_BACK_S)
            self._set_alarm(attempt.waits_until)
            if self._is_hopeless(start):
                self._refuse_hopeless()

    def cancel(self, cancel: Cancel) -> None:
        """End an attempt; one that is unknown is reported lost."""
        attempt = self._attempts.get((cancel.seq, cancel.attempt))
        if attempt is None:
            failure = Failure.bounded(Cause.AGENT_LOST, "its agent does not have it")
            self._deliver(
                Outcome(cancel.seq, cancel.run, cancel.attempt, AttemptState.LOST, "", _now_us(), failure=failure)
            )
            return
        worker = self._carriers.get(attempt.key)
        if worker is None:
            (self._suspects if attempt.start.alone else self._waiting).remove(attempt)
            self._return(attempt)
            return
        attempt.cancel(self._loop.time(), cancel.grace_s)
        worker.send(cancel)
        self._set_alarm(attempt.next_alarm)

    def job_cluster(self, frame: JobCluster) -> None:
        """Pass on the answer to an attempt that asked for a cluster."""
        attempt = self._attempts.get((frame.seq, frame.attempt))
        if attempt is not None and (worker := self._carriers.get(attempt.key)) is not None:
            attempt.need = None
            worker.send(frame)

    # ------------------------------------------------------------------ slots and processes for Dask workers

    @property
    def processes(self) -> Processes:
        """The processes, for whoever lends them to clusters."""
        return self._processes

    async def lend(self, threads: int) -> None:
        """Wait until so many threads are free, and count them as taken. Attempts under way go on, new ones stand back.

        Raises
        ------
        ValueError
            If this agent has not so many.
        """
        if threads > self._slots:
            raise ValueError(f"this agent has {self._slots} slots, not {threads}")
        if self._wanted or self._running + threads > self._slots:
            turn = self._loop.create_future()
            self._wanted.append((threads, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.give_back(threads)
                else:
                    self._wanted.remove((threads, turn))
                    self._serve_wanted()
                raise
        else:
            self._lent += threads

    def give_back(self, threads: int) -> None:
        """Count them as free."""
        self._lent -= threads
        self._serve_wanted()
        self._place_waiting()

    @property
    def _running(self) -> int:
        return len(self._carriers) + self._lent

    def _serve_wanted(self) -> None:
        while self._wanted and self._running + self._wanted[0][0] <= self._slots:
            threads, turn = self._wanted.popleft()
            self._lent += threads
            turn.set_result(None)

    # ------------------------------------------------------------------ placing

    def _place(self, attempt: Attempt) -> bool:
        if self._wanted or (self._lent and self._running >= self._slots):
            return False
        worker = choose_host(self._processes.shared, attempt.start)
        if worker is None:
            return False
        self._hand_over(attempt, worker)
        return True

    def _hand_over(self, attempt: Attempt, worker: WorkerProcess) -> None:
        worker.start(attempt, self._loop.time())
        self._carriers[attempt.key] = worker
        if attempt.deadline < self._alarm_at:
            self._set_alarm(attempt.deadline)

    def _place_waiting(self) -> None:
        """Hand over what waits, oldest first; one whose service no free process has does not hold up the others."""
        passed_over: list[Attempt] = []
        while self._waiting and any(worker.has_room for worker in self._processes.shared):
            attempt = self._waiting.popleft()
            if not self._place(attempt):
                passed_over.append(attempt)
                self._processes.make_room_for(attempt.start.tenant)
        self._waiting.extendleft(reversed(passed_over))

    def _place_suspects(self) -> None:
        """Hand each suspect a process of its own, and let more come for those that are left."""
        for attempt in list(self._suspects):
            worker = choose_host(self._processes.alone, attempt.start)
            if worker is not None:
                self._suspects.remove(attempt)
                self._hand_over(attempt, worker)
                worker.retiring = True  # its first attempt is its last: what that breaks, no other is charged with
        if self._suspects:
            self._processes.provide_alone(len(self._suspects))

    def _on_change(self) -> None:
        """Processes have come, or have loaded something else."""
        self._place_waiting()
        self._place_suspects()
        self._refuse_hopeless()

    def _refuse_hopeless(self) -> None:
        """Fail what waits for code that none of the processes could load and that none is about to."""
        for queue in (self._waiting, self._suspects):
            for attempt in [attempt for attempt in queue if self._is_hopeless(attempt.start)]:
                start = attempt.start
                queue.remove(attempt)
                self._forget(attempt)
                text = (
                    f"no worker process has loaded {start.service} of version {start.version}. {self._processes.problems()}"
                )
                failure = Failure.bounded(Cause.SERVICE_UNAVAILABLE, text.rstrip())
                self._deliver(ended(start, AttemptState.FAILED, "", _now_us(), failure))

    def _is_hopeless(self, start: Start) -> bool:
        return self._processes.is_hopeless(start.service, start.version, alone=start.alone)

    def _give_back(self, now: float) -> float:
        """Return to the server what has waited too long; returns when to look again."""
        # Where no process is ready, one may be starting. If none comes, the server shall know that nothing runs here.
        patience = 0.0 if self._processes.one_is_ready else _NO_WORKER_S
        for attempt in [attempt for attempt in self._waiting if attempt.waits_until + patience <= now]:
            self._waiting.remove(attempt)
            self._return(attempt)
        return min((attempt.waits_until + patience for attempt in self._waiting), default=math.inf)

    def _give_back_suspects(self) -> None:
        while self._suspects:
            self._return(self._suspects.popleft())

    def _return(self, attempt: Attempt) -> None:
        self._forget(attempt)
        self._deliver(ended(attempt.start, AttemptState.CANCELLED, "", _now_us()))

    def _forget(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt.key, None)
        worker = self._carriers.pop(attempt.key, None)
        if worker is not None:
            worker.attempts.pop(attempt.key, None)
            if attempt.away:
                worker.lent += 1
                self._lent += 1
            if self._wanted:
                self._serve_wanted()
        if not self._attempts:
            self._idle.set()

    # ------------------------------------------------------------------ time

    def _set_alarm(self, when: float) -> None:
        """Look again at `when` at the latest. One timer for all: the hot path seldom touches it."""
        if when >= self._alarm_at or when == math.inf:
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._alarm_at, self._alarm = math.inf, None
        now = self._loop.time()
        placed = [self._attempts[key] for key in self._carriers]
        late, stuck = due(placed, now)
        for attempt in late:
            attempt.time_out(now, self._timeout_grace_s)
            start = attempt.start
            self._carriers[attempt.key].send(Cancel(start.seq, start.run, start.attempt))
        for attempt in stuck:
            worker = self._carriers[attempt.key]
            attempt.kill_at, attempt.stuck = math.inf, True
            log.warning(
                "worker process killed: an attempt did not end in time",
                extra={"action": "worker_killed", "worker": worker.name, "seq": attempt.start.seq},
            )
            worker.kill(deaths.FOR_ANOTHER)
        again = self._give_back(now)
        self._set_alarm(min((attempt.next_alarm for attempt in placed), default=math.inf))
        self._set_alarm(again)

    # ------------------------------------------------------------------ what worker processes say

    def _on_frame(self, worker: WorkerProcess, frame: FromWorker) -> None:
        if isinstance(frame, Outcome):
            key = (frame.seq, frame.attempt)
            attempt = worker.attempts.get(key)
            if attempt is None:
                self._discard(frame)
                return
            self._forget(attempt)
            final = verdict(attempt, frame)
            if final is not frame:
                self._discard(frame)
            self._deliver(final)
            if self._waiting:
                self._place_waiting()
            if worker.retiring:
                self._processes.stop_if_done(worker)
        elif isinstance(frame, Progress | LogGrown):
            if (frame.seq, frame.attempt) in worker.attempts:
                self._report(frame)
        elif isinstance(frame, NeedCluster):
            self._needs_cluster(worker, frame)
        elif isinstance(frame, Joined | Left | Stragglers | Released):
            self._on_member(frame)

    def _needs_cluster(self, worker: WorkerProcess, frame: NeedCluster) -> None:
        """Pass on that an attempt wants a cluster; from now on its thread is another's."""
        attempt = worker.attempts.get((frame.seq, frame.attempt))
        if attempt is None:
            return
        attempt.need = frame
        if not attempt.away:
            attempt.away = True
            worker.lent -= 1
            self._lent -= 1
            self._serve_wanted()
        self._report(frame)
        if self._waiting:
            self._place_waiting()

    def _on_exit(self, worker: WorkerProcess, death: Death) -> None:
        now_us, company = _now_us(), len(worker.attempts) + len(worker.leases)
        for attempt in list(worker.attempts.values()):
            self._forget(attempt)
            words = ""
            if company == 1 and death.cause is Cause.WORKER_DIED and not death.ordered:  # in company they may be another's
                words = worker.stray.since(attempt.deadline - attempt.start.timeout_s)
            self._deliver(
                deaths.verdict_on_death(
                    attempt, worker.name, death, now_us, company=company, last_words=words, forkserver=worker.forkserver
                )
            )
        self._on_members_lost(worker, death)
        self._discard_left(worker.token)
        if worker.alone and worker.versions is None and self._processes.load_deaths:
            self._give_back_suspects()  # none comes to be alone in: the server shall know that nothing runs here
        self._place_suspects()


def _now_us() -> int:
    return time.time_ns() // 1000
