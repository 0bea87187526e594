"""The account of large bodies: never over its bound, nothing lost, nobody waits for ever, slow ones give way to others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dask_fleet.server.shares import HOG_AFTER_S, SLOW_AFTER_S, STEP_BYTES, GiveWay, Share, Shares

STEPS = 8
TOTAL = STEPS * STEP_BYTES


def grow(shares: Shares, share: Share, steps: int, *, now: float = 0.0) -> bool:
    """Have so many more steps arrive, one by one; return whether it need not wait."""
    for _ in range(steps):
        shares.ask(share, share.held + 1, now)
        if share.wanted:
            return False
    return True


def body(shares: Shares, user: str, steps: int, *, now: float = 0.0) -> Share:
    share = Share(user)
    assert grow(shares, share, steps, now=now)
    return share


def test_what_has_come_counts_in_steps() -> None:
    shares = Shares(TOTAL)
    share = Share("ann")
    assert shares.ask(share, STEP_BYTES + 1, 0) == [share]
    assert share.held == shares.held_bytes == 2 * STEP_BYTES
    assert shares.ask(share, 2 * STEP_BYTES, 0) == []
    assert shares.leave(share, 0) == shares.leave(share, 0) == []
    assert shares.held_bytes == 0


def test_a_lone_user_may_have_everything_in_one_body_and_begin_others_in_half() -> None:
    shares = Shares(TOTAL)
    body(shares, "ann", STEPS)
    shares = Shares(TOTAL)
    for _ in range(STEPS // 2):
        body(shares, "ann", 1)
    assert not shares.is_wanted
    late = Share("ann")
    shares.ask(late, 1, 0)  # it is in line, so the first is the elder, and what that held is free
    assert late.held == STEP_BYTES


def test_a_slow_body_of_the_largest_size_is_in_nobodys_way() -> None:
    shares = Shares(TOTAL)
    large = body(shares, "ann", STEPS)
    assert body(shares, "bob", 3).held == 3 * STEP_BYTES
    assert grow(shares, large, 4), "the elder is never refused a step"


def test_bodies_that_block_each_other_end_one_after_the_other() -> None:
    shares = Shares(TOTAL)
    bodies = [body(shares, user, 2) for user in "abcd"]
    assert [grow(shares, each, 1) for each in bodies] == [True, True, True, False]
    ended = 0
    while bodies:
        able = [each for each in bodies if not each.wanted]
        assert able, "somebody can always go on"
        if grow(shares, able[0], 8 - able[0].held // STEP_BYTES):
            bodies.remove(able[0])
            shares.leave(able[0], 0)
            ended += 1
    assert (ended, shares.held_bytes, shares.is_wanted) == (4, 0, False)


def test_whoever_is_slow_gives_way_to_who_waits_and_first_of_the_user_who_holds_most() -> None:
    shares = Shares(TOTAL)
    body(shares, "elder", 1)
    body(shares, "bob", 2)
    first, second = body(shares, "ann", 2, now=1), body(shares, "ann", 2, now=1.5)
    assert shares.victim(100) is None, "nobody waits"
    waits = Share("cem")
    assert shares.ask(waits, 3 * STEP_BYTES, 3) == []
    assert shares.victim(4) is first
    assert (first.gives_way, second.gives_way) == (GiveWay.SLOW, None)
    assert shares.leave(first, 4) == [waits]
    assert shares.victim(100) is None


def test_who_goes_on_is_not_slow() -> None:
    shares = Shares(TOTAL)
    elder, slow, swift = (body(shares, user, 1) for user in ("elder", "ann", "ann"))
    filler = body(shares, "bob", STEPS // 2)
    waits = Share("cem")
    shares.ask(waits, 3 * STEP_BYTES, 0)
    assert waits.wanted
    for each in (elder, filler):
        shares.complete(each)
    now = SLOW_AFTER_S
    assert shares.victim(now - 0.01) is None
    assert shares.leave(filler, now) == [waits]
    assert grow(shares, swift, 1, now=now)
    again = Share("dan")
    shares.ask(again, STEPS * STEP_BYTES, now)
    assert shares.victim(now) is slow
    assert shares.victim(now) is None, "one at a time: until it has left, nobody knows whether that was enough"
    shares.leave(slow, now)
    assert shares.victim(now + SLOW_AFTER_S - 0.01) is None


def test_whoever_holds_more_than_half_gives_way_to_others_whatever_the_pace() -> None:
    shares = Shares(TOTAL)
    body(shares, "zoe", 1)  # the elder
    large = body(shares, "ann", STEPS)
    mine, late = Share("ann"), Share("bob")
    shares.ask(mine, 1, 0)
    assert mine.wanted, "all is taken"
    assert shares.victim(HOG_AFTER_S) is None, "one user's bodies wait for each other"
    shares.ask(late, 1, 0)
    assert shares.victim(HOG_AFTER_S - 0.01) is None
    assert shares.victim(HOG_AFTER_S) is large
    assert large.gives_way is GiveWay.HOG
    assert set(shares.leave(large, HOG_AFTER_S)) == {mine, late}


def test_of_who_holds_too_much_those_in_line_give_way_first() -> None:
    shares = Shares(TOTAL)
    body(shares, "zoe", 1)
    older, younger = body(shares, "ann", 3), body(shares, "ann", STEPS - 3)
    for share in (older, younger):
        shares.ask(share, share.held + 1, 0)
    shares.ask(Share("bob"), 1, 0)
    assert shares.victim(HOG_AFTER_S) is younger


def test_one_user_of_many_requests_does_not_hold_up_another() -> None:
    shares = Shares(TOTAL)
    mine = [Share("ann") for _ in range(100)]
    for share in mine:
        shares.ask(share, 1, 0)
    assert sum(share.held > 0 for share in mine) <= STEPS // 2 + 1
    assert body(shares, "bob", 1).held
    for share in mine:
        shares.leave(share, 0)
    assert not shares.is_wanted


def test_users_have_their_turns_round_and_round() -> None:
    shares = Shares(STEP_BYTES)
    elder, holder = body(shares, "x", 1), Share("y")
    shares.ask(holder, 1, 0)
    assert holder.held
    line = [Share(user) for user in ("ann", "ann", "ann", "bob", "cem")]
    for share in line:
        shares.ask(share, 1, 0)
    order = []
    while line:
        shares.complete(elder)
        (holder,) = shares.leave(holder, 0)
        order.append(holder.user)
        line.remove(holder)
    assert order == ["ann", "bob", "cem", "ann", "ann"]


class Machine(RuleBasedStateMachine):
    """Bodies of some users that come, grow, fall silent, end and leave in any order."""

    LIMIT = 12
    """Steps of the largest body: more than there are."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares(TOTAL)
        self.bodies: list[Share] = []
        self.told: set[Share] = set()
        self.whole: set[Share] = set()
        self.now = 0.0

    def serve(self, shares: list[Share]) -> None:
        for share in shares:
            assert share in self.bodies
            assert not share.wanted, "it may go on"

    @rule(user=st.sampled_from("abc"), steps=st.integers(1, 4))
    def come(self, user: str, steps: int) -> None:
        share = Share(user)
        self.bodies.append(share)
        self.serve(self.shares.ask(share, steps * STEP_BYTES, self.now))

    @rule(data=st.data(), steps=st.integers(1, 4))
    def grow(self, data: Any, steps: int) -> None:
        able = [share for share in self.bodies if not share.wanted and share not in self.whole]
        if able:
            share = data.draw(st.sampled_from(able))
            size = min(share.held + steps * STEP_BYTES, self.LIMIT * STEP_BYTES)
            self.serve(self.shares.ask(share, size, self.now))

    @rule(data=st.data())
    def complete(self, data: Any) -> None:
        able = [share for share in self.bodies if not share.wanted]
        if able:
            share = data.draw(st.sampled_from(able))
            self.whole.add(share)
            self.shares.complete(share)

    @precondition(lambda self: self.bodies)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.end(data.draw(st.sampled_from(self.bodies)))

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        victim = self.shares.victim(self.now)
        if victim is not None:
            assert self.shares.is_wanted, "nobody gives way to nobody"
            assert victim not in self.whole
            assert victim.gives_way is not None
            self.end(victim)

    def end(self, share: Share) -> None:
        self.bodies.remove(share)
        self.whole.discard(share)
        self.serve(self.shares.leave(share, self.now))
        assert self.shares.leave(share, self.now) == [], "given back once"

    @invariant()
    def never_over_the_bound(self) -> None:
        held = sorted(share.held for share in self.bodies)
        assert self.shares.held_bytes == sum(held), "nothing is lost"
        elder = self.shares._elder
        assert sum(share.held for share in self.bodies if share is not elder) <= TOTAL

    @invariant()
    def somebody_can_go_on(self) -> None:
        if self.shares.is_wanted:
            assert any(not share.wanted for share in self.bodies)

    def teardown(self) -> None:
        """Whoever is silent gives way and whoever is not ends: all who wait have their turn."""
        swift = set(self.bodies[::2])
        for _ in range(50 * (len(self.bodies) + 1)):
            if not self.shares.is_wanted:
                break
            self.now += 0.5
            victim = self.shares.victim(self.now)
            if victim is not None:
                self.end(victim)
            for share in [each for each in self.bodies if not each.wanted and (each in swift or each in self.whole)]:
                self.end(share)
        assert not self.shares.is_wanted, "somebody waits for ever"
        for share in list(self.bodies):
            self.end(share)
        assert (self.shares.held_bytes, self.shares._used, self.shares._lines) == (0, 0, {})


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("count", [20_000])
def test_many_who_wait_cost_little_each(count: int) -> None:
    """A line that were looked through for each would take minutes here."""
    shares = Shares(TOTAL)
    waiting = [Share(f"user-{number % 1_000}") for number in range(count)]
    for share in waiting:
        shares.ask(share, 1, 0)
    left = 0
    for share in waiting:
        shares.leave(share, 0)
        left += 1
    assert (left, shares.held_bytes) == (count, 0)
