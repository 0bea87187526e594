"""Whole Dask programs on a `FleetCluster` beside a ``LocalCluster`` of the same processes, threads and protocol.

    python -m benchmarks.clusters_workloads [--rounds 7] [--workers 2] [--threads 1] [--only WORKLOAD ...]

Both clusters stand all the time; in each round every workload runs on both, in turn, the first one changing each round, so
that a slow minute of the machine hits both. Printed: the medians, the ratio of medians (fleet by LocalCluster), and the
median of the rounds' ratios, which a machine with other things to do disturbs less. Then the longest that one cluster's
scheduler was late while another one took in a graph of 30,000 tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
from distributed import Client, LocalCluster, as_completed

from dask_fleet import FleetCluster
from dask_fleet.testing.served import ServedFleet

LARGE_GRAPH = 30_000


def add_one(n: int) -> int:
    return n + 1


def array(client: Client) -> None:
    x = da.ones((1_500, 1_500), chunks=(250, 250))
    assert client.compute((x @ x.T).sum()).result() == 1_500.0**3


def rechunk(client: Client) -> None:
    with dask.config.set({"array.rechunk.method": "p2p"}):
        x = da.ones((2_000, 2_000), chunks=(100, 2_000)).rechunk((2_000, 100))
        assert client.compute(x.sum()).result() == 4_000_000.0


def dataframe(client: Client) -> None:
    n = np.arange(200_000)
    frame = pd.DataFrame({"key": n % 1_000, "value": n.astype("f8")})
    with dask.config.set({"dataframe.shuffle.method": "p2p"}):
        shuffled = dd.from_pandas(frame, npartitions=16).shuffle("key")
        assert client.compute(shuffled.value.sum()).result() == frame.value.sum()


def bag(client: Client) -> None:
    numbers = db.range(100_000, npartitions=40).map(add_one).filter(lambda n: n % 2 == 0)
    assert client.compute(numbers.sum()).result() == sum(range(2, 100_001, 2))


def delayed(client: Client) -> None:
    parts = [dask.delayed(add_one)(n) for n in range(400)]
    while len(parts) > 1:
        parts = [dask.delayed(sum)(parts[n : n + 4]) for n in range(0, len(parts), 4)]
    assert client.compute(parts[0]).result() == sum(range(1, 401))


def futures(client: Client) -> None:
    assert sum(client.gather(client.map(add_one, range(500), pure=False))) == sum(range(1, 501))


def one_by_one(client: Client) -> None:
    future = client.submit(add_one, 0, pure=False)
    for _ in range(40):
        future = client.submit(add_one, future.result(), pure=False)
    assert future.result() == 41


def linear(client: Client) -> None:
    value = dask.delayed(add_one)(0)
    for _ in range(100):
        value = dask.delayed(add_one)(value)
    assert client.compute(value, optimize_graph=False).result() == 101


def completed(client: Client) -> None:
    numbers = client.map(add_one, range(300), pure=False)
    assert sum(future.result() for future in as_completed(numbers, loop=client.loop)) == sum(range(1, 301))


def many(client: Client) -> None:
    assert sum(client.gather(client.map(add_one, range(10_000), pure=False))) == sum(range(1, 10_001))


WORKLOADS: tuple[Callable[[Client], None], ...] = (
    array, rechunk, dataframe, bag, delayed, futures, one_by_one, linear, completed, many
)  # fmt: skip


def compare(clients: dict[str, Client], rounds: int, only: list[str]) -> None:
    """Run workloads on both, in turn: those named, or all."""
    print(f"{'workload':12} {'fleet ms':>10} {'local ms':>10} {'ratio':>7} {'paired':>7}")
    for workload in WORKLOADS:
        if only and workload.__name__ not in only:
            continue
        samples: dict[str, list[float]] = {name: [] for name in clients}
        for client in clients.values():
            workload(client)  # imports, connections between workers
        for number in range(rounds):
            for name in sorted(clients, reverse=bool(number % 2)):
                begin = time.perf_counter()
                workload(clients[name])
                samples[name].append((time.perf_counter() - begin) * 1e3)
                gc.collect()  # futures are released now, not in the next sample
        fleet, local = (statistics.median(samples[name]) for name in ("fleet", "local"))
        paired = statistics.median(ours / theirs for ours, theirs in zip(samples["fleet"], samples["local"], strict=True))
        print(f"{workload.__name__:12} {fleet:10.1f} {local:10.1f} {fleet / local:7.2f} {paired:7.2f}", flush=True)


def start_measuring(dask_scheduler: Any) -> None:
    """On a scheduler: note by how much its event loop is late."""
    dask_scheduler.fleet_lags = []

    async def measure() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            dask_scheduler.fleet_lags.append(time.monotonic() - before - 0.01)

    dask_scheduler.fleet_measuring = asyncio.get_running_loop().create_task(measure())


def stop_measuring(dask_scheduler: Any) -> float:
    """Return the longest it was late."""
    dask_scheduler.fleet_measuring.cancel()
    return float(max(dask_scheduler.fleet_lags))


async def on_the_loop(dask_scheduler: Any) -> None:
    """``run_on_scheduler`` runs what is a coroutine on the loop."""
    start_measuring(dask_scheduler)


def neighbour_lag(busy: Client, other: Client) -> None:
    """Let one scheduler take a large graph in, and see how late its own loop and another one's were."""
    for client in (busy, other):
        client.run_on_scheduler(on_the_loop)
    time.sleep(2)
    quiet = other.run_on_scheduler(lambda dask_scheduler: max(dask_scheduler.fleet_lags))
    begin = time.perf_counter()
    assert busy.compute(da.ones(LARGE_GRAPH, chunks=1).sum(split_every=64)).result() == LARGE_GRAPH
    took = time.perf_counter() - begin
    lags = {name: 1e3 * client.run_on_scheduler(stop_measuring) for name, client in (("own", busy), ("other", other))}
    print(
        f"a graph of {LARGE_GRAPH:,} tasks took {took:.1f} s; longest delay of its own loop {lags['own']:.0f} ms,"
        f" of the other one's {lags['other']:.0f} ms (before, with nothing to do: {1e3 * quiet:.0f} ms)"
    )


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], choices=[workload.__name__ for workload in WORKLOADS])
    options = parser.parse_args()
    logging.getLogger("distributed.shuffle").setLevel(logging.ERROR)  # LocalCluster's scheduler, in here, tells of each one
    size = {"n_workers": options.workers, "threads_per_worker": options.threads}
    slots = ("--nworkers", str(2 * options.workers * options.threads), "--nthreads", "1")
    with (
        tempfile.TemporaryDirectory(prefix="fleet-bench-") as folder,
        ServedFleet([], Path(folder) / "data", args=("--no-services", *slots)) as served,
    ):
        access = {"url": served.url, "token": served.token, "quiet": True}
        with FleetCluster(**size, **access) as fleet, Client(fleet, set_as_default=False) as ours:
            ours.wait_for_workers(options.workers, timeout=60)
            with (
                LocalCluster(**size, protocol="tls", security=True, dashboard_address=None, scheduler_port=0) as local,
                Client(local, set_as_default=False) as theirs,
            ):
                theirs.wait_for_workers(options.workers, timeout=60)
                assert sorted(ours.nthreads().values()) == sorted(theirs.nthreads().values()), "not of the same size"
                compare({"fleet": ours, "local": theirs}, options.rounds, options.only)
            with FleetCluster(**size, **access) as second, Client(second, set_as_default=False) as beside:
                beside.wait_for_workers(options.workers, timeout=60)
                neighbour_lag(ours, beside)


if __name__ == "__main__":
    main()
