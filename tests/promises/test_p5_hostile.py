"""P5, at the HTTP edge: hostile requests and slow sockets hurt nobody but themselves.

No answer of 500, the same server process, bounded memory, and an honest client beside them that gets all its answers, 99 of
a hundred in at most twice its usual time; its batches and its bodies of 200 KiB, too, beside those who announce large ones
and fall silent.

Attackers, honest client and server are processes of their own. The attackers take only processor time that the other two
do not want: what the client waits for longer is the server's doing. (Beside attackers who compete for the cores it waits
longer: `benchmarks/hostile.py` measures both.)

Most of it is waiting for deadlines. So in the short form all scenes are played at the same time, each with a server of its
own, and the deadlines of 30 s are 12 s; in the full form one after the other, as they are. Where five servers share the
cores, how long a client waits says nothing: in the short form it is for how long the server was busy while it waited.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from tests.promises.attackers import Attackers
from tests.promises.form import FULL, Record
from tests.promises.honest import PAUSE_S, Call, Honest, Other, Target, prefer, quantile_ms, resident_mb
from tests.promises.slow_sockets import Outcome, SlowSockets

from dask_fleet.testing.served import ServedFleet

pytestmark = [pytest.mark.promise, pytest.mark.alone]

REQUESTS = 100_000 if FULL else 3_000
PACED_PER_S = 400.0
AT_ONCE = 4
KINDS = {"silent": 300, "head": 300, "body": 350, "reader": 50}
OVERSIZED = 100
SALVOS = 5 if FULL else 1
HOARD_S = 20.0
OTHERS_EVERY = 50
OTHERS_S = 8.0
"""What a batch of three sets, or a body of 200 KiB, may take beside attackers. Where those keep it from its place it has to
wait for as long as they do, or is refused."""
WARM_UP_S = 4.0 if FULL else 2.0
REST_S = 6.0 if FULL else 3.0
SIEGES = 3 if FULL else 1
"""Of slow sockets. Their median is what counts: one hiccup of the machine while the bodies come is a tenth of a run."""
FLOOR_MS = 3.0 if FULL else 20.0
"""Where one run is all there is. Twice next to nothing is next to nothing, too: a kernel lets one process wait for another's
time slice of 3 ms; and it tells the processor time of a running process as of its last tick (4 ms), several of which the
short form may see."""
FLOOD = "as many requests as are answered"
"""All of the server's core: who calls waits for its turn, whoever it is. Shown, not judged, in the full form."""


@dataclass
class Verdict:
    """What came of it."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: int = 0
    """Connections that were closed without a word."""
    rss_mb: float = 0.0
    alone: list[Call] = field(default_factory=list)
    """The honest client's calls without attackers."""
    beside: dict[str, list[Call]] = field(default_factory=dict)
    """Its calls by what the attackers did meanwhile."""
    others: list[Other] = field(default_factory=list)
    """Its batches and large bodies beside them."""
    honest_failed: list[str] = field(default_factory=list)
    same_process: bool = False

    def others_s(self, kind: str) -> float:
        """The longest of a kind, of which there must be one."""
        return max(other.seconds for other in self.others if other.kind == kind)

    def bound_ms(self) -> float:
        """What 99 of 100 calls may take beside attackers."""
        return max(2 * p99_ms(self.alone), FLOOR_MS)

    def beside_ms(self) -> float:
        """What 99 of 100 calls took, over the whole attack."""
        return p99_ms([call for phase, calls in self.beside.items() if not (FULL and phase == FLOOD) for call in calls])

    def ratio(self) -> float:
        """The same in multiples of what they took alone."""
        return self.beside_ms() / p99_ms(self.alone)

    def __str__(self) -> str:
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.statuses.items()))
        phases = ", ".join(f"{phase} {told(calls)}" for phase, calls in self.beside.items() if calls)
        others = ", ".join(f"{kind} {self.others_s(kind):.2f} s" for kind in sorted({other.kind for other in self.others}))
        return (
            f"{self.sent} sent, answers {statuses}, {self.unanswered} closed without; memory +{self.rss_mb:.0f} MB; "
            f"the honest client's calls, median/99 % in ms (of these, the server busy): alone {told(self.alone)}, {phases}; "
            f"its slowest others beside them: {others or 'none'}"
        )


