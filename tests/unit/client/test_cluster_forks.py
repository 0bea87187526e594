"""A `FleetCluster` in a child that was forked from its process: whatever the child does, the cluster is its parent's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.unit.client.cluster_server import DEADLINE_S, Remote, status_of

_COMMON = """
import asyncio, gc, os, sys, time
from dask_fleet import FleetCluster

url, token, name = sys.argv[1:]
options = {"n_workers": 0, "name": name, "quiet": True, "url": url, "token": token}

def ended(child):
    deadline = time.monotonic() + 30
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, 9)
            sys.exit("the child hangs")
        time.sleep(0.02)

def runs(cluster):
    print(cluster._taken.link.request("GET", cluster._taken.path)["status"], cluster.status.name, flush=True)
    os._exit(0)  # and without its own end, which closes it
"""

_PROGRAMS = {
    "a child of an asynchronous program ends": """
async def main():
    cluster = await FleetCluster(asynchronous=True, **options)
    if (child := os.fork()) == 0:
        sys.exit(0)
    ended(child)
    runs(cluster)
asyncio.run(main())
""",
    "a child leaves an asynchronous block": """
async def main():
    async with FleetCluster(asynchronous=True, **options) as cluster:
        if (child := os.fork()) == 0:
            sys.exit(0)
        ended(child)
        runs(cluster)
asyncio.run(main())
""",
    "a child leaves the block": """
with FleetCluster(**options) as cluster:
    if (child := os.fork()) == 0:
        sys.exit(0)
    ended(child)
    runs(cluster)
""",
    "a child forgets it": """
cluster = FleetCluster(**options)
if (child := os.fork()) == 0:
    del cluster
    gc.collect()
    time.sleep(1)  # were it closed, it would be from a thread
    os._exit(0)
ended(child)
runs(cluster)
""",
    "a child closes and uses it": """
cluster = FleetCluster(**options)
if (child := os.fork()) == 0:
    for use in (lambda: cluster.scale(1), cluster.get_logs, lambda: cluster.adapt(maximum=1), lambda: cluster._taken.link):
        try:
            use()
        except RuntimeError as exc:
            assert "forked" in str(exc), exc
        else:
            sys.exit("it was of use")
    cluster.close()
    cluster.close()
    repr(cluster)
    sys.exit(0)
ended(child)
runs(cluster)
""",
    "a child of a program that starts an embedded fleet meanwhile": """
import threading
from dask_fleet.client import control, embedded
cluster = FleetCluster(**options)
held = threading.Event()
def hold():
    with embedded._lock, control._links_lock:
        held.set()
        time.sleep(600)
threading.Thread(target=hold, daemon=True).start()
held.wait()
if (child := os.fork()) == 0:
    sys.exit(0)
ended(child)
runs(cluster)
""",
}


@pytest.mark.parametrize("program", _PROGRAMS)
def test_the_parents_cluster_goes_on(program: str, server: Remote) -> None:
    name = program.replace(" ", "-")
    done = subprocess.run(
        [sys.executable, "-c", _COMMON + _PROGRAMS[program], server.url, server.options["token"], name],
        env={key: value for key, value in os.environ.items() if not key.startswith("FLEET_")},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "running running\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert "unclosed" not in done.stderr
    assert status_of(server, name) == "running"
