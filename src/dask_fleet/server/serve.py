"""``dask-fleet serve``: starts everything in order, keeps it, and takes it down in order."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import uvicorn
import uvloop

from dask_fleet.config.settings import Settings
from dask_fleet.config.threads import have_threads
from dask_fleet.controller.controller import Controller
from dask_fleet.model.errors import SetupError
from dask_fleet.model.logs import LOG_FOLDER
from dask_fleet.plugins.backend import Backend
from dask_fleet.plugins.clock import Clock, SystemClock
from dask_fleet.plugins.ledger import Ledger
from dask_fleet.plugins.registry import load
from dask_fleet.plugins.result_store import ResultStore
from dask_fleet.protocol.frames import MAX_MESSAGE_BYTES
from dask_fleet.server.admission import Admission, room_for_connections
from dask_fleet.server.agent_keeper import kept_alive
from dask_fleet.server.app import FleetApp
from dask_fleet.server.auth import Principal, TokenAuthenticator, effective_scopes
from dask_fleet.server.banner import banner
from dask_fleet.server.body import LARGE_BODIES
from dask_fleet.server.edge import Edge
from dask_fleet.server.hosts import HostCheck
from dask_fleet.server.http_protocol import FleetHTTPProtocol
from dask_fleet.server.lifeline import ended_with
from dask_fleet.server.listening import Announcement, cluster_host, listen, local_url, public_url, refuse_open_bind
from dask_fleet.server.live import LiveRequests
from dask_fleet.server.routes import all_routes
from dask_fleet.server.routes_spool import clear_drafts
from dask_fleet.server.signin import SignIn
from dask_fleet.server.tls import TLS, kept_fresh, make_tls
from dask_fleet.server.tls_listener import Handshake, SecuredHTTPProtocol, TLSListener
from dask_fleet.server.tokens import OPERATOR, TOKEN_FILE, TokenBook, ensure_tokens
from dask_fleet.server.websocket_protocol import FleetWebSocketProtocol
from dask_fleet.services.loader import load_manifest

log = logging.getLogger(__name__)

LEDGER_FILE = "ledger.db"

_AGENT_STOP_S = 10.0
BACKLOG = 2048
_GC_THRESHOLD = 20_000
"""New objects between two collections, instead of 700: a call makes some dozens, hardly any in a cycle."""
_GIL_SWITCH_S = 0.0005
"""The event loop and the ledger's commit thread hand the GIL to each other for every commit; the default of 5 ms would
let one wait for the other longer than a whole call takes."""


def run(settings: Settings, targets: list[str], *, parent: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT, or until the process `parent` has ended; return the exit code.

    Raises
    ------
    SetupError
        If it cannot start; nothing is left running.
    """
    sys.setswitchinterval(_GIL_SWITCH_S)
    # What was imported lives as long as the process: the collector need not look at it again, nor so often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        have_threads(runner.get_loop())
        try:
            return runner.run(_serve(settings, targets, parent))
        except asyncio.CancelledError:
            return 128 + signal.SIGTERM  # told to end before it was ready: all that was started has been taken down


