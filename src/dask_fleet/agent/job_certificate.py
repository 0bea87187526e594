"""The certificate by which a job is a client of its own cluster: asked for with the cluster, renewed while the job runs.

Open connections outlive their certificate, but a job opens new ones for as long as it runs: to workers that join, or when it
makes another client.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dask_fleet.agent.clusters.authority import expiry_us, request_certificate
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.security import MemberSecurity
from dask_fleet.model.renewal import Renewal
from dask_fleet.protocol.cluster_frames import JobCluster

log = logging.getLogger(__name__)

_LOOK_S = 600.0
"""Longest sleep between two looks at the clock: a host that was asleep must notice that time has passed."""


class JobCertificate:
    """Key, request and certificate of one attempt. `take` may be called from any thread.

    Parameters
    ----------
    ask
        Asks the fleet to sign the request; `take` gets the answer.
    """

    def __init__(self, member: str, ask: Callable[[bytes], None]) -> None:
        self._member = member
        self._request, self._key = request_certificate(member)
        self._ask = ask
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._securities: list[tuple[asyncio.AbstractEventLoop, MemberSecurity]] = []
        self._renewal = Renewal()

    def ask(self) -> None:
        """Ask for it, or for another one in its place."""
        self._ask(self._request)

    def take(self, answer: JobCluster) -> None:
        """It is signed: all clients show it from now on."""
        certificate = answer.certificate.decode()
        credentials = Credentials(answer.ca.decode(), certificate, self._key, expiry_us(certificate))
        with self._lock:
            self._credentials = credentials
            if not self._renewal.took(credentials.expires_us / 1e6, credentials.ca, time.time()):
                log.warning("%s: %s", self._member, self._renewal.complaint, extra={"action": "certificate_ends"})
            securities = self._securities = [(loop, each) for loop, each in self._securities if not loop.is_closed()]
        for loop, security in securities:
            with suppress(RuntimeError):  # closed in this moment: its clients are gone
                loop.call_soon_threadsafe(_renew, security, credentials)

    def security(self) -> MemberSecurity:
        """Return what a client on the running loop shows; renewed with the certificate. Only after `take`."""
        with self._lock:
            assert self._credentials is not None, "clients connect to a cluster that is there"
            security = MemberSecurity(self._credentials)
            self._securities.append((asyncio.get_running_loop(), security))
        return security

    async def keep(self) -> None:
        """Ask for another certificate half-way through each, until cancelled."""
        while True:
            with self._lock:
                now = time.time()
                left_s = self._renewal.due_s - now
                if left_s <= 0:
                    self._renewal.asked(now)
            if left_s <= 0:
                self.ask()
            else:
                await asyncio.sleep(min(_LOOK_S, left_s))


def _renew(security: MemberSecurity, credentials: Credentials) -> None:
    if credentials.ca == security.credentials.ca:  # of another scheduler of the cluster, to which no client of ours connects
        security.renew(credentials)
