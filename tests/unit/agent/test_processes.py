"""How many worker processes there are, whatever launching them meets with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dask_fleet.agent import processes
from dask_fleet.agent.processes import Processes


class Vitals:
    last = None

    def look(self, _now: float) -> None:
        return None


class Worker:
    """What `Processes` needs of one that does nothing and ends at once."""

    alone = for_lease = retiring = False
    versions = death = None
    attempts: tuple[()] = ()
    leases: tuple[()] = ()
    vitals = Vitals()

    def watch(self, _frame: object, exited: Callable[[Worker, int | None], None]) -> None:
        self._exited = exited

    def kill(self) -> None:
        asyncio.get_running_loop().call_soon(self._exited, self, 0)


class Launcher:
    """Fails as often as it is told to."""

    forkserver_pid = None

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.done = asyncio.Event()

    async def launch(self, *, alone: bool) -> Worker:
        assert not alone
        if self.failures:
            raise self.failures.pop(0)
        self.done.set()
        return Worker()

    def have_standby(self) -> None:
        pass


@pytest.mark.parametrize(
    ("failure", "traced"),
    [
        (BlockingIOError("no process left"), False),
        (EOFError("the forkserver died"), False),
        (RuntimeError("can't start new thread"), True),  # nobody has foreseen it
    ],
)
def test_a_launch_is_tried_until_it_succeeds(
    failure: Exception, traced: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "_RELAUNCH_S", (0.001, 0.002))

    async def scene() -> None:
        launcher: Any = Launcher([failure] * 3)
        made = Processes(
            launcher=launcher, nworkers=1, nthreads=1, memory_limit_bytes=0,
            report=lambda _: None, on_frame=lambda *_: None, on_change=lambda: None, on_exit=lambda *_: None,
        )  # fmt: skip
        made.begin()
        async with asyncio.timeout(10):
            await launcher.done.wait()
        assert len(made.shared) == 1
        await made.close()
        assert not made.shared

    asyncio.run(scene())
    failed = [record for record in caplog.records if getattr(record, "action", "") == "fork_failed"]
    assert len(failed) == 3
    assert all(bool(record.exc_info) is traced for record in failed)
