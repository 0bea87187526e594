"""Functions that outlast their processes, that never end in five ways, and whose results nobody can store."""

import asyncio
import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dask_fleet import Service

service = Service("survival")


@service.endpoint
def gated(n: int) -> int:
    """Note the start, and go on until the gate of that number opens."""
    starts = Path(os.environ["SURVIVAL"])
    with (starts / f"{n}.starts").open("ab", buffering=0) as file:
        file.write(f"{os.getpid()}\n".encode())
    while not (starts / f"{n}.gate").exists():
        time.sleep(0.01)
    return 3 * n


@service.endpoint(timeout="1s")
async def endless(how: str, n: int) -> int:
    """Never end, and never listen."""
    if how == "event loop":
        await asyncio.sleep(0)
        while True:
            pass
    return await asyncio.to_thread(deaf, how)


@service.endpoint(timeout="1s")
def deaf(how: str, n: int = 0) -> int:
    """Never end, in Python or in C, with the interpreter's lock or without."""
    match how:
        case "loop":
            while True:
                pass
        case "sleep":
            time.sleep(1e6)
        case "regular expression":  # C code that holds the lock: no other thread of the process runs
            re.match(r"(a+)+$", "a" * 64 + "b")
        case "C":
            ctypes.CDLL(None).sleep(1_000_000)
        case "C, with the lock":
            ctypes.PyDLL(None).sleep(1_000_000)
    return n


class Liar:
    """Pretends to be whatever is asked."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"no {name} today")

    def __repr__(self) -> str:
        raise RuntimeError("no name either")


class Loud:
    """Runs when it is pickled or shown."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)

    def __str__(self) -> str:
        return "x" * (64 << 20)

    __repr__ = __str__


class Endless(dict[str, int]):
    """A mapping without an end."""

    def items(self) -> Any:
        def forever() -> Iterator[tuple[str, int]]:
            n = 0
            while True:
                n += 1
                yield str(n), n

        return forever()


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(sys.getrecursionlimit() * 20):
        found = [found]
    return found


def generator() -> Iterator[int]:
    yield 1


def loud_exception() -> Any:
    raise ValueError("y" * (64 << 20))


RESULTS = {
    "lock": threading.Lock,
    "generator": generator,
    "coroutine function": lambda: generator,
    "circle": circle,
    "deep": deep,
    "liar": Liar,
    "loud": Loud,
    "liar in a list": lambda: [1, Liar()],
    "set of mixed": lambda: {1, "a", (2, 3)},
    "keys of mixed": lambda: {1: "a", "1": "b"},
    "surrogate": lambda: "\ud800",
    "module": lambda: sys,
    "loud exception": loud_exception,
    "too large": lambda: bytes(600 << 20),
    "too large as JSON": lambda: ["z" * (1 << 20)] * 100,
    "not a number": lambda: [float("nan"), float("inf"), -float("inf")],
}


@service.endpoint(timeout="1m", max_result="64MiB")
def hostile(kind: str) -> Any:
    """Give back what is not easily stored."""
    return RESULTS[kind]()
