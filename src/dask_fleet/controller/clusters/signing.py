"""Certificates for members of a cluster: asked of the agent that runs its scheduler and has its authority."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

from dask_fleet.controller.agents import Agents
from dask_fleet.controller.alarms import Alarms
from dask_fleet.controller.clusters.book import Book, Entry
from dask_fleet.model.cluster_states import ClusterState
from dask_fleet.model.errors import AgentUnreachable, BadRequest, Conflict, FleetError
from dask_fleet.protocol.cluster_frames import Sign, Signature, Signed, WantSignature

SIGN_S = 10.0
"""How long the agent has to sign. It takes a millisecond; but the agent may be swapped out, or gone."""
SIGNED_KEPT_S = 60.0
"""How long a certificate that was signed ahead waits for who asked for it."""


class Signer:
    """Asks agents for signatures."""

    def __init__(self, agents: Agents, book: Book) -> None:
        self._agents = agents
        self._book = book
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Signed]] = {}

    async def sign(self, entry: Entry, csr: bytes, *, role: str) -> tuple[bytes, bytes]:
        """Return a certificate for the request, and the cluster's authority (PEM both).

        Raises
        ------
        Conflict
            If the cluster does not run.
        AgentUnreachable
            If its agent does not answer.
        BadRequest
            If it refuses the request.
        """
        record = entry.record
        if record.state is not ClusterState.RUNNING or record.agent is None:
            raise Conflict(
                f"the cluster {record.name!r} is {record.state}: wait until it runs, then ask again",
                cluster_state=str(record.state),
            )
        handle = self._agents.get(record.agent)
        number = next(self._numbers)
        frame = Sign(request=number, cluster=record.cluster_id, epoch=record.epoch, role=role, csr=csr)
        answer: asyncio.Future[Signed] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if handle is None or not handle.send(frame):
                raise AgentUnreachable(
                    f"the agent of the cluster {record.name!r} is not connected now; the cluster goes on, ask again",
                    retry_after_s=2,
                )
            async with asyncio.timeout(SIGN_S):
                signed = await answer
        except TimeoutError:
            raise AgentUnreachable(
                f"the agent of the cluster {record.name!r} did not answer within {SIGN_S:.0f} s; ask again", retry_after_s=2
            ) from None
        finally:
            del self._waiting[number]
        if not signed.certificate:
            raise BadRequest(f"the certificate request was refused: {signed.why or 'no reason given'}")
        return signed.certificate, signed.ca

    def signed(self, frame: Signed) -> None:
        """An agent has answered."""
        answer = self._waiting.get(frame.request)
        if answer is not None and not answer.done():
            answer.set_result(frame)

    async def sign_for_agent(self, agent: str, frame: WantSignature) -> None:
        """Let the agent of the scheduler sign for a worker on another agent.

        If that fails, nothing is answered: the slots are granted anew after a while, and the worker asks again.
        """
        found = self._book.find(frame.lease)
        if found is None or found[1].lease.agent != agent:
            return
        try:
            certificate, ca = await self.sign(found[0], frame.csr, role="worker")
        except (Conflict, AgentUnreachable, BadRequest):
            return
        handle = self._agents.get(agent)
        if handle is not None:
            handle.send(Signature(frame.lease, certificate, ca))


class SignedAhead:
    """Certificates of clients that asked for a cluster: signed as soon as it runs, before they ask for them."""

    def __init__(self, signer: Signer, alarms: Alarms) -> None:
        self._signer = signer
        self._alarms = alarms
        self._signing: dict[tuple[str, bytes], asyncio.Task[tuple[bytes, bytes]]] = {}

    def begin(self, entry: Entry) -> None:
        """Sign what the cluster's entry has of its client, if anything."""
        csr, entry.csr = entry.csr, None
        if csr is not None:
            key = (entry.record.cluster_id, csr)
            task = asyncio.create_task(self._signer.sign(entry, csr, role="client"), name=f"sign-{key[0]}")
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # whoever asks hears of it
            self._signing[key] = task
            self._alarms.after(SIGNED_KEPT_S, partial(self._forget, key))

    async def take(self, entry: Entry, csr: bytes) -> tuple[bytes, bytes] | None:
        """Return what `Signer.sign` gave for this request; ``None`` if it was not signed ahead."""
        ahead = self._signing.pop((entry.record.cluster_id, csr), None)
        if ahead is None:
            return None
        try:
            return await asyncio.shield(ahead)
        except FleetError:
            return None  # it was asked too early, or of another scheduler

    def _forget(self, key: tuple[str, bytes]) -> None:
        self._signing.pop(key, None)
