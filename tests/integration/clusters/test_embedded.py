"""An embedded fleet: there without being asked for, gone with its program however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0

_PROGRAM = """
import os
from distributed import Client
from dask_fleet import FleetCluster
from dask_fleet.client import embedded

def main():
    for _ in range(2):
        with FleetCluster(n_workers=2) as cluster, Client(cluster) as client:
            assert client.submit(pow, 2, 5).result(timeout=60) == 32
    print(len(embedded._fleets), embedded._fleets[0]._process.pid, embedded._fleets[0]._folder, flush=True)

main()
"""
_GIVEN_UP = """
import asyncio, threading, time
from dask_fleet import FleetCluster
from dask_fleet.client import embedded
from dask_fleet.client.control import link_to

async def main():
    try:
        await asyncio.wait_for(FleetCluster(n_workers=1, name="given-up", asynchronous=True, quiet=True), 0.2)
    except TimeoutError:
        print("given up", len(embedded._fleets), flush=True)
    while any(thread.name == "dask-fleet request" for thread in threading.enumerate()):
        await asyncio.sleep(0.02)
    (fleet,) = embedded._fleets
    print(fleet.is_idle, link_to(fleet.settings).request("GET", "/v1/clusters?all=true")["clusters"], flush=True)

asyncio.run(main())
"""
_STAYS = _PROGRAM + """
cluster = FleetCluster(n_workers=1)
print("stays", flush=True)
input()
"""


def _start(program: str, tmp_path: Path) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**kept, "TMPDIR": tempfile.gettempdir()},
    )


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def _processes_of(folder: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if folder in command:
                found.append(command)
    return found


def test_it_is_started_once_and_ends_with_the_program(tmp_path: Path) -> None:
    with _start(_PROGRAM, tmp_path) as program:
        said, _ = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 0
    fleets, pid, folder = said.splitlines()[-1].split()  # it may have told before for what it waited
    assert fleets == "1"
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(folder).exists()
    assert not _processes_of(folder)
    assert not list(tmp_path.iterdir())


def test_a_cold_one_that_nobody_waits_for_carries_nothing(tmp_path: Path) -> None:
    with _start(_GIVEN_UP, tmp_path) as program:
        said, _ = program.communicate(timeout=DEADLINE_S)
    assert program.returncode == 0
    assert said.splitlines() == ["given up 0", "True []"]


def test_it_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    with _start(_STAYS, tmp_path) as program:
        assert program.stdout is not None
        told: list[str] = []
        for line in program.stdout:
            if line == "stays\n":
                break
            told.append(line)
        _, pid, folder = next(line for line in told if not line.startswith("cluster ")).split()
        assert _processes_of(folder)
        program.send_signal(signal.SIGKILL)
        program.wait(DEADLINE_S)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the server to end")
    until(lambda: not _processes_of(folder), "its agent to end")
    from dask_fleet.client import embedded

    assert Path(folder) in list(embedded._left_behind(Path(folder).parent)), "the next one would sweep it"
    embedded._sweep()
    assert not Path(folder).exists()
