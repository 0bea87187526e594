"""The main of a worker process that only serves clusters: for those that want processes of their own, ended afterwards."""

from __future__ import annotations

import logging
import os
import socket
import threading

from dask_fleet.agent.clusters.child import FrameBuffer
from dask_fleet.agent.clusters.frames import Close, decode_for_member_process
from dask_fleet.protocol.frames import Frame, encode_prefixed

log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 18


def main(channel: socket.socket, nthreads: int) -> None:
    """Serve the agent at the other end of `channel` until it says `Close` or is gone. Does not return."""
    from dask_fleet.agent.worker_process import _settle

    _settle()
    try:
        _serve(channel, nthreads)
    except (ConnectionError, EOFError):
        os._exit(0)
    except BaseException:
        log.exception("the worker process failed")
        os._exit(70)
    os._exit(0)


def _serve(channel: socket.socket, nthreads: int) -> None:
    from dask_fleet.agent.clusters.membership import Memberships
    from dask_fleet.agent.pool import PlacePool

    lock = threading.Lock()

    def send(frame: Frame) -> None:
        data = encode_prefixed(frame)
        with lock:
            channel.sendall(data)

    memberships = Memberships(PlacePool(nthreads, name="task"), send)
    frames = FrameBuffer(decode_for_member_process)
    while True:
        data = channel.recv(_RECEIVE_BYTES)
        if not data:
            raise EOFError
        for frame in frames.take(data):
            if isinstance(frame, Close):
                return
            memberships.handle(frame)