def p99_ms(calls: list[Call]) -> float:
    """As the client waited; in the short form, what the server did meanwhile.

    One call after the other hides the worst: while one waits for a second, two hundred are not made. Of the few hundred of
    the short form that one would hardly count, so those two hundred do: Gil Tene's "coordinated omission".
    """
    if FULL:
        return quantile_ms([call.seconds for call in calls], 0.99)
    return quantile_ms([call.busy_s - n * PAUSE_S for call in calls for n in range(1 + int(call.busy_s / PAUSE_S))], 0.99)


def told(calls: list[Call]) -> str:
    seconds, busy = [call.seconds for call in calls], [call.busy_s for call in calls]
    return (
        f"{quantile_ms(seconds, 0.5):.1f}/{quantile_ms(seconds, 0.99):.1f} "
        f"({quantile_ms(busy, 0.5):.1f}/{quantile_ms(busy, 0.99):.1f}) of {len(calls)}"
    )


class Siege:
    """``with Siege(fleet) as siege``: an honest client and attackers beside it; afterwards there is a `verdict`."""

    def __init__(self, fleet: ServedFleet, *, large_result: str = "/healthz") -> None:
        self._fleet = fleet
        self._pid = fleet.server_pid()
        target = Target(fleet.url, fleet.token, self._pid)
        asked = fleet.request("POST", "/v1/tokens", {"user": "honest", "scopes": ["submit", "read"]})
        honest = Target(fleet.url, asked.json()["token"], self._pid)
        with Honest(honest):  # the first calls start processes and fill caches
            time.sleep(WARM_UP_S)
        self._honest = Honest(honest, first=1_000_000, others_every=OTHERS_EVERY)
        self.attackers = Attackers(target, polite=True, large_result=large_result)
        self.verdict = Verdict()
        self._phases: list[tuple[str, float, float]] = []
        self._ended = threading.Event()
        self._scale = threading.Thread(target=self._weigh, name="scale")

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._honest)
            stack.enter_context(self.attackers)
            prefer(self._pid, self._honest.pid)
            self.alone()
            self._scale.start()
            stack.callback(self._scale.join)
            stack.callback(self._ended.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, exc, trace)
        verdict, honest = self.verdict, self._honest
        for phase, begin, end in self._phases:
            calls = verdict.alone if phase == "alone" else verdict.beside.setdefault(phase, [])
            calls += honest.between(begin, end)
            if phase != "alone":
                verdict.others += [other for other in honest.others if begin <= other.begin < end]
        verdict.honest_failed = honest.failed
        verdict.same_process = self._fleet.server_pid() == self._pid and self._fleet.returncode is None

    def alone(self) -> None:
        """Let the honest client be alone for a while."""
        begin = time.monotonic()
        time.sleep(WARM_UP_S)
        self.note("alone", begin, time.monotonic())

    def note(self, phase: str, begin: float, end: float) -> None:
        """Note what the attackers did, and when."""
        self._phases.append((phase, begin, end))

    def do(self, phase: str, what: str, **how: Any) -> dict[str, Any]:
        """Have the attackers do something, and note it as a phase."""
        done = self.attackers.do(what, **how)
        self.note(phase, done["begin"], done["end"])
        return done

    def _weigh(self) -> None:
        before = resident_mb(self._pid)
        while not self._ended.wait(0.1):
            with contextlib.suppress(OSError):
                self.verdict.rss_mb = max(self.verdict.rss_mb, resident_mb(self._pid) - before)


# ---------------------------------------------------------------------- hostile requests


def hostile_requests(fleet: ServedFleet) -> Verdict:
    with Siege(fleet) as siege:
        paced = siege.do("paced requests", "volleys", requests=REQUESTS, seconds=REST_S, per_s=PACED_PER_S, at_once=AT_ONCE)
        many = siege.do(FLOOD, "volleys", requests=REQUESTS - paced["sent"], seconds=600, per_s=0, at_once=AT_ONCE)
    verdict = siege.verdict
    for done in (paced, many):
        verdict.sent += done["sent"]
        verdict.unanswered += done["unanswered"]
        verdict.statuses.update(dict(done["statuses"]))
    assert "Traceback" not in fleet.logs()
    assert fleet.post("tiny/double", {"n": 21}, wait=30).json()["result"] == 42
    # What stands behind a broken request is not read.
    assert not [status for status in verdict.statuses if status >= 500], f"{verdict}\n{fleet.logs()}"
    return verdict


# ---------------------------------------------------------------------- slow sockets


