"""The main of a worker process, forked from the forkserver.

Its main thread only reads frames; attempts run on the threads of the pool, which send their outcomes themselves.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dask_fleet.agent import parentage
from dask_fleet.agent.clusters import member_process
from dask_fleet.agent.clusters.frames import Join, Leave, Renew
from dask_fleet.agent.framing import RECEIVE_BYTES, FrameBuffer
from dask_fleet.agent.orphans import MARK
from dask_fleet.agent.worker_frames import decode_for_worker
from dask_fleet.config.secret import SECRET_VARIABLES
from dask_fleet.protocol.cluster_frames import JobCluster
from dask_fleet.protocol.frames import (
    Cancel,
    Frame,
    Load,
    Loaded,
    LogGrown,
    Start,
    Stop,
    encode_prefixed,
)

log = logging.getLogger(__name__)



@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOptions:
    """What a worker process is told when it is forked."""

    name: str
    nthreads: int
    spool: Path
    logs: Path
    """Folder of what attempts write."""
    token: str
    """What the names of its spool files begin with, so that those it leaves half-written are found."""
    for_lease: bool
    """Whether it is for one Dask worker of a cluster and runs no attempts."""
    folder: str
    """What stands for the agent's data folder in `orphans.MARK`."""


def main(channel: socket.socket, stray: Connection, options: WorkerOptions) -> None:
    """Serve the agent at the other end of `channel` until it says stop or is gone. Does not return.

    `stray` becomes standard output and error, which the agent bounds and whose end it keeps.
    """
    settle(options.folder, stray)
    try:
        if options.for_lease:
            member_process.serve(channel)
        else:
            _serve(channel, options)
    except (ConnectionError, EOFError):
        os._exit(0)  # the agent is gone; so is everyone who could want a result
    except BaseException:
        log.exception("the worker process failed")
        os._exit(70)
    os._exit(0)  # not sys.exit: threads of user code and its atexit handlers must not hold the place


def settle(folder: str, stray: Connection | None = None, *, name: str = "fleet-worker") -> None:
    """Tie the process to its parent and cut it off from what it inherited. `stray` becomes standard output and error.

    `name`, of at most 15 characters, is what ``ps`` and ``top`` show it as.
    """
    from dask_fleet.agent import preload

    parentage.die_with_parent(preload.FORKSERVER_PID)
    parentage.call_itself(name)
    # A group of its own: the agent kills it with whatever the user's code has started.
    os.setpgid(0, 0)
    # Ctrl-C in the agent's terminal is the agent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if stray is not None:
        os.dup2(stray.fileno(), 1)
        os.dup2(stray.fileno(), 2)
        stray.close()
    faulthandler.enable(file=2)  # the number: sys.stderr is to be another
    for name in SECRET_VARIABLES:
        os.environ.pop(name, None)
    os.environ[MARK] = f"{folder}:{os.getpid()}"
    let_the_forkserver_end()
    from dask_fleet.observability import logs

    logs.configure()


def let_the_forkserver_end() -> None:
    """Give up our end of the pipe by which the forkserver knows that it is needed.

    Every child inherits it, so the forkserver would outlive a killed agent as long as one child lives, and the child, whose
    death hangs on the forkserver's, would live for ever. ``multiprocessing`` inside a job starts a forkserver of its own.
    """
    from multiprocessing import forkserver

    server: Any = forkserver._forkserver  # noqa: SLF001
    if server._forkserver_alive_fd is not None:  # noqa: SLF001
        os.close(server._forkserver_alive_fd)  # noqa: SLF001
    server._forkserver_alive_fd = None  # noqa: SLF001
    server._forkserver_address = None  # noqa: SLF001
    server._forkserver_pid = None  # noqa: SLF001
    server.set_forkserver_preload([])


def _serve(channel: socket.socket, options: WorkerOptions) -> None:
    from dask_fleet.agent import capture
    from dask_fleet.agent.output import Recorder
    from dask_fleet.agent.pool import PlacePool
    from dask_fleet.agent.runner import Runner

    lock = threading.Lock()

    def send(frame: Frame) -> None:
        data = encode_prefixed(frame)
        with lock:
            channel.sendall(data)

    recorder = Recorder(options.logs, lambda output: send(LogGrown(output.seq, output.attempt, output.run)))
    capture.install()
    places = PlacePool(options.nthreads)
    memberships: Any = None
    runner = Runner(
        send=send,
        pool=places,
        spool=options.spool,
        spool_token=options.token,
        recorder=recorder,
        worker=f"{options.name}-{os.getpid()}",
    )
    frames = FrameBuffer(decode_for_worker)
    while True:
        data = channel.recv(RECEIVE_BYTES)
        if not data:
            raise EOFError
        for frame in frames.take(data):
            if isinstance(frame, Start):
                runner.start(frame)
            elif isinstance(frame, Cancel):
                runner.cancel(frame)
            elif isinstance(frame, JobCluster):
                runner.job_cluster(frame)
            elif isinstance(frame, Load):
                send(_load(frame, runner))
            elif isinstance(frame, Join | Leave | Renew):
                if memberships is None:
                    memberships = member_process.make_memberships(places, send)
                memberships.handle(frame)
            elif isinstance(frame, Stop):
                return


def _load(load: Load, runner: Any) -> Loaded:
    """Import the services, in the main thread, where modules expect to be imported."""
    from dask_fleet.model.errors import FleetError
    from dask_fleet.services.loading import load_target, service_version

    versions: dict[str, str] = {}
    problems: dict[str, str] = {}
    endpoints: dict[tuple[str, str, str], Any] = {}
    for target in load.targets:
        try:
            for service in load_target(target):
                version = versions[service.name] = service_version(service)
                for name, endpoint in service.endpoints.items():
                    endpoints[service.name, version, name] = endpoint
        except FleetError as exc:
            problems[target] = exc.detail
        except BaseException as exc:  # noqa: BLE001 - importing a module runs its author's code
            problems[target] = f"{type(exc).__name__}: {exc}"
    runner.serve(endpoints)
    return Loaded(versions, problems)
