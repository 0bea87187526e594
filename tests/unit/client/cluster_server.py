"""A stand-in for the server's clusters: real Dask schedulers and workers under mutual TLS, in a process of their own."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import multiprocessing
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "fleet_" + "x" * 43
DEADLINE_S = 30.0
PLAN: dict[str, Any] = {
    "hold": False, "workers": True, "lifetime_s": 86_400.0, "ends": 1e12, "versions": {}, "refuse": None,
    "refuse_scaling": None,
}  # fmt: skip


class Authority:
    """Signs for one epoch of a cluster."""

    def __init__(self) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        self._x509, self._hashes, self._serialization, self._ec = x509, hashes, serialization, ec
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
        self.ca = self._certificate(self._key.public_key(), self._name, 86_400, ca=True)

    def sign(self, csr: bytes, lifetime_s: float) -> str:
        request = self._x509.load_pem_x509_csr(csr)
        assert request.is_signature_valid
        return self._certificate(request.public_key(), request.subject, lifetime_s)

    def own(self) -> tuple[str, str]:
        key = self._ec.generate_private_key(self._ec.SECP256R1())
        pem = key.private_bytes(
            self._serialization.Encoding.PEM,
            self._serialization.PrivateFormat.PKCS8,
            self._serialization.NoEncryption(),
        )
        subject = self._x509.Name([])
        return self._certificate(key.public_key(), subject, 86_400), pem.decode()

    def _certificate(self, key: Any, subject: Any, lifetime_s: float, *, ca: bool = False) -> str:
        now = dt.datetime.now(dt.UTC)
        made = (
            self._x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(self._x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + dt.timedelta(seconds=lifetime_s))
            .add_extension(self._x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            # As in a real one: the next authority has the same name, and only this tells them apart.
            .add_extension(self._x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                self._x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, self._hashes.SHA256())
        )
        return made.public_bytes(self._serialization.Encoding.PEM).decode()


class _Dask:
    """Scheduler and workers of one epoch, on the process's loop."""

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.workers: list[Any] = []
        self.names = 0

    async def open(self, security: Any) -> None:
        from distributed import Scheduler

        self.security = security
        self.scheduler = await Scheduler(
            protocol="tls", host="127.0.0.1", security=security, dashboard=False, dashboard_address="127.0.0.1:0"
        )

    async def scale(self, n: int) -> None:
        from distributed import Worker

        while len(self.workers) < n:
            self.names += 1
            worker = Worker(
                self.scheduler.address, name=str(self.names), nthreads=1, security=self.security, host="127.0.0.1",
                protocol="tls", dashboard=False, memory_limit=1 << 30,
            )  # fmt: skip
            self.workers.append(await worker)
        while len(self.workers) > n:
            worker = self.workers.pop()
            await self.scheduler.retire_workers(workers=[worker.address], close_workers=False, remove=True)
            await worker.close()

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()
        await self.scheduler.close()


