"""What an agent and a worker process say to each other: of attempts and of memberships in clusters."""

from __future__ import annotations

import msgspec

from dask_fleet.agent.clusters.frames import AgentBoundFromMembership, MembershipBound
from dask_fleet.protocol.frames import AgentBound, WorkerBound

FromWorker = AgentBound | AgentBoundFromMembership
ForWorker = WorkerBound | MembershipBound

decode_from_worker = msgspec.msgpack.Decoder(FromWorker).decode
decode_for_worker = msgspec.msgpack.Decoder(ForWorker).decode
