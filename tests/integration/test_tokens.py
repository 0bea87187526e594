"""Tokens of a real fleet: whatever an ended one has open ends within five seconds."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.integration.core_fleet import CoreFleet

from dask_fleet.testing.fake_agent import FakeAgent

EFFECTIVE_S = 5.0
COMMAND = str(Path(sys.executable).with_name("dask-fleet"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreFleet]:
    with CoreFleet(tmp_path_factory.mktemp("tokens")) as fleet:
        yield fleet


def cli(fleet: CoreFleet, *args: str) -> str:
    done = subprocess.run(
        [COMMAND, "tokens", *args, "--url", fleet.url],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("FLEET_")},
            "FLEET_TOKEN_FILE": str(fleet.data_dir / "token"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def test_the_command_line_makes_lists_and_revokes(fleet: CoreFleet) -> None:
    token = cli(fleet, "create", "--user", "ana", "--scope", "submit,read", "--expires", "30d").strip()
    assert fleet.post("core/quick", {"name": "tokens"}, token=token, wait=20).json()["user"] == "ana"
    (listed,) = [one for one in json.loads(cli(fleet, "list", "--json")) if one["user"] == "ana"]
    assert (listed["scopes"], listed["revoked_at"]) == (["read", "submit"], None)
    assert token not in cli(fleet, "list", "--all")
    assert listed["token_id"] in cli(fleet, "list")
    assert "revoked" in cli(fleet, "revoke", listed["token_id"])
    assert fleet.request("GET", "/v1/jobs", token=token).status == 401
    assert listed["token_id"] not in cli(fleet, "list")


@pytest.mark.parametrize("how", ["revoked", "expired", "revoked in the ledger by another process"])
def test_all_that_is_open_ends_in_time(fleet: CoreFleet, how: str, record_property: Any) -> None:
    made = create(fleet, ["submit", "read", "agent"], expires=4 if how == "expired" else "1h")
    token, born = made["token"], time.monotonic()
    job_id = fleet.post("core/gated", {"name": f"tokens-{how}"}).json()["job_id"]
    times: dict[str, float] = {}
    cookie = signed_in(fleet, token)
    opened = threading.Barrier(5)

    def note(name: str) -> None:
        times[name] = time.monotonic()

    def stream(name: str, **headers: str) -> None:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", fleet._port, timeout=40)) as connection:
            connection.request("GET", f"/v1/jobs/{job_id}/events", headers=headers)
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read1()
            opened.wait(30)
            answer.read()
        note(name)

    def poll() -> None:
        opened.wait(30)
        assert fleet.request("GET", f"/v1/jobs/{job_id}?wait=60", token=token).status == 401
        note("long poll")

    def agent() -> None:
        async def stay() -> None:
            async with FakeAgent(fleet.url, token, agent="foreign-a", name="foreign") as fake:
                await asyncio.to_thread(opened.wait, 30)
                assert fake._socket is not None
                await asyncio.wait_for(fake._socket.wait_closed(), 40)
                assert fake._socket.close_code == 1008
                note("agent")

        asyncio.run(stay())

    threads = [
        threading.Thread(target=stream, args=("event stream",), kwargs={"Authorization": f"Bearer {token}"}, daemon=True),
        threading.Thread(target=stream, args=("session's stream",), kwargs={"Cookie": cookie}, daemon=True),
        threading.Thread(target=poll, daemon=True),
        threading.Thread(target=agent, daemon=True),
    ]
    for thread in threads:
        thread.start()
    opened.wait(30)
    if how == "revoked":
        fleet.request("DELETE", f"/v1/tokens/{made['token_id']}")
        ended = time.monotonic()
    elif how == "expired":
        ended = born + 4
    else:
        with contextlib.closing(apsw.Connection(str(fleet.data_dir / "ledger.db"))) as ledger:
            ledger.set_busy_timeout(10_000)
            ledger.execute("UPDATE tokens SET revoked_us = 1 WHERE token_id = ?", (made["token_id"],))
        ended = time.monotonic()
    for thread in threads:
        thread.join(40)
    assert set(times) == {"event stream", "session's stream", "long poll", "agent"}
    after = {name: round(at - ended, 2) for name, at in times.items()}
    record_property("figures", f"{how}: {after}")
    assert max(after.values()) < EFFECTIVE_S, after
    assert fleet.request("GET", "/v1/jobs", token=token).status == 401
    assert fleet.request("GET", "/v1/jobs", token=fleet.token, headers={"Authorization": ""}).status == 401
    # Others were not disturbed.
    fleet.open_gate(f"tokens-{how}")
    assert fleet.ended(job_id)["status"] == "succeeded"


def create(fleet: CoreFleet, scopes: list[str], **rest: Any) -> dict[str, Any]:
    answer = fleet.request("POST", "/v1/tokens", {"user": "eve", "scopes": scopes, **rest})
    assert answer.status == 201, answer.body
    found: dict[str, Any] = answer.json()
    return found


def signed_in(fleet: CoreFleet, token: str) -> str:
    """Return the cookie of a browser that signed in with `token`."""
    link = fleet.request("POST", "/v1/signin", token=token).json()["url"]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", fleet._port, timeout=20)) as connection:
        connection.request("GET", link.removeprefix(fleet.url))
        answer = connection.getresponse()
        answer.read()
    return (answer.getheader("Set-Cookie") or "").partition(";")[0]