class Clusters:
    """All state of the stand-in; its handler's threads ask it under one lock."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.known: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.dask: dict[str, _Dask] = {}
        self.authorities: dict[str, Authority] = {}
        self.requests: list[str] = []
        self.plan: dict[str, Any] = dict(PLAN)

    def on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    # ------------------------------------------------------------------ what tests say

    def set(self, **plan: Any) -> None:
        with self.changed:
            self.plan.update(plan)
            if not self.plan["hold"]:
                for cluster_id, document in self.known.items():
                    if document["status"] == "pending":
                        self.open(cluster_id)
            self.changed.notify_all()

    def replace(self, name: str, *, pending: bool = False) -> None:
        """Kill the scheduler, and start another one unless that is `pending`."""
        with self.changed:
            cluster_id = self.find(name)
            document = self.known[cluster_id]
            document.update(status="pending", address=None, reason="SIGKILL", waiting_for="a scheduler")
            self.on_loop(self.dask.pop(cluster_id).close())
            if not pending:
                self.open(cluster_id)
            self.changed.notify_all()

    def end(self, name: str, reason: str) -> None:
        with self.changed:
            cluster_id = self.find(name)
            self.close(cluster_id, reason)

    def state(self) -> dict[str, Any]:
        with self.lock:
            return {
                "clusters": {known["name"]: dict(known) for known in self.known.values()},
                "requests": list(self.requests),
            }

    # ------------------------------------------------------------------ what clients say

    def create(self, body: dict[str, Any], key: str) -> str:
        with self.changed:
            if self.plan["refuse"] is not None:
                raise Refused(*self.plan["refuse"])
            if key in self.keys:
                return self.keys[key]
            cluster_id = self.keys[key] = f"c-{len(self.known)}"
            name = body.get("name") or cluster_id
            if any(known["name"] == name and known["status"] != "closed" for known in self.known.values()):
                del self.keys[key]
                raise Refused(409, "conflict", f"a cluster {name!r} runs already")
            self.known[cluster_id] = {
                "cluster_id": cluster_id, "name": name, "status": "pending", "epoch": 0, "address": None, "dashboard": None,
                "ca": None, "n_workers": body["n_workers"], "workers": 0, "waiting_for": "free slots in the pool 'default'",
                "threads_per_worker": body.get("threads_per_worker", 1), "memory_limit": body.get("memory_limit"),
                "resources": {}, "reason": None, "body": body,
            }  # fmt: skip
            if not self.plan["hold"]:
                self.open(cluster_id)
            return cluster_id

    def open(self, cluster_id: str) -> None:
        from distributed.security import Security

        document, dask = self.known[cluster_id], _Dask()
        authority = self.authorities[cluster_id] = Authority()
        certificate, key = authority.own()
        fields = {f"tls_{role}_{part}": value for role in ("client", "scheduler", "worker")
                  for part, value in (("cert", certificate), ("key", key))}  # fmt: skip
        security = Security(
            require_encryption=True, tls_min_version=ssl.TLSVersion.TLSv1_3, tls_ca_file=authority.ca, **fields
        )
        self.on_loop(dask.open(security))
        self.dask[cluster_id] = dask
        document.update(
            status="running", epoch=document["epoch"] + 1, address=dask.scheduler.address, ca=authority.ca, waiting_for=None
        )
        self.give(cluster_id)
        self.changed.notify_all()

    def give(self, cluster_id: str) -> None:
        document = self.known[cluster_id]
        if self.plan["workers"]:
            self.on_loop(self.dask[cluster_id].scale(document["n_workers"]))
            document.update(workers=document["n_workers"], joining=0, waiting_for=None)
        elif document["n_workers"] > document["workers"]:
            document["waiting_for"] = "free slots in the pool 'default'"

    def close(self, cluster_id: str, reason: str) -> None:
        with self.changed:
            document = self.known[cluster_id]
            if document["status"] != "closed":
                document.update(status="closed", reason=reason, address=None)
                if cluster_id in self.dask:
                    self.on_loop(self.dask.pop(cluster_id).close())
            self.changed.notify_all()

    def sign(self, cluster_id: str, csr: str) -> str:
        with self.lock:
            if self.known[cluster_id]["status"] != "running":
                raise Refused(409, "conflict", "the cluster does not run")
            lifetime_s = min(self.plan["lifetime_s"], self.plan["ends"] - time.time())
            return self.authorities[cluster_id].sign(csr.encode(), lifetime_s)

    def wait(self, cluster_id: str, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.known[cluster_id]["status"] != "pending", seconds)

    def find(self, name: str) -> str:
        for cluster_id, known in self.known.items():
            if name == cluster_id or (name == known["name"] and known["status"] != "closed"):
                return cluster_id
        raise Refused(404, "not_found", "no such cluster")


class Refused(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    clusters: Clusters

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path, _, query = self.path.partition("?")
        self.clusters.requests.append(f"{self.command} {self.path}")
        try:
            assert self.headers["Authorization"] == f"Bearer {TOKEN}"
            status, document = self._answer(path, query, body)
        except Refused as exc:
            status, code, detail = exc.args
            document = {"status": status, "code": code, "detail": detail, "title": code}
        data = json.dumps(document).encode()
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _answer(self, path: str, query: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        clusters, parts = self.clusters, path.removeprefix("/v1/clusters").strip("/").split("/")
        if self.command == "POST" and parts == [""]:
            cluster_id = clusters.create(body, self.headers["Idempotency-Key"])
            clusters.wait(cluster_id, float((self.headers.get("Prefer") or "wait=0").removeprefix("wait=")))
            document = dict(clusters.known[cluster_id])
            if document["status"] == "running" and "csr" in body:
                document |= {"certificate": clusters.sign(cluster_id, body["csr"]), "versions": clusters.plan["versions"]}
            return (201 if document["status"] == "running" else 202), document
        if parts == [""]:
            return 200, {"clusters": [dict(known) for known in reversed(clusters.known.values())]}
        cluster_id = clusters.find(parts[0])
        if parts[1:] == ["events"]:
            return 200, {"events": [{"at": "now", "epoch": 1, "kind": "opened", "data": {"agent": "a"}}]}
        if parts[1:] == ["certificate"]:
            certificate = clusters.sign(cluster_id, body["csr"])
            return 200, {**clusters.known[cluster_id], "certificate": certificate, "versions": clusters.plan["versions"]}
        if self.command == "DELETE":
            clusters.close(cluster_id, "closed by ann")
        elif self.command == "PATCH":
            with clusters.changed:
                if clusters.plan["refuse_scaling"] is not None:
                    raise Refused(*clusters.plan["refuse_scaling"])
                clusters.known[cluster_id]["n_workers"] = body["n_workers"]
                clusters.give(cluster_id)
        elif query.startswith("wait="):
            clusters.wait(cluster_id, float(query.removeprefix("wait=").removesuffix("&workers=true")))
        return 200, dict(clusters.known[cluster_id])


def _main(pipe: Any) -> None:
    import distributed  # noqa: F401 - it sets its loggers up when it is imported

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    clusters = Clusters(loop)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"clusters": clusters}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(f"http://127.0.0.1:{server.server_port}")
    while True:
        try:
            name, args, options = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(clusters, name)(*args, **options))


class Remote:
    """The stand-in, as tests use it."""

    def __init__(self, pipe: Any, url: str) -> None:
        self._pipe = pipe
        self.url = url

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self._pipe.send((name, args, options))
            assert self._pipe.poll(60), f"the stand-in does not answer {name}"
            return self._pipe.recv()

        return call

    @property
    def options(self) -> dict[str, Any]:
        return {"url": self.url, "token": TOKEN}


@contextmanager
def standing_in() -> Iterator[Remote]:
    """Run the stand-in."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_main, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(60)
        yield Remote(ours, ours.recv())
    finally:
        ours.close()
        process.kill()
        process.join(10)
        process.close()


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return found


def status_of(server: Remote, name: str) -> Any:
    return server.state()["clusters"][name]["status"]
