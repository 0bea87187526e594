"""Outcomes until they are acknowledged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dask_fleet.agent.outbox import Outbox
from dask_fleet.model.states import AttemptState
from dask_fleet.protocol.frames import AttemptRef, Outcome


def outcome(seq: int, *, attempt: int = 1, spool: str | None = None) -> Outcome:
    return Outcome(seq, 1, attempt, AttemptState.SUCCEEDED, "w", 5, body=b"42", spool=spool)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "agent-outbox"


def make(folder: Path, spool: Path | None = None) -> Outbox:
    outbox = Outbox(folder, spool or folder.parent)
    outbox.load()
    return outbox


def test_connected_it_touches_no_disk(folder: Path) -> None:
    outbox = make(folder)
    outbox.welcomed("a")
    outbox.add(outcome(1))
    outbox.acknowledge(1, 1)
    outbox.acknowledge(1, 1)  # twice is harmless
    assert len(outbox) == 0
    outbox.close()
    assert files(folder) == []


def test_what_is_not_acknowledged_between_two_looks_is_overdue(folder: Path) -> None:
    outbox = make(folder)
    outbox.welcomed("L")
    outbox.add(outcome(1))
    assert outbox.overdue() == []
    outbox.add(outcome(2))
    assert outbox.overdue() == [outcome(1)]
    outbox.acknowledge(1, 1)
    assert outbox.overdue() == [outcome(2)]
    outbox.close()


def test_what_waits_survives_the_process(folder: Path) -> None:
    outbox = make(folder)
    outbox.welcomed("a")
    outbox.add(outcome(1))
    outbox.disconnected()
    outbox.add(outcome(2, attempt=3))
    outbox.close()
    assert files(folder) == ["1-1.outcome", "2-3.outcome"]

    successor = make(folder)
    assert successor.ledger_id == "a"
    assert successor.refs() == [AttemptRef(1, 1, 1), AttemptRef(2, 1, 3)]
    assert successor.outcomes() == [outcome(1), outcome(2, attempt=3)]
    assert (1, 1) in successor
    assert successor.welcomed("a")
    successor.acknowledge(1, 1)
    successor.close()
    assert files(folder) == ["2-3.outcome"]


def test_closing_brings_to_disk_what_is_not_acknowledged(folder: Path) -> None:
    outbox = make(folder)
    outbox.welcomed("a")
    outbox.add(outcome(1))
    outbox.close()
    assert files(folder) == ["1-1.outcome"]


def test_another_ledger_drops_outcomes_and_their_results(folder: Path) -> None:
    outbox = make(folder)
    outbox.welcomed("a")
    result = folder.parent / "abc"
    result.write_bytes(b"bytes")
    outbox.add(outcome(1, spool="abc"))
    outbox.disconnected()
    assert not outbox.welcomed("b")
    assert outbox.ledger_id == "b"
    assert len(outbox) == 0
    outbox.close()
    assert files(folder) == []
    assert not result.exists()


def test_interrupted_and_damaged_files_do_not_stop_a_start(folder: Path) -> None:
    outbox = make(folder)
    outbox.welcomed("a")
    outbox.disconnected()
    outbox.add(outcome(1))
    outbox.close()
    (folder / "2-1.draft").write_bytes(b"half")
    (folder / "3-1.outcome").write_bytes(b"\xc1")
    successor = make(folder)
    assert successor.refs() == [AttemptRef(1, 1, 1)]
    successor.close()
    assert files(folder) == ["1-1.outcome"]


def test_outcomes_of_two_ledgers_are_never_mixed(folder: Path) -> None:
    for seq, ledger in ((1, "a"), (2, "b")):
        outbox = Outbox(folder, folder.parent)
        folder.mkdir(exist_ok=True)
        outbox.welcomed(ledger)
        outbox.disconnected()
        outbox.add(outcome(seq))
        outbox.close()
    successor = make(folder)
    assert (successor.ledger_id, successor.refs()) == ("a", [AttemptRef(1, 1, 1)])
    successor.close()


def test_spool_files_that_a_killed_process_left_are_removed_in_time(folder: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    outbox = make(folder, spool)
    outbox.add(outcome(1, spool="announced"))
    outbox.close()
    for name in ("announced", "forgotten", "fresh"):
        (spool / name).write_bytes(b"x")
        if name != "fresh":
            os.utime(spool / name, (1.0, 1.0))
    make(folder, spool).close()
    assert files(spool) == ["announced", "fresh"]
