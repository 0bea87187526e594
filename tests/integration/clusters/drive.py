"""An agent with a scripted server that asks it for clusters."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import Client
from distributed.security import Security
from tests.integration.agent.conftest import Shared, shared_fleet
from tests.integration.agent.fake_server import FakeServer, until

from dask_fleet.protocol.cluster_frames import (
    CloseCluster,
    ClusterGone,
    ClusterOpened,
    GrantSlots,
    OpenCluster,
    Sign,
    Signed,
    SlotsJoined,
    SlotsLeft,
    TakeSlots,
)

F = TypeVar("F")
PATIENCE_S = 60.0


class Clusters:
    """What the server says about clusters, and what it hears."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self._numbers = itertools.count(1)

    def heard(self, kind: type[F], **fields: Any) -> list[F]:
        """Return the frames of a kind with these fields."""
        return [
            frame
            for frame in self.server.cluster_frames
            if isinstance(frame, kind) and all(getattr(frame, name) == value for name, value in fields.items())
        ]

    async def until(self, kind: type[F], *, count: int = 1, **fields: Any) -> F:
        """Wait for the `count`-th such frame."""
        await until(
            lambda: len(self.heard(kind, **fields)) >= count, what=f"{kind.__name__} {fields}", timeout_s=PATIENCE_S
        )
        return self.heard(kind, **fields)[count - 1]

    async def open(self, name: str = "", *, epoch: int = 1, wait: bool = True, **options: Any) -> str:
        cluster = name or f"c{next(self._numbers)}"
        await self.server.send(OpenCluster(cluster, epoch, "default", cluster, **options))
        if wait:
            await self.until(ClusterOpened, cluster=cluster, epoch=epoch)
        return cluster

    async def grant(
        self, cluster: str, *, epoch: int = 1, threads: int = 1, fresh: bool = True, wait: bool = True,
        tenant: str = "default", **options: Any,
    ) -> str:  # fmt: skip
        n = next(self._numbers)
        lease = f"l{n}"
        await self.server.send(GrantSlots(lease, cluster, epoch, tenant, str(n), threads, fresh, **options))
        if wait:
            await until(
                lambda: self.heard(SlotsJoined, lease=lease) or self.heard(SlotsLeft, lease=lease),
                what=f"{lease} joined", timeout_s=PATIENCE_S,
            )  # fmt: skip
            assert not self.heard(SlotsLeft, lease=lease), self.heard(SlotsLeft, lease=lease)
        return lease

    async def take(self, lease: str, *, grace_s: float = 10.0) -> SlotsLeft:
        await self.server.send(TakeSlots(lease, grace_s))
        return await self.until(SlotsLeft, lease=lease)

    async def close(self, cluster: str, *, epoch: int = 1) -> ClusterGone:
        await self.server.send(CloseCluster(cluster, epoch))
        return await self.until(ClusterGone, cluster=cluster, epoch=epoch)

    async def security(self, cluster: str, *, epoch: int = 1) -> Security:
        """Return what a client shows, its key made here."""
        key, csr = make_request()
        number = next(self._numbers)
        await self.server.send(Sign(number, cluster, epoch, "client", csr))
        signed = await self.until(Signed, request=number)
        assert signed.certificate, signed.why
        return Security(
            require_encryption=True,
            tls_ca_file=signed.ca.decode(),
            tls_client_cert=signed.certificate.decode(),
            tls_client_key=key,
        )

    async def client(self, cluster: str, *, epoch: int = 1) -> Client:
        """Return a client, to be used in ``async with``."""
        opened = (await self.until(ClusterOpened, cluster=cluster, epoch=epoch)).address
        return Client(opened, security=await self.security(cluster, epoch=epoch), asynchronous=True, set_as_default=False)


def make_request() -> tuple[str, bytes]:
    """Return a key and a request for its certificate, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a client")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return pem, request.public_bytes(serialization.Encoding.PEM)


def scratch(data_dir: Path) -> list[str]:
    """Names of the scratch folders there are."""
    folder = data_dir / "scratch"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


Play = Callable[[Callable[[Clusters], Awaitable[Any]]], Any]


def playing(data_dir: Path) -> Iterator[Play]:
    """For a fixture: gives what runs a scene with an agent of four slots."""
    for shared in shared_fleet(data_dir, nworkers=2, nthreads=2, spares=1):
        clusters = Clusters(shared.server)

        def play(
            scene: Callable[[Clusters], Awaitable[Any]], shared: Shared = shared, clusters: Clusters = clusters
        ) -> Any:
            return shared.do(lambda _: scene(clusters))

        yield play
