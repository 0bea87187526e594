"""From nothing to a first result: `FleetCluster` beside ``LocalCluster`` and dask-gateway's local backend, in one run.

    python -m benchmarks.fleet_cluster [--rounds 15] [--gateway VENV] [--json FILE] [--output docs/benchmarks.md]

Each round takes a cluster of two workers from each system in turn, computes one task and gives it back, so that a slow
minute of the machine hits all alike; medians are shown. Fleet's and the gateway's connections are under mutual TLS,
LocalCluster's are not. ``--gateway`` names a virtual environment with ``dask-gateway`` and
``dask-gateway-server[local]`` of the same Dask. What the agent's part of it takes, `benchmarks.clusters` measures.

Fleet's are three: from a *spare* cluster, for which each round waits until one is ready, as it is for who does not take one
cluster right after the other; *shared*, in processes that are there; *fresh*, with processes of its own from spares. The
last two are of a server without spare clusters. Beside the medians stands what they aim at.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import report
from dask_fleet.testing.served import ServedFleet

WARM_UP = 3
CALM_S = 0.5
"""Between two systems: processes that end, and spare processes that are made anew, are not the next one's to pay for."""
SETTLE_S = 60.0
GIVE_UP_S = 30.0
STUCK_S = 180.0
"""A round that takes so long does not end: it is shown where it waits."""
SPARE, SHARED, FRESH = (f"FleetCluster, {how} (TLS)" for how in ("from a spare", "shared processes", "fresh processes"))
LOCAL, GATEWAY = "LocalCluster (no TLS)", "dask-gateway, local backend (TLS)"
AIMS_MS = {SPARE: 60, SHARED: 130, FRESH: 280}
TIMES = {LOCAL: 15, GATEWAY: 50}
HEADING = "## Dask clusters: the first result"
LOAD_BEFORE = os.getloadavg()[0]

_GATEWAY_CONFIG = """
python = {python!r}
c.DaskGateway.backend_class = "dask_gateway_server.backends.local.UnsafeLocalBackend"
c.DaskGateway.authenticator_class = "dask_gateway_server.auth.SimpleAuthenticator"
c.Proxy.address = "127.0.0.1:{port}"
c.DaskGateway.address = "127.0.0.1:0"
c.LocalBackend.clusters_directory = {folder!r}
# Its defaults are commands that distributed does not install any more.
c.ClusterConfig.scheduler_cmd = [python, "-m", "distributed.cli.dask_scheduler"]
c.ClusterConfig.worker_cmd = [python, "-m", "distributed.cli.dask_worker"]
"""

_GATEWAY_CLIENT = """
import json, sys, time
from dask_gateway import Gateway

gateway = Gateway(sys.argv[1])
for line in sys.stdin:
    begun = time.perf_counter()
    with gateway.new_cluster(shutdown_on_close=True) as cluster:
        cluster.scale(2)
        with cluster.get_client() as client:
            assert client.submit(sum, (1, 2)).result() == 3
            print(json.dumps(time.perf_counter() - begun), flush=True)
"""

_COLD = """
import time
begun = time.perf_counter()
{make}
from distributed import Client
if __name__ == "__main__":
    with {call} as cluster, Client(cluster) as client:
        assert client.submit(sum, (1, 2)).result() == 3
        print(time.perf_counter() - begun, flush=True)
"""


def once(make: Callable[[], Any]) -> float:
    """Return the seconds from nothing to the first result."""
    from distributed import Client

    begun = time.perf_counter()
    with make() as cluster, Client(cluster) as client:
        assert client.submit(sum, (1, 2)).result() == 3
        return time.perf_counter() - begun


