"""P8, first half: closed by default. Nothing listens beyond this machine, no page but the health words needs no token."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.routing import Route
from tests.promises.form import Record, Serve
from tests.unit.server.rig import Rig

from dask_fleet.server.agents import AGENTS_PATH
from dask_fleet.server.routes import all_routes
from dask_fleet.testing.served import ServedFleet

pytestmark = pytest.mark.promise

OPEN = {"/healthz", "/readyz"}
"""Pages that answer anybody; ``/signin`` answers who has a code that works once."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
COMMAND = str(Path(sys.executable).with_name("dask-fleet"))
LISTEN = "0A"
JOB_ID = "a" * 32


@dataclass(frozen=True)
class Verdict:
    """What a fleet shows to those whom it does not know."""

    listeners: int
    outside: list[str]
    """Addresses that something of the fleet listens on, other than loopback ones."""
    asked: int
    answered: list[str]
    """Pages that answered without a token."""


def listeners(pids: list[int]) -> list[tuple[str, int]]:
    """Return addresses and ports that processes listen on, TCP and UDP, as the kernel lists them."""
    inodes: set[str] = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
            except OSError:  # closed meanwhile
                continue
            if found:
                inodes.add(found[1])
    listening = []
    for name in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pids[0]}/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            # A UDP socket that is connected to nobody takes datagrams of everybody.
            is_open = fields[3] == LISTEN if name.startswith("tcp") else fields[2].endswith(":0000")
            if is_open and fields[9] in inodes:
                address, port = fields[1].split(":")
                listening.append((_address(address), int(port, 16)))
    return listening


def _address(text: str) -> str:
    """Read an address of ``/proc/net``: groups of 32 bits, each in the machine's byte order."""
    words = [bytes.fromhex(text[at : at + 8]) for at in range(0, len(text), 8)]
    raw = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    address = ipaddress.ip_address(raw)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)


def routes() -> set[str]:
    """Return the paths of the application itself, not of its description: a page that nobody described counts too."""
    found: set[str] = set()

    async def main() -> None:
        async with Rig() as rig:
            table = all_routes(rig.controller, sign_in=rig.sign_in, tokens=rig.book, needs_agent=True, spool=Path("spool"))
            found.update(route.path for route in table if isinstance(route, Route))

    asyncio.run(main())
    return found


def judge(fleet: ServedFleet) -> Verdict:
    with fleet:
        assert fleet.post("tiny/double", {"n": 2}, wait=20).json()["result"] == 4
        pids = [process.pid for process in fleet.processes()]
        assert len(pids) >= 4  # server, agent, forkserver, a worker
        open_ports = listeners(pids)
        outside = sorted(
            {f"{address}:{port}" for address, port in open_ports if not ipaddress.ip_address(address).is_loopback}
        )
        pages = routes() | {"/v1/tiny/double", "/v1/tiny/double:batch", AGENTS_PATH, "/nothing", "/v1/", "//", "/static/x"}
        answered, asked = [], 0
        for page in sorted(pages):
            path = re.sub(r"\{(job_id|token_id|name)[^}]*\}", JOB_ID, page)
            for method in METHODS:
                with fleet.connect(token="") as connection:
                    connection._token = None
                    status = connection.request(method, path).status
                asked += 1
                tells_methods = (method, page, status) == ("OPTIONS", "/signin", 204)  # and nothing else
                if status not in {401, 405} and page not in OPEN and not tells_methods:
                    answered.append(f"{method} {page}: {status}")
                if page in OPEN and method in {"GET", "HEAD"}:
                    assert status == 200
        assert pages >= OPEN
    return Verdict(listeners=len(open_ports), outside=outside, asked=asked, answered=answered)


def test_the_default_start_is_closed(serve: Serve, record_property: Record) -> None:
    verdict = judge(serve(args=()))
    record_property("figures", str(verdict))
    assert verdict.outside == []
    assert verdict.answered == []
    assert verdict.listeners >= 1, "the checker did not even see the server itself"


@pytest.mark.parametrize("twin", ["open-page", "dask-client"])
def test_the_checker_notices_an_open_fleet(serve: Serve, twin: str, record_property: Record) -> None:
    verdict = judge(serve(twin=twin, args=()))
    record_property("figures", str(verdict))
    assert verdict.answered if twin == "open-page" else verdict.outside


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "fleet.example"])
def test_another_address_is_refused_without_tls(host: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "serve", str(Path(__file__).with_name("service_tiny.py")), "--host", host, "--port", "0"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("FLEET_")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 78, done.stderr
    assert "TLS" in done.stderr
    assert not (tmp_path / ".fleet").exists()
