"""A service whose functions do everything a worker process must survive."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import numpy as np

from dask_fleet import Service, cancelled, progress

service = Service("trial")


@service.endpoint()
def double(n: int) -> int:
    return 2 * n


@service.endpoint()
def pid() -> int:
    return os.getpid()


@service.endpoint()
def environment() -> dict[str, bool]:
    return {"token": "FLEET_TOKEN" in os.environ, "stdin": sys.stdin is None or os.read(0, 1) == b""}


@service.endpoint()
def variables(names: list[str]) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


@service.endpoint()
async def later(n: int) -> int:
    await asyncio.sleep(0)
    return n + 1


@service.endpoint()
async def meet(folder: str, me: str, other: str) -> str:
    """Ends when the other one has come: needs both to run at once."""
    Path(folder, me).touch()  # noqa: ASYNC240
    while not Path(folder, other).exists():  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.005)
    return me


@service.endpoint()
async def await_for_ever() -> None:
    await asyncio.Event().wait()


@service.endpoint()
def raises(text: str) -> None:
    raise ValueError(text)


@service.endpoint()
def leaves(how: str) -> None:
    if how == "sys.exit":
        sys.exit(3)
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "os._exit":
        os._exit(7)
    if how == "255":
        os._exit(255)
    if how == "segfault":
        ctypes.string_at(0)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    if how == "with its parent stopped":
        os.kill(os.getppid(), signal.SIGSTOP)
        os._exit(7)


@service.endpoint()
def hoards(mib: int, path: str = "", step_mib: int = 16, pause_s: float = 0.0) -> int:
    """Take memory that is really there, and keep it until the file exists (for ever, without one)."""
    held = []
    for _ in range(0, mib, step_mib):
        held.append(b"x" * (step_mib << 20))
        time.sleep(pause_s)
    if path:
        Path(path + ".started").write_text(str(os.getpid()))
    while not path or not Path(path).exists():
        time.sleep(0.005)
    return len(held)


@service.endpoint()
def feeds_a_child(mib: int, path: str) -> int:
    """Let a process of a session of its own take memory, and wait for it."""
    code = f"held = b'x' * ({mib} << 20); import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    Path(path).write_text(str(child.pid))
    return child.wait()


@service.endpoint()
def forks(n: int, path: str) -> int:
    """Have children that share nearly all their memory with this process, until the file exists; returns their sum, each
    counted in full.
    """
    pids = []
    for _ in range(n):
        if (pid := os.fork()) == 0:
            while not Path(path).exists():
                time.sleep(0.05)
            os._exit(0)
        pids.append(pid)
    total = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)
    Path(path + ".started").write_text(str(os.getpid()))
    for pid in pids:
        os.waitpid(pid, 0)
    return total


@service.endpoint()
def unserialisable() -> object:
    return threading.Lock()


class Ungraphable:
    def __dask_graph__(self) -> object:
        raise RuntimeError("no graph today")


@service.endpoint()
def ungraphable() -> object:
    return Ungraphable()


@service.endpoint()
def large(size: int) -> bytes:
    return b"x" * size


@service.endpoint()
def wait_for(path: str) -> str:
    """Ends when the file is there."""
    Path(path + ".started").write_text(str(os.getpid()))
    while not Path(path).exists():
        time.sleep(0.005)
    return "came"


@service.endpoint()
def wait_until_cancelled(path: str) -> str:
    Path(path + ".started").touch()
    while not cancelled():
        time.sleep(0.005)
    Path(path + ".cancelled").touch()
    return "too late"


@service.endpoint()
def deaf(path: str) -> None:
    """Never asks whether it is wanted."""
    Path(path + ".started").touch()
    while True:
        time.sleep(0.01)


@service.endpoint()
def keeps_the_interpreter(path: str) -> None:
    """No other thread of the process ever runs again."""
    Path(path + ".started").touch()
    ctypes.PyDLL(None).sleep(1000)


@service.endpoint()
def spawns(path: str) -> None:
    child = subprocess.Popen(["sleep", "1000"])
    Path(path + ".draft").write_text(str(child.pid))
    Path(path + ".draft").replace(path)
    while True:
        time.sleep(0.01)


@service.endpoint()
def scatters(path: str, end: bool = False) -> None:
    """Start processes that hide: in sessions of their own, forked twice, without the environment they had."""
    children = [
        subprocess.Popen(["sleep", "1000"], start_new_session=True),
        subprocess.Popen(["env", "-i", "sleep", "1000"], start_new_session=True),
    ]
    pids = [child.pid for child in children]
    twice = subprocess.run(["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!"], capture_output=True, check=True)
    pids.append(int(twice.stdout))
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        if (grandchild := os.fork()) == 0:
            while True:
                time.sleep(1000)
        os.write(theirs, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    pids.append(int(os.read(ours, 20)))
    Path(path + ".draft").write_text(" ".join(str(pid) for pid in pids))
    Path(path + ".draft").replace(path)
    while not end:
        time.sleep(0.01)


@service.endpoint()
def depth() -> int:
    """How many calls deep a function can go."""
    def deeper(n: int) -> int:
        try:
            return deeper(n + 1)
        except RecursionError:
            return n

    return deeper(0)


@service.endpoint()
def spools(path: str) -> bytes:
    """Die while a large result is being written."""
    folder = Path(path)

    def die() -> None:
        while not any(file.stat().st_size for file in folder.iterdir()):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()
    return b"x" * (64 << 20)


@service.endpoint()
def aborts() -> None:
    """As C code does: say something, and abort."""
    os.write(2, b"free(): the last words\n")
    os.abort()


@service.endpoint()
def reports() -> str:
    progress(1, 2, "half")
    progress(2, 2, "whole")
    return "done"


# ---------------------------------------------------------------- Dask inside


@service.endpoint()
def graph(n: int) -> object:
    return da.arange(n, chunks=max(1, n // 8)).sum()


@service.endpoint()
def graph_that_raises() -> object:
    @dask.delayed
    def boom() -> None:
        raise LookupError("inside the graph")

    return boom()


@service.endpoint()
def computes(n: int) -> int:
    return int(da.arange(n, chunks=max(1, n // 8)).sum().compute())


@service.endpoint()
def persists(n: int) -> int:
    return int(da.arange(n, chunks=max(1, n // 8)).persist().sum().compute())


@service.endpoint()
def computes_nested(n: int) -> int:
    @dask.delayed
    def inner(k: int) -> int:
        return int(da.ones(k, chunks=1).sum().compute())

    return sum(dask.compute(*[inner(n) for _ in range(3)]))


@service.endpoint()
def tasks_at_once(folder: str, n: int) -> int:
    """The most tasks that were seen running at one moment in this process."""
    lock, now, most = threading.Lock(), 0, 0

    @dask.delayed
    def task(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    dask.compute(*[task(i) for i in range(n)])
    return most


@service.endpoint()
def scheduler_threads(scheduler: str | None = None) -> list[str]:
    """Names of the threads that ran the tasks."""

    @dask.delayed
    def where(_: int) -> str:
        return threading.current_thread().name

    return sorted(set(dask.compute(*[where(i) for i in range(4)], scheduler=scheduler)))


@service.endpoint()
def own_client(path: str, other: str, wait: bool = True) -> dict[str, object]:
    """Make a default client, and keep it open until the other job has looked."""
    from distributed import Client, default_client

    client = Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None)
    try:
        mine = default_client() is client
        thread = dask.delayed(lambda: threading.current_thread().name)().compute()
        kept = client.persist(dask.delayed(lambda: 5)())
        Path(path).touch()
        while wait and not Path(other).exists():
            time.sleep(0.005)
        return {"mine": mine, "thread": thread, "kept": kept.compute()}
    finally:
        client.close()


@service.endpoint()
def no_client(path: str, other: str) -> dict[str, object]:
    """While another job has a client: look for a default one, and compute."""
    from distributed import default_client

    while not Path(other).exists():
        time.sleep(0.005)
    try:
        default_client()
        found = True
    except ValueError:
        found = False
    names: list[str] = []

    def in_a_thread_of_its_own() -> None:
        names.append(dask.delayed(lambda: threading.current_thread().name)().compute())

    thread = threading.Thread(target=in_a_thread_of_its_own)
    thread.start()
    thread.join()
    name = dask.delayed(lambda: threading.current_thread().name)().compute()
    Path(path).touch()
    return {"found": found, "thread": name, "free_thread": names[0]}


@service.endpoint()
def array() -> np.ndarray:
    return np.arange(3)