def slow_sockets(fleet: ServedFleet) -> tuple[Verdict, dict[str, Any], Counter[int]]:
    blob = fleet.post("tiny/blob", {"mib": 32}, wait=30).json()
    sizes: Counter[int] = Counter()
    with Siege(fleet, large_result=blob["links"]["result"]) as siege:
        siege.do("opening", "open", kinds=KINDS, deadline_s=90)
        siege.do("open", "rest", seconds=REST_S)
        for _ in range(SALVOS):
            sizes.update(dict(siege.do("bodies", "oversized", count=OVERSIZED)["statuses"]))
        outcome: dict[str, Any] = siege.attackers.do("ended")["outcome"]
        for kinds in (("silent", "head"), ("body", "reader")):  # those with the same deadline end together
            seen = [outcome["seen"][kind] for kind in kinds if kind in outcome["seen"]]
            siege.note("deadlines", min(first for first, _ in seen) - 1.0, max(last for _, last in seen))
        siege.alone()
    verdict = siege.verdict
    verdict.sent = sum(KINDS.values()) + OVERSIZED * SALVOS
    verdict.statuses.update(sizes)
    assert "Traceback" not in fleet.logs()
    return verdict, outcome, sizes


def slow_sockets_of_a_twin(fleet: ServedFleet) -> Verdict:
    with Siege(fleet) as siege:
        siege.do("opening", "open", kinds={"silent": 300, "head": 300, "body": 350}, deadline_s=90)
        siege.do("open", "rest", seconds=REST_S)
    return siege.verdict


def hoarded_bodies(fleet: ServedFleet, *, batches: int, bodies: int) -> tuple[Verdict, dict[str, int]]:
    with Siege(fleet) as siege:
        told: dict[str, int] = siege.do("hoarding", "hoard", batches=batches, bodies=bodies, seconds=HOARD_S)["told"]
    assert "Traceback" not in fleet.logs()
    return siege.verdict, told


# ---------------------------------------------------------------------- without end


def stay_silent(fleet: ServedFleet) -> Outcome:
    async def stay() -> Outcome:
        target = Target(fleet.url, fleet.token, fleet.server_pid())
        slow = SlowSockets(target.address, fleet.token, path=target.path, large_result="/healthz")
        await slow.open({"silent": 20, "head": 20}, deadline_s=16)
        return await slow.ended()

    return asyncio.run(stay())


def grow(fleet: ServedFleet, *, megabytes: int) -> float:
    """Send a head without end; return by how much the server's memory grew meanwhile."""
    pid = fleet.server_pid()
    before = most = resident_mb(pid)
    host, port = fleet.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock, contextlib.suppress(OSError):
        sock.sendall(b"GET / HTTP/1.1\r\n")
        for number in range(megabytes * 16):
            sock.sendall(b"X%d: %s\r\n" % (number, b"a" * 65_500))
            most = max(most, resident_mb(pid))
    return most - before


# ---------------------------------------------------------------------- the tests

AGAIN = ["", *(f", number {number + 1}" for number in range(1, SIEGES))]
SCENES: dict[str, tuple[Callable[[ServedFleet], Any], str | None]] = {
    **{f"slow sockets{again}": (slow_sockets, None if FULL else "hurried") for again in AGAIN},
    "scanning, slow sockets": (slow_sockets_of_a_twin, "scans-on-read"),
    "stock, silent": (stay_silent, "stock-http"),
    "hoarded bodies": (functools.partial(hoarded_bodies, batches=8, bodies=24), None),
    "gate first, hoarded bodies": (functools.partial(hoarded_bodies, batches=8, bodies=0), "gate-first"),
    "ahead, hoarded bodies": (functools.partial(hoarded_bodies, batches=0, bodies=24), "reserves-ahead"),
    "hostile requests": (hostile_requests, None),
    "stock, endless head": (lambda fleet: grow(fleet, megabytes=150), "stock-http"),
    "endless head": (lambda fleet: grow(fleet, megabytes=150), None),
}
"""What is done to a fleet, and which twin of it. The longest first."""


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory, many_sockets: None) -> Iterator[dict[str, Future[Any]]]:
    def play(name: str, folder: Path) -> Any:
        scene, twin = SCENES[name]
        command = None if twin is None else (sys.executable, str(Path(__file__).with_name("twins.py")), twin)
        service = Path(__file__).with_name("service_tiny.py")
        env = {"TINY_STARTS": str(folder / "starts")}
        with ServedFleet([service], folder / "data", args=("--nworkers", "2"), env=env, command=command) as fleet:
            return scene(fleet)

    with ThreadPoolExecutor(1 if FULL else len(SCENES), "scene") as pool:
        yield {name: pool.submit(play, name, tmp_path_factory.mktemp("hostile")) for name in SCENES}


