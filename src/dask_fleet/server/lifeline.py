"""Ties a server to the process for which it was started: when that ends, however it ends, the server does too."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)


@contextlib.contextmanager
def ended_with(pid: int | None, stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` when our parent `pid` has ended; at once if it has already. ``None`` waits for nobody.

    The kernel's signal on a parent's death would come with the end of the parent's *thread* that started us, and a pipe
    would be held open by whatever the parent has forked. A pidfd tells of the process and of nothing else.
    """
    if pid is None:
        yield
        return

    def gone() -> None:
        log.info("the process that started this server has ended", extra={"action": "parent_ended", "parent": pid})
        loop.remove_reader(descriptor)
        stop()

    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        stop()
        yield
        return
    try:
        if os.getppid() != pid:  # it has ended, and its number may be another's by now
            stop()
        else:
            loop.add_reader(descriptor, gone)
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
