"""Owns the worker processes: places attempts, watches their time, replaces what dies, reports every end."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable

from dask_fleet.agent.attempts import (
    Attempt,
    AttemptKey,
    choose_host,
    common_versions,
    due,
    ended,
    verdict,
    verdict_on_death,
)
from dask_fleet.agent.workers import Launcher, WorkerProcess
from dask_fleet.model.failure import Cause, Failure
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import (
    AttemptRef,
    Cancel,
    Loaded,
    LogGrown,
    Outcome,
    Progress,
    Ready,
    Start,
    Stop,
    Welcome,
)

log = logging.getLogger(__name__)

_RELAUNCH_S = (0.2, 30.0)
"""First and longest wait after a worker process died before it had loaded: nothing forks in a hot loop."""
_GIVE_BACK_S = 0.1
"""How long an attempt may wait here for a free thread. The server sends short jobs a little ahead; when long ones hold all
threads, what waits behind them goes back, for another agent may be free."""
_NO_WORKER_S = 5.0
"""The same while no process is ready to run anything."""
_STOP_S = 5.0
"""How long an idle worker process may take to stop before it is killed."""


class Supervisor:
    """All worker processes of this agent and the attempts they carry. Everything happens on the event loop's thread.

    Parameters
    ----------
    report
        Gets `Ready` and `Progress`; may drop them while disconnected.
    deliver
        Gets each attempt's one outcome; must not lose it.
    discard
        Gets an outcome whose result will not be used.
    """

    def __init__(
        self,
        *,
        launcher: Launcher,
        nworkers: int,
        nthreads: int,
        timeout_grace_s: float,
        report: Callable[[Ready | Progress | LogGrown], None],
        deliver: Callable[[Outcome], None],
        discard: Callable[[Outcome], None],
    ) -> None:
        self._launcher = launcher
        self._nworkers = nworkers
        self._nthreads = nthreads
        self._timeout_grace_s = timeout_grace_s
        self._report = report
        self._deliver = deliver
        self._discard = discard
        self._loop = asyncio.get_running_loop()
        self._workers: list[WorkerProcess] = []
        self._waiting: deque[Attempt] = deque()
        self._attempts: dict[AttemptKey, Attempt] = {}
        self._carriers: dict[AttemptKey, WorkerProcess] = {}
        self._launching: set[asyncio.Task[None]] = set()
        self._failed_launches = 0
        self._welcome: Welcome | None = None
        self._generation = 0
        self._last_ready: Ready | None = None
        self._ready_once = False
        self._load_deaths = ""
        """How processes end that die while they load; empty when none did."""
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._gone = asyncio.Event()

    # ------------------------------------------------------------------ life

    def begin(self) -> None:
        """Fork the first worker processes; they load their services when the server has said which."""
        for _ in range(self._nworkers):
            self._launch(0.0)

    def take_no_more(self) -> None:
        """Refuse attempts from now on, and replace no worker process."""
        self._closing = True
        # Else the server would send what we give back again at once, for as long as the drain takes.
        self._report(Ready({}, {}, 0))

    def give_back_waiting(self) -> None:
        """Return to the server what has not begun."""
        for attempt in list(self._waiting):
            self._forget(attempt)
            self._deliver(ended(attempt.start, AttemptState.CANCELLED, "", _now_us()))
        self._waiting.clear()

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
        self.abandon("its agent was shut down")
        if self._alarm is not None:
            self._alarm.cancel()
        for task in list(self._launching):
            task.cancel()
        await asyncio.gather(*self._launching, return_exceptions=True)
        for worker in self._workers:
            worker.kill()
        if self._workers:
            self._gone.clear()
            try:
                async with asyncio.timeout(_STOP_S):
                    await self._gone.wait()
            except TimeoutError:
                log.critical("worker processes survive SIGKILL", extra={"action": "unkillable"})

    def abandon(self, why: str, *, report: bool = True) -> None:
        """Give up all attempts, killing the processes that carry them."""
        busy = [worker for worker in self._workers if worker.attempts]
        for attempt in list(self._attempts.values()):
            carrier = self._carriers.get(attempt.key)
            self._forget(attempt)
            if report:
                failure = Failure.bounded(Cause.AGENT_LOST, why)
                name = carrier.name if carrier else ""
                state = AttemptState.CANCELLED if attempt.cancelled else AttemptState.LOST
                self._deliver(ended(attempt.start, state, name, _now_us(), failure))
        self._waiting.clear()
        for worker in busy:
            worker.attempts.clear()
            worker.kill()

    # ------------------------------------------------------------------ what the server asks

    def held(self) -> list[AttemptRef]:
        """Return the attempts that are under way."""
        return [attempt.ref for attempt in self._attempts.values()]

    @property
    def free(self) -> int:
        """Slots that nothing uses."""
        return max(0, self._nworkers * self._nthreads - len(self._attempts))

    def welcome(self, welcome: Welcome) -> None:
        """Load what the server serves; processes that loaded something else, or failed to, make room for new ones."""
        self._welcome = welcome
        self._generation += 1
        self._failed_launches, self._load_deaths = 0, ""
        self._last_ready = None  # a new connection is told again
        for worker in list(self._workers):
            if worker.generation == 0:
                worker.load_services(welcome.targets, self._generation)
            elif worker.versions is not None and (
                worker.problems or any(worker.versions.get(n) != v for n, v in welcome.versions.items())
            ):
                self._retire(worker)
        self._tell_ready()
        self._place_waiting()
        self._refuse_hopeless()

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
        if self._waiting or not self._place(attempt):
            self._waiting.append(attempt)
            attempt.waits_until = self._loop.time() + _GIVE_BACK_S
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
            self._waiting.remove(attempt)
            self._forget(attempt)
            self._deliver(ended(attempt.start, AttemptState.CANCELLED, "", _now_us()))
            return
        attempt.cancel(self._loop.time(), cancel.grace_s)
        worker.send(cancel)
        self._set_alarm(attempt.next_alarm)

    # ------------------------------------------------------------------ placing

    def _place(self, attempt: Attempt) -> bool:
        worker = choose_host(self._workers, attempt.start)
        if worker is None:
            return False
        worker.start(attempt, self._loop.time())
        self._carriers[attempt.key] = worker
        if attempt.deadline < self._alarm_at:
            self._set_alarm(attempt.deadline)
        return True

    def _place_waiting(self) -> None:
        """Hand over what waits, oldest first; one whose service no free process has does not hold up the others."""
        passed_over: list[Attempt] = []
        while self._waiting and any(worker.has_room for worker in self._workers):
            attempt = self._waiting.popleft()
            if not self._place(attempt):
                passed_over.append(attempt)
        self._waiting.extendleft(reversed(passed_over))

    def _refuse_hopeless(self) -> None:
        """Fail what waits for code that none of the processes could load and that none is about to."""
        for attempt in [attempt for attempt in self._waiting if self._is_hopeless(attempt.start)]:
            start = attempt.start
            self._waiting.remove(attempt)
            self._forget(attempt)
            problems = "; ".join(sorted({p for w in self._workers for p in w.problems.values()}))
            text = f"no worker process has loaded {start.service} of version {start.version}. {problems}".rstrip()
            self._deliver(
                ended(start, AttemptState.FAILED, "", _now_us(), Failure.bounded(Cause.SERVICE_UNAVAILABLE, text))
            )

    def _is_hopeless(self, start: Start) -> bool:
        if self._launching or len(self._workers) < self._nworkers:
            return False
        return all(
            worker.ready and (worker.versions or {}).get(start.service) != start.version for worker in self._workers
        )

    def _give_back(self, now: float) -> float:
        """Return to the server what has waited too long; returns when to look again."""
        # Where no process is ready, one may be starting. If none comes, the server shall know that nothing runs here.
        patience = 0.0 if any(worker.ready for worker in self._workers) else _NO_WORKER_S
        while self._waiting and self._waiting[0].waits_until + patience <= now:
            attempt = self._waiting.popleft()
            self._forget(attempt)
            self._deliver(ended(attempt.start, AttemptState.CANCELLED, "", _now_us()))
        return self._waiting[0].waits_until + patience if self._waiting else math.inf

    def _forget(self, attempt: Attempt) -> None:
        self._attempts.pop(attempt.key, None)
        worker = self._carriers.pop(attempt.key, None)
        if worker is not None:
            worker.attempts.pop(attempt.key, None)
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
            attempt.kill_at = math.inf
            log.warning(
                "worker process killed: an attempt did not end in time",
                extra={"action": "worker_killed", "worker": worker.name, "seq": attempt.start.seq},
            )
            worker.retiring = True
            worker.killed_because = "was killed because another attempt in it did not end in time"
            worker.kill()
        again = self._give_back(now)
        self._set_alarm(min((attempt.next_alarm for attempt in placed), default=math.inf))
        self._set_alarm(again)

    # ------------------------------------------------------------------ what worker processes say

    def _on_frame(self, worker: WorkerProcess, frame: Loaded | Progress | Outcome | LogGrown) -> None:
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
            if worker.retiring and not worker.attempts:
                self._stop(worker)
        elif isinstance(frame, (Progress, LogGrown)):
            if (frame.seq, frame.attempt) in worker.attempts:
                self._report(frame)
        else:
            self._on_loaded(worker, frame)

    def _on_loaded(self, worker: WorkerProcess, loaded: Loaded) -> None:
        worker.versions, worker.problems = loaded.versions, loaded.problems
        if loaded.problems:
            log.warning("services not loaded: %s", loaded.problems, extra={"action": "load_failed"})
        else:
            self._failed_launches, self._load_deaths = 0, ""
        welcome = self._welcome
        if welcome is not None and worker.generation != self._generation and (
            loaded.problems or any(loaded.versions.get(n) != v for n, v in welcome.versions.items())
        ):
            self._retire(worker)  # the server has changed its mind meanwhile
        self._tell_ready()
        self._place_waiting()
        self._refuse_hopeless()

    def _on_exit(self, worker: WorkerProcess, how: str) -> None:
        self._workers.remove(worker)
        how = worker.killed_because or how
        now_us = _now_us()
        expected = worker.retiring or self._closing
        if not expected:
            log.warning(
                "worker process %s", how, extra={"action": "worker_exit", "worker": worker.name, "how": how}
            )
        for attempt in list(worker.attempts.values()):
            self._forget(attempt)
            self._deliver(verdict_on_death(attempt, worker.name, how, now_us))
        if not self._workers:
            self._gone.set()
        if self._closing and not self._attempts:
            return
        delay = 0.0
        if worker.versions is None and not expected:
            first, longest = _RELAUNCH_S
            delay = min(longest, first * 2.0 ** min(self._failed_launches, 10))
            self._failed_launches += 1
            if self._welcome is not None and self._failed_launches > 1:
                self._load_deaths = how
        self._launch(delay)
        self._tell_ready()

    # ------------------------------------------------------------------ coming and going of processes

    def _retire(self, worker: WorkerProcess) -> None:
        worker.retiring = True
        if not worker.attempts:
            self._stop(worker)

    def _stop(self, worker: WorkerProcess) -> None:
        worker.send(Stop())
        # A thread of user code can hold the interpreter so that the stop is never read.
        self._loop.call_later(_STOP_S, worker.kill)

    def _launch(self, delay_s: float) -> None:
        if self._closing:
            return
        task = self._loop.create_task(self._bring_up(delay_s), name="launch-worker")
        self._launching.add(task)
        task.add_done_callback(self._launched)

    def _launched(self, task: asyncio.Task[None]) -> None:
        self._launching.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("no worker process could be launched", exc_info=exc, extra={"action": "launch_failed"})

    async def _bring_up(self, delay_s: float) -> None:
        first, longest = _RELAUNCH_S
        while True:
            if delay_s:
                await asyncio.sleep(delay_s)
            try:
                worker = await self._launcher.launch()
            except (OSError, EOFError) as exc:
                delay_s = min(longest, max(first, delay_s * 2))
                log.warning("fork failed, again in %.1f s: %s", delay_s, exc, extra={"action": "fork_failed"})
                continue
            break
        self._workers.append(worker)
        worker.watch(self._on_frame, self._on_exit)
        if self._closing:
            worker.kill()
        elif self._welcome is not None:
            worker.load_services(self._welcome.targets, self._generation)

    def _tell_ready(self) -> None:
        """Report what the processes have loaded, when all of the first have, and after each change."""
        if self._welcome is None or self._closing:
            return
        ready = [worker for worker in self._workers if worker.ready]
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
                    "its files have changed since the server read them; restart the server to serve the new version"
                )
        frame = Ready(versions, problems, len(ready) * self._nthreads)
        if frame != self._last_ready:
            self._last_ready = frame
            self._report(frame)


def _now_us() -> int:
    return time.time_ns() // 1000