async def _serve(settings: Settings, targets: list[str], parent: int | None) -> int:
    refuse_open_bind(settings.host, secure=settings.tls == "auto" or settings.tls_cert is not None)
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # until there is something to drain
    data_dir = prepare_data_dir(settings.data_dir)
    clock: Clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(ended_with(parent, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        ledger: Ledger = _make_ledger(settings.ledger, data_dir, clock)
        await ledger.open()  # the one owner of the folder from here on
        stack.push_async_callback(ledger.close)
        results: ResultStore = _make_results(settings.result_store, data_dir)
        await results.open()
        stack.push_async_callback(results.close)
        records = await ensure_tokens(ledger, data_dir, clock=clock)

        tls = make_tls(settings, data_dir)
        listener = stack.enter_context(listen(settings.host, settings.port))
        port = listener.getsockname()[1]
        announcement = stack.enter_context(
            Announcement(data_dir, local_url(settings.host, port, secure=tls is not None), tls)
        )
        backend: Backend | None = None
        if settings.agent:
            # Started before the service is loaded: both import the same heavy libraries, side by side.
            backend = load("backend", "local")(
                data_dir=data_dir,
                nworkers=settings.nworkers,
                nthreads=settings.nthreads,
                memory_limit=settings.memory_limit,
                spares=settings.spare_schedulers,
                resources=settings.resources,
                scheduler_memory_limit=settings.scheduler_memory_limit,
                certificate_lifetime_s=settings.certificate_lifetime_s,
                cluster_host=settings.cluster_host or cluster_host(settings.host),
                orphan_timeout_s=settings.orphan_timeout_s,
            )
            await backend.start()
            stack.push_async_callback(backend.stop, timeout_s=_AGENT_STOP_S)
        manifest = await load_manifest([absolute_target(target) for target in targets])

        controller = Controller(
            ledger=ledger,
            results=results,
            manifest=manifest,
            spool=data_dir / "spool",
            max_queued=settings.max_queued,
            max_clusters_per_user=settings.max_clusters_per_user,
            max_cluster_workers=settings.max_cluster_workers,
            job_share=settings.job_share if manifest.services else 0.0,
            spare_clusters=settings.spare_clusters,
            row_retention_s=settings.row_retention_s,
            logs_max_bytes=settings.logs_max_bytes,
            clock=clock,
        )
        await controller.start()
        stack.push_async_callback(controller.close)

        tokens = TokenAuthenticator(clock)
        tokens.load(records)
        live = LiveRequests()
        book = TokenBook(ledger, tokens, live)
        sign_in = SignIn(clock, is_valid=tokens.is_valid)
        edge = Edge(Admission(max_connections=room_for_connections(), max_per_peer=settings.max_connections_per_peer))
        hosts = HostCheck((*settings.allowed_hosts, *answered_names(settings.host, tls)))
        app = FleetApp(
            controller,
            routes=all_routes(
                controller,
                sign_in=sign_in,
                tokens=book,
                needs_agent=settings.agent,
                spool=data_dir / "spool",
                figures=lambda: {
                    **edge.figures(),
                    **LARGE_BODIES.figures(),
                    "tokens_refused_total": dict(tokens.refused),
                },
            ),
            tokens=tokens,
            sign_in=sign_in,
            hosts=hosts,
            live=live,
        )
        await stack.enter_async_context(_kept_current(book))
        if backend is not None:
            await stack.enter_async_context(kept_alive(backend, controller))
        operator = next(record for record in records if record.token_id == OPERATOR)
        code = sign_in.new_code(
            Principal(
                user=operator.user,
                tenant=operator.tenant,
                scopes=effective_scopes(operator.scopes),
                token_id=operator.token_id,
            )
        )
        text = banner(
            manifest,
            url=public_url(settings.host, port, tls),
            signin_code=code,
            token_file=_shown(data_dir / TOKEN_FILE),
            fingerprint=None if tls is None else tls.fingerprint,
            certificate=_shown(tls.certificate) if tls is not None and tls.own else None,
        )

        def on_new_certificate() -> None:
            announcement.write()  # a small local file
            hosts.allow(answered_names(settings.host, tls))

        await stack.enter_async_context(kept_fresh(tls, on_new_certificate))
        await stack.enter_async_context(edge.watching())
        return await _run_uvicorn(
            app, controller, listener, text, edge=edge, tls=tls, drain_timeout_s=settings.drain_timeout_s
        )


# ---------------------------------------------------------------------- before


def prepare_data_dir(path: Path) -> Path:
    """Make the data folder, for its owner only; return its absolute path.

    Raises
    ------
    SetupError
        If it cannot be made or written.
    """
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("spool", LOG_FOLDER):
            (path / name).mkdir(mode=0o700, exist_ok=True)
        clear_drafts(path / "spool")
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as exc:
        raise SetupError(f"cannot use the data folder {path}: {exc.strerror}; choose another with --data-dir") from exc
    return path


def absolute_target(target: str) -> str:
    """Return a service's target as the agent can find it too: files by absolute path, modules by name."""
    path = Path(target).expanduser()
    return str(path.absolute()) if target.endswith(".py") or path.exists() else target


def answered_names(host: str, tls: TLS | None) -> tuple[str, ...]:
    """Return the names that TLS adds to those for which the server answers: its address and what the certificate is for."""
    if tls is None:
        return ()
    return tuple(f"[{name}]" if ":" in name else name for name in (host, *tls.names) if name)


def _make_ledger(name: str, data_dir: Path, clock: Clock) -> Ledger:
    cls = load("ledger", name)
    ledger: Ledger = cls(clock=clock) if name == "memory" else cls(data_dir / LEDGER_FILE, clock=clock)
    return ledger


def _make_results(name: str, data_dir: Path) -> ResultStore:
    cls = load("result_store", name)
    store: ResultStore = cls() if name == "memory" else cls(data_dir / "results", data_dir / "spool")
    return store


def _shown(path: Path) -> Path:
    """Return a path as short as it can be typed from here."""
    with contextlib.suppress(ValueError):
        return path.relative_to(Path.cwd())
    return path


# ---------------------------------------------------------------------- while


@contextlib.asynccontextmanager
async def _kept_current(book: TokenBook) -> AsyncIterator[None]:
    """Let tokens end when their time has come, with all that they have opened."""
    task = asyncio.create_task(book.keep(), name="token-keeper")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Uvicorn(uvicorn.Server):
    """uvicorn, without its signal handling (ours drains first) and with an event for having started."""

    def __init__(self, config: uvicorn.Config, edge: Edge) -> None:
        super().__init__(config)
        self._edge = edge
        self.is_serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve. Unlike uvicorn's, with TLS handshakes that are counted and have a deadline."""
        await self.lifespan.startup()
        loop = asyncio.get_running_loop()
        tls = self.config.ssl
        if tls is None:
            make = functools.partial(FleetHTTPProtocol, self.config, self.server_state, {}, edge=self._edge)
            self.servers = [await loop.create_server(make, sock=sock, backlog=BACKLOG) for sock in sockets or ()]
        else:

            def secured(handshake: Handshake) -> FleetHTTPProtocol:
                return SecuredHTTPProtocol(self.config, self.server_state, {}, edge=self._edge, handshake=handshake)

            listeners = [TLSListener(sock, tls, secured, self._edge) for sock in sockets or ()]
            self.servers = cast("list[asyncio.Server]", listeners)
        self.started = True
        self.is_serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _run_uvicorn(
    app: FleetApp,
    controller: Controller,
    listener: socket.socket,
    text: str,
    *,
    edge: Edge,
    tls: TLS | None,
    drain_timeout_s: float,
) -> int:
    config = uvicorn.Config(
        app,
        http=FleetHTTPProtocol,
        ws=FleetWebSocketProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # agents send heartbeats
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    config.ssl = None if tls is None else tls.context  # ours, because it takes new certificates while it is in use
    server = _Uvicorn(config, edge)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            log.info("stopping: waiting for running jobs (again to stop at once)", extra={"action": "stopping"})
            stop.set()
        else:
            server.should_exit = True
            server.force_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    async def drain_then_exit() -> None:
        await stop.wait()
        await controller.drain(drain_timeout_s)
        controller.shut_agents_down(drain_s=0.0)
        controller.dismiss_waiters()
        server.should_exit = True

    drainer = asyncio.create_task(drain_then_exit(), name="drainer")
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve(sockets=[listener]), name="uvicorn")
            await server.is_serving.wait()
            print(text, flush=True)  # noqa: T201 - the one thing that serve says on standard output
    finally:
        drainer.cancel()
        await asyncio.gather(drainer, return_exceptions=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return 0
