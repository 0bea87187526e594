# ruff: noqa: T201 - printing is what they are for
"""Functions that write: to standard output and error, to logging, from coroutines, threads, executors and graphs."""

import asyncio
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import dask.delayed

from dask_fleet import Service

service = Service("logs")
log = logging.getLogger("mine")
shared = ThreadPoolExecutor(2)

print("imported, on the worker process's own stream")


def wait_for_gate(name: str) -> None:
    gate = Path(os.environ["LOG_GATES"], name)
    deadline = time.monotonic() + 60
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.01)


@service.endpoint
def silent(n: int) -> int:
    """Write nothing."""
    return n


@service.endpoint
def speak(text: str) -> str:
    """Write everywhere."""
    print(text, "out")
    print(text, "err", file=sys.stderr)
    sys.stdout.buffer.write(f"{text} bytes\n".encode())
    log.info("%s logged", text)
    log.debug("%s too fine", text)
    try:
        raise KeyError(text)
    except KeyError:
        log.exception("%s caught", text)
    os.write(2, f"{text} past Python\n".encode())
    return text


@service.endpoint
async def waits(text: str) -> str:
    """Write from a coroutine, before and after others had their turn."""
    print(text, "before")
    await asyncio.sleep(0.05)
    await asyncio.to_thread(print, text, "in a thread")
    print(text, "after")
    return text


@service.endpoint
def threads(text: str) -> str:
    """Write from threads of the job's own, and from an executor that all jobs share."""
    one = threading.Thread(target=print, args=(text, "own thread"))
    one.start()
    one.join()
    list(shared.map(lambda n: print(text, "shared", n), range(4)))
    return text


@service.endpoint
def graph(text: str) -> object:
    """Write from tasks: of a graph computed inside, and of one that is returned."""

    @dask.delayed
    def task(n: int) -> int:
        print(text, "task", n)
        return n

    dask.compute(*[task(n) for n in range(3)])
    return dask.delayed(sum)([task(n) for n in range(3, 6)])


@service.endpoint(retries=2)
def flaky(text: str) -> str:
    """Fail twice, telling which start it is."""
    counter = Path(os.environ["LOG_GATES"], f"{text}.starts")
    with counter.open("ab") as file:
        file.write(b"x")
    start = counter.stat().st_size
    print(text, "start", start)
    if start < 3:
        raise ValueError(text)
    return text


@service.endpoint
def flood(lines: int) -> int:
    """Write more than is kept."""
    for n in range(lines):
        print(f"{n:08d} äöü")
    return lines


@service.endpoint
def gated(text: str) -> str:
    """Write, wait for the test, write again."""
    print(text, "first")
    wait_for_gate(text)
    print(text, "second")
    return text


@service.endpoint
def endless(text: str) -> str:
    """Write and never end."""
    print(text, "and on")
    while True:
        time.sleep(0.05)


@service.endpoint
def forks(text: str) -> str:
    """Write from a forked child as well, whose text is nobody's."""
    print(text, "parent")
    pid = os.fork()
    if pid == 0:
        print(text, "child", flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    return text


@service.endpoint
def colours(text: str) -> str:
    """Write what steers terminals."""
    print(f"\x1b[31m{text}\x1b[0m \x1b]0;title\x07plain")
    return text
