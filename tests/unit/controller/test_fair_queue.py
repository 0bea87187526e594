"""Order of the queue: priority, then round robin over users, then first come first served."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from dask_fleet.controller.fair_queue import FairQueue, Lane, QueuedRun

LANE = Lane("s", "1")
OTHER = Lane("t", "1")


def entry(seq: int, user: str = "ada", *, priority: int = 0, lane: Lane = LANE) -> QueuedRun:
    return QueuedRun(seq=seq, run=1, lane=lane, user=user, priority=priority)


def drained(queue: FairQueue, lanes: tuple[Lane, ...] = (LANE, OTHER)) -> list[int]:
    order = []
    while (got := queue.pop(lambda lane: lane in lanes)) is not None:
        order.append(got.seq)
    return order


def test_first_come_first_served_for_one_user() -> None:
    queue = FairQueue()
    for seq in (1, 2, 3):
        queue.push(entry(seq))
    assert drained(queue) == [1, 2, 3]
    assert len(queue) == 0


def test_who_lost_its_turn_by_no_fault_of_its_own_is_next_of_its_user() -> None:
    queue = FairQueue()
    for seq in range(6):
        queue.push(entry(seq, "ab"[seq % 2]))
    returned = queue.pop({LANE}.__contains__)
    assert returned is not None
    queue.push(returned, first=True)
    assert drained(queue) == [1, 0, 3, 2, 5, 4], "before its user's others; whose turn it is has not changed"


def test_a_user_with_one_job_does_not_wait_behind_a_thousand() -> None:
    queue = FairQueue()
    for seq in range(1, 1001):
        queue.push(entry(seq, "flood"))
    queue.push(entry(2000, "ada"))
    assert 2000 in drained(queue)[:2]


def test_users_take_turns() -> None:
    queue = FairQueue()
    for seq, user in enumerate("aaabbbccc"):
        queue.push(entry(seq, user))
    order = drained(queue)
    assert [sorted(order[i : i + 3]) for i in (0, 3, 6)] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]


def test_turns_are_kept_over_lanes() -> None:
    queue = FairQueue()
    for seq in (1, 2, 3):
        queue.push(entry(seq, "flood", lane=LANE))
        queue.push(entry(seq + 10, "flood", lane=OTHER))
    queue.push(entry(30, "ada", lane=OTHER))
    assert queue.pop(lambda lane: True).seq == 1  # type: ignore[union-attr]
    assert queue.pop(lambda lane: True).seq == 30  # type: ignore[union-attr]


def test_priority_goes_first() -> None:
    queue = FairQueue()
    queue.push(entry(1, priority=0))
    queue.push(entry(2, priority=5))
    queue.push(entry(3, priority=-5))
    assert drained(queue) == [2, 1, 3]


def test_a_lane_that_cannot_run_waits_without_blocking_others() -> None:
    queue = FairQueue()
    queue.push(entry(1, lane=LANE, priority=9))
    queue.push(entry(2, lane=OTHER))
    assert drained(queue, (OTHER,)) == [2]
    assert len(queue) == 1
    assert drained(queue) == [1]


def test_discarded_runs_never_come() -> None:
    queue = FairQueue()
    for seq in (1, 2, 3):
        queue.push(entry(seq))
    queue.discard(1)
    queue.discard(1)
    assert 1 not in queue
    assert drained(queue) == [2, 3]


def test_a_run_pushed_again_is_there_once() -> None:
    queue = FairQueue()
    queue.push(entry(1))
    queue.push(QueuedRun(seq=1, run=2, lane=LANE, user="ada", priority=0))
    got = queue.pop(lambda lane: True)
    assert got is not None
    assert got.run == 2
    assert queue.pop(lambda lane: True) is None


def test_a_paused_user_is_passed_over_and_keeps_its_place() -> None:
    queue = FairQueue()
    for seq in range(6):
        queue.push(entry(seq, "ab"[seq % 2], priority=seq // 4))
    queue.pause(("default", "a"))
    queue.push(entry(6, "a", lane=OTHER))
    assert drained(queue) == [5, 1, 3]
    assert sorted(run.seq for run in queue) == [0, 2, 4, 6]
    queue.push(entry(7, "a"))
    assert drained(queue) == []
    queue.resume(("default", "a"))
    assert drained(queue) == [4, 0, 2, 6, 7]


def test_a_user_of_another_tenant_is_another_user() -> None:
    queue = FairQueue()
    queue.push(QueuedRun(seq=1, run=1, lane=LANE, user="ada", priority=0, tenant="one"))
    queue.push(QueuedRun(seq=2, run=1, lane=LANE, user="ada", priority=0, tenant="two"))
    queue.pause(("one", "ada"))
    assert drained(queue) == [2]


def test_what_is_cancelled_in_a_lane_that_nobody_serves_does_not_pile_up() -> None:
    queue = FairQueue()
    queue.push(entry(0))
    for seq in range(1, 5000):
        queue.push(entry(seq, f"user-{seq % 7}", lane=OTHER))
        queue.discard(seq)
    assert sum(1 for level in queue._levels() for _ in level.entries()) < 100
    queue.push(entry(5000, lane=OTHER))
    assert drained(queue) == [0, 5000]
    assert queue.lanes() == []


@given(
    pushes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.sampled_from([LANE, OTHER])), max_size=40),
    pops=st.lists(st.sampled_from([(LANE,), (OTHER,), (LANE, OTHER)]), max_size=60),
    drops=st.sets(st.integers(0, 39)),
    pauses=st.lists(st.sampled_from(["", "a", "b"]), min_size=1, max_size=20),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_nothing_is_lost_doubled_or_out_of_line(
    pushes: list[tuple[str, int, Lane]], pops: list[tuple[Lane, ...]], drops: set[int], pauses: list[str]
) -> None:
    queue = FairQueue()
    waiting: dict[int, QueuedRun] = {}
    todo = deque(enumerate(pushes))
    paused: set[str] = set()
    for turn, lanes in enumerate(pops):
        user = pauses[turn % len(pauses)]
        if user in paused:
            paused.remove(user)
            queue.resume(("default", user))
        else:
            paused.add(user)
            queue.pause(("default", user))
        for _ in range(min(2, len(todo))):
            seq, (user, priority, lane) = todo.popleft()
            waiting[seq] = entry(seq, user, priority=priority, lane=lane)
            queue.push(waiting[seq])
            if seq in drops:
                queue.discard(seq)
                del waiting[seq]
        got = queue.pop(lambda lane: lane in lanes)  # noqa: B023 - called before the loop goes on
        able = [run for run in waiting.values() if run.lane in lanes and run.user not in paused]
        assert (got is None) == (not able)
        if got is not None:
            assert got.priority == max(run.priority for run in able)
            same = [run for run in able if (run.user, run.priority, run.lane) == (got.user, got.priority, got.lane)]
            assert got.seq == min(run.seq for run in same)
            del waiting[got.seq]
        assert len(queue) == len(waiting)