def cold(make: str, call: str) -> float:
    """Return the seconds that a program of its own takes from its first import to the first result."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "cold.py")
        script.write_text(_COLD.format(make=make, call=call))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLEET_")}
        done = subprocess.run(
            [sys.executable, str(script)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return float(done.stdout.splitlines()[-1])


@contextlib.contextmanager
def gateway(venv: Path, folder: Path) -> Iterator[Callable[[], float]]:
    """Run a gateway with its local backend; yield what takes one cluster of it."""
    python = str(venv / "bin" / "python")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "gateway.py"
    config.write_text(_GATEWAY_CONFIG.format(python=python, port=port, folder=str(folder / "clusters")))
    environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ""}
    with (folder / "gateway.log").open("wb") as output:
        server = subprocess.Popen(
            [str(venv / "bin" / "dask-gateway-server"), "-f", str(config)],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + SETTLE_S
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5).close()
                break
            assert time.monotonic() < deadline, (folder / "gateway.log").read_text()[-2000:]
            time.sleep(0.1)
        clients: list[subprocess.Popen[str]] = []

        def begin() -> subprocess.Popen[str]:
            client = subprocess.Popen(
                [python, "-c", _GATEWAY_CLIENT, f"http://127.0.0.1:{port}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            clients.append(client)
            return client

        def take() -> float:
            client = clients[-1] if clients else begin()
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write("\n")
            client.stdin.flush()
            # Now and then it brings up no cluster, and its client waits for ever.
            if not select.select([client.stdout], [], [], GIVE_UP_S)[0]:
                client.kill()
                begin()
                raise TimeoutError
            return float(json.loads(client.stdout.readline()))

        try:
            yield take
        finally:
            for client in clients:
                with client:  # closes its input, which is its end
                    pass
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(SETTLE_S)


def spare_is_ready(fleet: ServedFleet) -> bool:
    """Whether a spare cluster waits with all its workers."""
    found = fleet.request("GET", "/v1/clusters?spares=true").json()["clusters"]
    return any((each["kind"], each["status"], each["workers"]) == ("spare", "running", 2) for each in found)


def table(figures: dict[str, list[float]]) -> list[str]:
    """Return medians, and how they stand to what they aim at, as lines of Markdown."""
    medians = {system: statistics.median(took_s) for system, took_s in figures.items()}
    rounds = max(map(len, figures.values()))
    lines = [
        f"From nothing to a first result with two workers, in a warm process; {rounds} rounds in turn.",
        "Fleet's and the gateway's connections are under mutual TLS, LocalCluster's are not. A whole program begins with",
        f"its imports. Load average of the machine before: {LOAD_BEFORE:.1f}, of {os.cpu_count()} cores.",
        "",
        "| | median ms | best | worst | aim | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for system, took_s in figures.items():
        aim, met = "", True
        if system in AIMS_MS:
            aim, met = f"≤ {AIMS_MS[system]}", medians[system] * 1e3 <= AIMS_MS[system]
        if system in TIMES and system in medians:
            times = medians[system] / medians[SPARE]
            aim, met = f"{times:.1f} x the first (aim ≥ {TIMES[system]} x)", times >= TIMES[system]
        figures_ms = " | ".join(f"{each * 1e3:.0f}" for each in (medians[system], min(took_s), max(took_s)))
        verdict = ("met" if met else "**open**") if aim else ""
        lines.append(f"| {system} | {figures_ms} | {aim} | {verdict} |")
    return lines


def show_progress(number: int, rounds: int) -> None:
    """Say on standard error which round it is: one takes about eight seconds."""
    print(f"  round {number + 1} of {rounds}{' (warm-up)' if number < WARM_UP else ''}", file=sys.stderr, flush=True)


def settled(fleet: ServedFleet) -> None:
    """Wait until all slots are back, so that a round does not pay for the one before."""
    fleet.until(
        lambda: all(agent["free"] == agent["slots"] for agent in fleet.status()["agents"]), "slots", timeout_s=SETTLE_S
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--gateway", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--output", type=Path, help="the report whose section on this is to be made anew")
    given = parser.parse_args()

    from distributed import LocalCluster

    from dask_fleet import FleetCluster

    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        arguments = ("--no-services", "--nworkers", "2", "--nthreads", "2")
        fleet = stack.enter_context(ServedFleet([], folder / "fleet", args=(*arguments, "--spare-clusters", "0")))
        ready = stack.enter_context(ServedFleet([], folder / "ready", args=arguments))
        systems: dict[str, Callable[[], float]] = {
            SPARE: lambda: once(lambda: FleetCluster(n_workers=2, url=ready.url, token=ready.token, quiet=True)),
            SHARED: lambda: once(
                lambda: FleetCluster(n_workers=2, url=fleet.url, token=fleet.token, quiet=True, shared=True)
            ),
            FRESH: lambda: once(lambda: FleetCluster(n_workers=2, url=fleet.url, token=fleet.token, quiet=True)),
            LOCAL: lambda: once(
                lambda: LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
            ),
        }
        if given.gateway is not None:
            systems[GATEWAY] = stack.enter_context(gateway(given.gateway, folder))
        for number in range(given.rounds + WARM_UP):
            show_progress(number, given.rounds + WARM_UP)
            faulthandler.dump_traceback_later(STUCK_S, exit=True)
            for system, measure in systems.items():
                settled(fleet)
                if number > 0 or system != SPARE:  # nobody is to pay for the making of one
                    ready.until(lambda: spare_is_ready(ready), "a spare cluster", timeout_s=SETTLE_S)
                time.sleep(CALM_S)
                try:
                    took = measure()
                except TimeoutError:
                    print(f"  {system}: nothing within {GIVE_UP_S:.0f} s, left out", file=sys.stderr, flush=True)
                    continue
                if number >= WARM_UP:
                    figures.setdefault(system, []).append(took)
    faulthandler.cancel_dump_traceback_later()
    programs = {
        "embedded fleet, whole program": ("from dask_fleet import FleetCluster", "FleetCluster(n_workers=2, quiet=True)"),
        "LocalCluster, whole program": ("from distributed import LocalCluster", "LocalCluster(n_workers=2)"),
    }
    for _ in range(max(3, given.rounds // 3)):
        for system, (make, call) in programs.items():
            figures.setdefault(system, []).append(cold(make, call))
    lines = table(figures)
    report.publish(HEADING, lines, given.output)
    if given.json is not None:
        given.json.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
