"""Worker processes as members of clusters; and what one does that only serves one Dask worker, ended afterwards."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dask_fleet.agent.clusters.frames import Close, Join, Leave, Renew, decode_for_member_process
from dask_fleet.agent.framing import RECEIVE_BYTES, FrameBuffer
from dask_fleet.protocol.frames import Frame, Load, Loaded, Stop, encode_prefixed


def make_memberships(places: Any, send: Callable[[Frame], None]) -> Any:
    """Make this process's `Memberships`; loads Dask's worker."""
    from dask_fleet.agent.clusters.membership import Memberships

    return Memberships(places, send)


def main(channel: socket.socket, _nthreads: int = 0) -> None:
    """Be the whole of a process that is forked for it alone. Does not return."""
    from dask_fleet.agent.worker_process import settle

    settle("")
    with suppress(ConnectionError, EOFError):
        serve(channel)
    os._exit(0)


def serve(channel: socket.socket) -> None:
    """Serve the agent at the other end of `channel` until it says `Stop`.

    What a Dask worker needs is loaded before it is known which one it will be: that is what makes a spare of it. It runs no
    attempts, so that it has as many threads as that worker.

    Raises
    ------
    EOFError, ConnectionError
        If the agent is gone.
    """
    from dask_fleet.agent.clusters import dask_config, membership
    from dask_fleet.agent.pool import PlacePool

    lock = threading.Lock()
    memberships: membership.Memberships | None = None

    def send(frame: Frame) -> None:
        data = encode_prefixed(frame)
        with lock:
            channel.sendall(data)

    frames = FrameBuffer(decode_for_member_process)
    while True:
        data = channel.recv(RECEIVE_BYTES)
        if not data:
            raise EOFError
        for frame in frames.take(data):
            if isinstance(frame, Join):
                os.environ.update(frame.env)
                dask_config.configure_process(frame.config)
                if memberships is None:
                    memberships = membership.Memberships(PlacePool(frame.nthreads, name="task"), send)
                memberships.handle(frame)
            elif isinstance(frame, Leave | Renew):
                if memberships is not None:
                    memberships.handle(frame)
            elif isinstance(frame, Load):
                send(Loaded({}, {}))
            elif isinstance(frame, Stop | Close):
                return
