"""Good jobs and three kinds of bad ones: those that kill their worker, that eat its memory, that never end."""

import ctypes
import os
import signal
import time

from dask_fleet import Service

service = Service("blast")


@service.endpoint
def innocent(n: int) -> int:
    """Take a moment, then answer: long enough to be in a process when it dies."""
    time.sleep(0.05)
    return 3 * n


@service.endpoint
def poison(n: int) -> int:
    """End the process it runs in, in one of five ways."""
    time.sleep(0.01)
    match n % 5:
        case 0:
            os.kill(os.getpid(), signal.SIGKILL)
        case 1:
            ctypes.string_at(0)  # SIGSEGV
        case 2:
            os._exit(0)
        case 3:
            os.kill(os.getppid(), signal.SIGKILL)  # and with it all others of its parent
            time.sleep(600)
        case _:
            os.abort()
    return n


@service.endpoint
def hog(n: int) -> int:
    """Take memory until there is no more."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1) * (8 << 20)))
        time.sleep(0.001)
    return n


@service.endpoint(timeout="2s")
def infinite(n: int) -> int:
    """Never end and never listen, half of them within C."""
    if n % 2:
        while True:
            pass
    time.sleep(1e6)
    return n
