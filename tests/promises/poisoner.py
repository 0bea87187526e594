"""A user who ruins one cluster after the other, each in another way: ``python poisoner.py URL FOLDER``, its token in TOKEN.

Each line of standard input names a poison, which is taken at once, beside the others. Answers are lines too: ``NAME taken``
once it works, ``NAME over WHAT`` when it has done what it can, and its cluster is closed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dask.delayed import Delayed
from distributed import Client, KilledWorker

from dask_fleet import FleetCluster

FOR_S = 2.0
"""How long what has no end of its own goes on before it is closed."""


def segfault(path: str) -> None:
    Path(path).touch()
    ctypes.string_at(0)


def hog(path: str) -> None:
    Path(path).touch()
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * (8 << 20)))
        time.sleep(0.001)


def hold_the_lock(path: str) -> None:
    """Keep the interpreter, in C: no other thread of the process runs, and no signal handler."""
    Path(path).touch()
    ctypes.PyDLL(None).sleep(1_000_000)


def fill_the_disk(path: str) -> str:
    """Write into the worker's own folder until it is full."""
    from distributed import get_worker

    Path(path).touch()
    written = 0
    try:
        with Path(get_worker().local_directory, "filler").open("wb") as file:
            while True:
                written += file.write(os.urandom(1 << 20))
                file.flush()
    except OSError as exc:
        return f"{exc.strerror} after {written >> 20} MiB"


def add(n: int, *_: Any) -> int:
    return n + 1


class Poisoner:
    """Makes a cluster of one worker and ruins it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        self._where = {"url": url, "token": os.environ["TOKEN"], "quiet": True}

    def cluster(self, **options: Any) -> FleetCluster:
        config = {"distributed.scheduler.allowed-failures": 0, **options.pop("config", {})}
        return FleetCluster(1, 1, config=config, **self._where, **options)

    def run(self, name: str) -> Iterator[str]:
        """Take that poison; yields what to say."""
        poison: Callable[[Client, str], Iterator[str]]
        options: dict[str, Any] = {}
        if name.startswith("preload"):
            yield from self.preload(name)
            return
        poison = getattr(self, name)
        if name == "memory":
            options["memory_limit"] = "400MiB"
        elif name == "disk":
            options["config"] = {"temporary-directory": str(self.folder / "small")}
        with self.cluster(**options) as made, Client(made, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            yield from poison(client, str(self.folder / f"{name}-taken"))

    def preload(self, name: str) -> Iterator[str]:
        """A module that ends the process which imports it: the cluster can never be of use, and says so."""
        yield ""
        options = {"scheduler_preload": "ends_at_once"} if name == "preload_of_scheduler" else {"preload": "ends_at_once"}
        try:
            with self.cluster(timeout="30s", **options) as made, Client(made, set_as_default=False) as client:
                client.submit(add, 1, pure=False).result(timeout=30)
        except Exception as exc:  # noqa: BLE001 - how it ends is told
            yield f"{type(exc).__name__}: {exc}"

    def _doomed(self, client: Client, poison: Callable[[str], object], path: str) -> Iterator[str]:
        future = client.submit(poison, path, pure=False)
        while not Path(path).exists():
            time.sleep(0.01)
        yield ""
        try:
            yield str(future.result(timeout=60))
        except KilledWorker as exc:
            yield type(exc).__name__

    def segfault(self, client: Client, path: str) -> Iterator[str]:
        return self._doomed(client, segfault, path)

    def memory(self, client: Client, path: str) -> Iterator[str]:
        return self._doomed(client, hog, path)

    def disk(self, client: Client, path: str) -> Iterator[str]:
        return self._doomed(client, fill_the_disk, path)

    def lock(self, client: Client, path: str) -> Iterator[str]:
        future = client.submit(hold_the_lock, path, pure=False)
        while not Path(path).exists():
            time.sleep(0.01)
        yield ""
        wait_s = time.monotonic() + FOR_S
        while time.monotonic() < wait_s and not future.done():
            time.sleep(0.05)
        yield f"its task is {future.status}"

    def shutdown(self, client: Client, path: str) -> Iterator[str]:
        """Close the scheduler from within, as Dask lets any client do."""
        yield ""
        client.shutdown()
        yield client.status

    def graph(self, client: Client, path: str) -> Iterator[str]:
        """Thirty thousand tasks that all need one another's neighbours."""
        layer = {f"a-{n}": (add, n) for n in range(15_000)}
        layer |= {f"b-{n}": (add, f"a-{n}", f"a-{(n + 1) % 15_000}") for n in range(15_000)}
        wanted = [Delayed(f"b-{n}", layer) for n in range(0, 15_000, 100)]
        yield ""
        yield f"computed {len(client.gather(client.compute(wanted)))}"

    def flood(self, client: Client, path: str) -> Iterator[str]:
        """Call the scheduler from four threads, without a pause."""
        until, calls = time.monotonic() + FOR_S, [0] * 4

        def call(number: int) -> None:
            while time.monotonic() < until:
                client.log_event("flood", b"x" * 100_000)
                client.has_what()
                calls[number] += 2

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        yield ""
        for thread in threads:
            thread.join()
        yield f"{sum(calls)} calls"


def main(url: str, folder: str) -> None:
    poisoner, lock = Poisoner(url, Path(folder)), threading.Lock()

    def say(*words: str) -> None:
        with lock:
            sys.stdout.write(" ".join(words) + "\n")
            sys.stdout.flush()

    def take(name: str) -> None:
        try:
            steps = poisoner.run(name)
            say(name, "taken", next(steps))
            say(name, "over", next(steps))
            for _ in steps:
                pass
        except Exception as exc:  # noqa: BLE001 - the test sees it
            say(name, "over", "FAILED:", repr(exc))

    threads = []
    for line in sys.stdin:
        threads.append(threading.Thread(target=take, args=(line.strip(),)))
        threads[-1].start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
