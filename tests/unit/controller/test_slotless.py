"""Attempts that wait for clusters of their own hold no slots, but are not without number."""

from __future__ import annotations

from typing import Any

from dask_fleet.controller.agents import AgentHandle, HeldAttempt
from dask_fleet.model.placement import MAX_ATTEMPTS
from dask_fleet.plugins.clock import SystemClock


def handle(slots: int = 2) -> AgentHandle:
    made = AgentHandle("local-1", "local", SystemClock())
    made.slots = made.nworkers = slots

    def send(_: Any) -> None:
        pass

    made.connect(send, now_us=0)
    return made


def test_the_slot_is_others_at_once_and_only_once() -> None:
    agent = handle()
    for seq in (1, 2):
        agent.hold(HeldAttempt(seq=seq, run=1, attempt=1))
    assert (agent.free, agent.takes_more) == (0, False)
    assert agent.give_slot_back((1, 1))
    assert not agent.give_slot_back((1, 1))
    assert not agent.give_slot_back((7, 1))
    assert (agent.free, agent.takes_more) == (1, True)
    agent.drop((1, 1))
    assert agent.free == 1
    agent.drop((2, 1))
    assert agent.free == 2


def test_no_more_attempts_than_its_processes_hold() -> None:
    """Its slots stay free for the clusters that all of them wait for."""
    agent = handle(slots=2)
    for seq in range(2 * MAX_ATTEMPTS):
        assert agent.takes_more, seq
        agent.hold(HeldAttempt(seq=seq, run=1, attempt=1))
        agent.give_slot_back((seq, 1))
    assert not agent.takes_more
    assert not agent.takes_suspect
    assert agent.free == 2
    agent.drop((0, 1))
    assert agent.takes_more