def test_hostile_requests_hurt_nobody(played: dict[str, Future[Any]], record_property: Record) -> None:
    verdict = played["hostile requests"].result()
    record_property("figures", str(verdict))
    assert verdict.sent >= REQUESTS
    assert sum(verdict.statuses.values()) > 0.8 * verdict.sent, verdict
    assert verdict.same_process
    assert not verdict.honest_failed, verdict.honest_failed[:3]
    assert verdict.rss_mb < 100, verdict
    assert {other.kind for other in verdict.others} == {"batch", "large"}, verdict
    assert max(other.seconds for other in verdict.others) < OTHERS_S, verdict
    assert verdict.beside_ms() <= verdict.bound_ms(), verdict


def test_slow_sockets_and_large_bodies_hurt_nobody(played: dict[str, Future[Any]], record_property: Record) -> None:
    verdict, outcome, sizes = played["slow sockets"].result()
    record_property("figures", f"{verdict}; closed after at most {outcome['longest_s']} s, told {outcome['told']}")
    assert outcome["closed"] == KINDS, outcome
    assert not outcome["left_open"], outcome
    assert outcome["told"]["body 408"] == KINDS["body"], outcome
    assert set(sizes) <= {413, 503}, sizes
    assert sizes[413] >= OVERSIZED * SALVOS // 2, sizes
    assert verdict.same_process
    assert not verdict.honest_failed, verdict.honest_failed[:3]
    assert verdict.rss_mb < 50, verdict
    assert {other.kind for other in verdict.others} == {"batch", "large"}, verdict
    assert max(other.seconds for other in verdict.others) < OTHERS_S, verdict
    if not FULL:
        assert verdict.beside_ms() <= verdict.bound_ms(), verdict


@pytest.mark.skipif(not FULL, reason="long form: PROMISES=full")
def test_slow_sockets_and_large_bodies_at_most_double_what_others_wait(
    played: dict[str, Future[Any]], record_property: Record
) -> None:
    ratios = sorted(played[f"slow sockets{again}"].result()[0].ratio() for again in AGAIN)
    record_property("figures", f"99 of 100 calls took at most {ratios} times as long as alone")
    assert statistics.median(ratios) <= 2, ratios


def test_the_checker_notices_a_server_that_slow_sockets_slow_down(
    played: dict[str, Future[Any]], record_property: Record
) -> None:
    verdict = played["scanning, slow sockets"].result()
    record_property("figures", str(verdict))
    assert verdict.beside_ms() > verdict.bound_ms(), verdict


def test_bodies_that_do_not_come_keep_nobody_from_theirs(played: dict[str, Future[Any]], record_property: Record) -> None:
    verdict, told = played["hoarded bodies"].result()
    record_property("figures", f"{verdict}; hoarders were told {told}")
    assert verdict.same_process
    assert not verdict.honest_failed, verdict.honest_failed[:3]
    assert {other.kind for other in verdict.others} == {"batch", "large"}, verdict
    assert max(other.seconds for other in verdict.others) < OTHERS_S, verdict
    assert verdict.rss_mb < 50, verdict
    assert set(told) <= {"408", "503"}, told


@pytest.mark.parametrize(("twin", "kind"), [("gate first", "batch"), ("ahead", "large")])
def test_the_checker_notices_a_server_that_hands_out_places_before_bodies_come(
    played: dict[str, Future[Any]], record_property: Record, twin: str, kind: str
) -> None:
    verdict, _ = played[f"{twin}, hoarded bodies"].result()
    record_property("figures", f"{verdict}; {verdict.honest_failed[:1]}")
    assert verdict.others_s(kind) > OTHERS_S, verdict


def test_the_checker_notices_a_server_without_deadlines(played: dict[str, Future[Any]], record_property: Record) -> None:
    outcome = played["stock, silent"].result()
    record_property("figures", str(outcome))
    assert outcome.left_open == {"silent": 20, "head": 20}, outcome


def test_a_head_without_end_costs_nothing(played: dict[str, Future[Any]], record_property: Record) -> None:
    grown, stock = played["endless head"].result(), played["stock, endless head"].result()
    record_property("figures", f"memory +{grown:.0f} MB; of a server without limits +{stock:.0f} MB")
    assert grown < 20
    assert stock > 100, "the checker would not notice"
