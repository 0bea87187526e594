"""An honest client beside hostile ones, in a process of its own: calls all the time, and notes when and how long."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

PAUSE_S = 0.004
_END_S = 90.0


@dataclass(frozen=True)
class Target:
    """A server under attack, and a function whose result is ``factor * n + summand``."""

    url: str
    token: str
    pid: int
    """Of its process."""
    path: str = "/v1/tiny/double"
    factor: int = 2
    summand: int = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)


class Call(NamedTuple):
    """One call of the honest client."""

    begin: float
    """``time.monotonic``, the same for all processes."""
    seconds: float
    """As the client waited."""
    busy_s: float
    """Of these, the processor time that the server's process took: what the client waited for because of the server and
    not because of whatever else runs on the machine."""


class Other(NamedTuple):
    """A call of another kind, now and then."""

    kind: str
    """``batch``, of some sets, or ``large``, with a body of 200 KiB."""
    begin: float
    seconds: float


class Honest:
    """``with Honest(target) as honest``: asks for results that are there already, and now and then for a new one.

    Every `others_every` calls (0: never) it sends a batch of some sets or a large body, in turns.

    Its figures are there when the block has ended.
    """

    def __init__(
        self,
        target: Target,
        *,
        first: int = 0,
        pause_s: float = PAUSE_S,
        cores: Collection[int] = (),
        others_every: int = 0,
    ) -> None:
        self._order = {
            "address": target.address,
            "token": target.token,
            "pid": target.pid,
            "path": target.path,
            "factor": target.factor,
            "summand": target.summand,
            "first": first,
            "pause_s": pause_s,
            "cores": sorted(cores),
            "others_every": others_every,
        }
        self.calls: list[Call] = []
        """Of repeated calls, which the server answers alone."""
        self.others: list[Other] = []
        self.failed: list[str] = []

    def __enter__(self) -> Self:
        script = Path(__file__).with_name("honest_client.py")
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(self._order) + "\n")  # by a pipe: command lines are for all to read
        self._child.stdin.flush()
        return self

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._child.pid

    def __exit__(self, kind: object, *_: object) -> None:
        with self._child as child:
            try:
                told = child.communicate(timeout=_END_S)[0]  # closes its input: that is its end
            finally:
                child.kill()
        if kind is None:
            found = json.loads(told)
            self.calls, self.failed = [Call(*call) for call in found["calls"]], found["failed"]
            self.others = [Other(*other) for other in found["others"]]

    def between(self, begin: float, end: float) -> list[Call]:
        """Return the calls that were under way at some time between two moments."""
        return [call for call in self.calls if call.begin < end and call.begin + call.seconds > begin]


def quantile_ms(seconds: Collection[float], share: float) -> float:
    """Return a quantile in milliseconds."""
    ordered = sorted(seconds)
    return 1e3 * ordered[int(share * (len(ordered) - 1))]


def resident_mb(pid: int) -> float:
    """Return a process's resident memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def prefer(*pids: int) -> None:
    """Put processes before all others of this machine, if we may: what others do is none of the server's doing."""
    for pid in pids:
        with contextlib.suppress(PermissionError, ProcessLookupError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), -10)
