"""What jobs write past Python in a real fleet: the agent's log stays small, whoever writes, and nobody is held up."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_fleet.agent.allowance import STORE_BYTES
from dask_fleet.agent.log_file import MAX_LOG_FILE_BYTES
from dask_fleet.testing.served import ServedFleet

MIB = 1 << 20
DROPPED = re.compile(r"action=output_dropped .*dropped_bytes=(\d+)")
SERVICE = '''
import os, subprocess, threading
from dask_fleet import Service

service = Service("stray")

@service.endpoint
def quick(n: int) -> int:
    """Return at once."""
    return n

@service.endpoint
def say(text: str) -> str:
    """Write past Python."""
    os.write(1, text.encode())
    return text

@service.endpoint
def shout(mib: int, how: str) -> int:
    """Write much past Python."""
    def write() -> None:
        for _ in range(mib):
            os.write(1 if how == "output" else 2, b"shouted " * (1 << 17))
    if how == "command":
        subprocess.run(["sh", "-c", f"yes shouted | head -c {mib << 20}"], check=True)
    elif how == "thread":
        threading.Thread(target=write, daemon=True).start()
    else:
        write()
    return mib
'''


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedFleet]:
    folder = tmp_path_factory.mktemp("stray")
    (folder / "stray.py").write_text(SERVICE)
    env = {"FLEET_SPARE_SCHEDULERS": "1"}
    with ServedFleet([folder / "stray.py"], folder / "data", args=("--nworkers", "2"), env=env) as fleet:
        yield fleet


def logs(fleet: ServedFleet) -> list[Path]:
    return sorted(fleet.data_dir.glob("agent.log*"))


def log_bytes(fleet: ServedFleet) -> int:
    return sum(path.stat().st_size for path in logs(fleet))


def test_floods_leave_a_line_and_a_mebibyte_for_each_process(fleet: ServedFleet) -> None:
    before, size, ways = log_bytes(fleet), 48, ("output", "error", "command", "thread")
    floods = [fleet.post("stray/shout", {"mib": size, "how": how}).json()["job_id"] for how in ways]
    assert fleet.post("stray/quick", {"n": 1}, wait=40).json()["status"] == "succeeded"
    for job_id in floods:
        fleet.until(lambda job_id=job_id: fleet.job(job_id, wait=1)["status"] == "succeeded", "a flood to end", timeout_s=60)
    least = (len(ways) * size - 4) * MIB
    fleet.until(lambda: sum(map(int, DROPPED.findall(fresh(fleet, before)))) >= least, "it to be told", timeout_s=60)
    # Each of the two processes may have written a store of theirs; a part of one has come together again by now.
    assert log_bytes(fleet) - before < 4 * STORE_BYTES


def fresh(fleet: ServedFleet, before: int) -> str:
    with (fleet.data_dir / "agent.log").open("rb") as file:
        file.seek(before)
        return file.read().decode("utf-8", "replace")


def test_only_the_agent_writes_into_its_log(fleet: ServedFleet) -> None:
    """A worker or scheduler process that had the file itself could fill the disk, and keep it when it is rotated."""
    log, holders, others = logs(fleet)[0].stat().st_ino, set(), set()
    fleet.until(lambda: any(process.name == "fleet-scheduler" for process in fleet.processes()), "a spare scheduler")
    for process in fleet.processes():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a spare may end just now
            files = {Path(f"/proc/{process.pid}/fd/{number}").stat().st_ino for number in (1, 2)}
            (holders if log in files else others).add(process.role if process.role == "agent" else process.name)
    assert "agent" in holders
    assert {"fleet-worker", "fleet-scheduler"} <= others
    assert not {"fleet-worker", "fleet-scheduler"} & holders


def test_a_large_log_is_rotated_while_the_agent_runs(fleet: ServedFleet) -> None:
    log = fleet.data_dir / "agent.log"
    os.truncate(log, MAX_LOG_FILE_BYTES)
    first = log.with_name("agent.log.1")
    fleet.until(lambda: first.exists() and first.stat().st_size >= MAX_LOG_FILE_BYTES, "the rotation")
    fleet.post("stray/say", {"text": "after the rotation"}, wait=40)
    fleet.until(lambda: log.exists() and "after the rotation" in log.read_text(), "it in the new file")
    assert log.stat().st_mode & 0o777 == 0o600
    for _ in range(4):
        os.truncate(log, MAX_LOG_FILE_BYTES)
        fleet.until(lambda: log.exists() and log.stat().st_size < MAX_LOG_FILE_BYTES, "another rotation")
    assert [path.name for path in logs(fleet)] == ["agent.log", "agent.log.1", "agent.log.2", "agent.log.3"]
