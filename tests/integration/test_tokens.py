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
from tests.alive import shown
from tests.integration.core_fleet import CoreFleet
from tests.integration.remote_agent import connected, remote_agent

from dask_fleet.agent.orphans import MARK
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


PLANTED = [
    ("query", "GET", "/v1/jobs?token={token}", None, {}),
    ("query, unnamed", "GET", "/v1/jobs?{token}", None, {}),
    ("query, escaped", "GET", "/v1/jobs?x=%66leet_{rest}", None, {}),
    ("query of a call", "POST", "/v1/core/quick?access_token={token}", {"name": "x"}, {}),
    ("path", "GET", "/v1/jobs/{token}", None, {}),
    ("endpoint", "POST", "/v1/core/{token}", {}, {}),
    ("unknown parameter", "POST", "/v1/core/quick", {"{token}": 1}, {}),
    ("parameter of a wrong type", "POST", "/v1/core/quick", {"name": ["{token}"]}, {}),
    ("malformed body", "POST", "/v1/core/quick", b'{"name": {token}', {}),
    ("tags", "POST", "/v1/core/quick", {"name": "x"}, {"Fleet-Tags": "{token}"}),
    ("idempotency key", "POST", "/v1/core/quick", {"name": "x"}, {"Idempotency-Key": "{token}"}),
    ("priority", "POST", "/v1/core/quick", {"name": "x"}, {"Fleet-Priority": "{token}"}),
    ("deadline", "POST", "/v1/core/quick", {"name": "x"}, {"Fleet-Deadline": "{token}"}),
    ("user agent", "POST", "/v1/core/quick", {"name": "agent"}, {"User-Agent": "curl {token}"}),
    ("another header", "GET", "/v1/jobs", None, {"X-Api-Key": "{token}"}),
    ("host", "GET", "/v1/jobs", None, {"Host": "{token}"}),
    ("cookie", "GET", "/v1/jobs", None, {"Cookie": "fleet_session={token}"}),
    ("basic authentication", "GET", "/v1/jobs", None, {"Authorization": "Basic {token}"}),
    ("event id", "GET", "/v1/jobs/{job}/events", None, {"Last-Event-ID": "{token}"}),
    ("one-time code", "GET", "/signin?code={token}", None, {}),
    ("user of a token", "POST", "/v1/tokens", {"user": "{token}", "scopes": ["read"]}, {}),
    ("tenant of a token", "POST", "/v1/tokens", {"user": "x", "tenant": "{token}", "scopes": ["read"]}, {}),
    ("id of a token", "DELETE", "/v1/tokens/{token}", None, {}),
    ("another agent's upload", "PUT", "/v1/agents/spool/{token}", b"", {}),
]
"""Where people put tokens by mistake: name, method, path, body, headers."""


def test_a_token_is_found_nowhere(fleet: CoreFleet, tmp_path: Path) -> None:
    """In parameters it would be data; from every other place it must not get into any file, log, answer or process."""
    token = create(fleet, ["submit", "read", "admin"])["token"]
    secret = token.encode()
    job_id = fleet.post("core/quick", {"name": "planting"}, wait=20).json()["job_id"]

    def planted(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.replace(b"{token}", secret)
        if isinstance(value, str):
            filled = value.replace("{token}", token).replace("{rest}", token.removeprefix("fleet_"))
            return filled.replace("{job}", job_id)
        if isinstance(value, dict):
            return {planted(name): planted(inner) for name, inner in value.items()}
        return [planted(inner) for inner in value] if isinstance(value, list) else value

    for name, method, path, body, headers in PLANTED:
        for bearer in (fleet.token, token):
            sent = {"Authorization": f"Bearer {bearer}", **planted(headers)}
            answer = fleet.request(method, planted(path), planted(body), headers=sent)
            assert answer.status < 500, (name, answer.status)
            assert secret not in answer.body, (name, answer.body)
            assert not any(token in value for value in answer.headers.values()), name
    for env in ({"FLEET_TOKEN": token},):
        own = {key: value for key, value in os.environ.items() if not key.startswith("FLEET_")}
        for args in (["jobs", "list"], ["jobs", "show", token], ["config", "show"], ["doctor"], ["call", "core.quick"]):
            done = subprocess.run(
                [COMMAND, *args], env={**own, **env, "FLEET_URL": fleet.url}, cwd=tmp_path, capture_output=True, timeout=60,
                check=False,
            )  # fmt: skip
            assert secret not in done.stderr, (args, done.stderr)
            assert secret not in done.stdout, (args, done.stdout)
    found = [
        str(path)
        for path in fleet.data_dir.rglob("*")
        if path.is_file() and path.name not in {"token", "agent.token"} and secret in path.read_bytes()
    ]
    assert not found
    own_tokens = [(fleet.data_dir / name).read_bytes().strip() for name in ("token", "agent.token")]
    for process in fleet.processes():
        for place in ("cmdline", "environ"):
            there = shown(process.pid, place)
            assert not any(one in there for one in (secret, *own_tokens)), (process, place)
    everywhere = b"".join(path.read_bytes() for path in fleet.data_dir.rglob("*.log")) + fleet.logs().encode()
    assert not any(one in everywhere for one in own_tokens)


WITNESS = """
import json, os, pathlib, sys
from dask_fleet import Service

service = Service("witness")

@service.endpoint
def look() -> bool:
    "Look for the token once more, while a job runs."
    return write(f"job-{os.getpid()}")

def write(name: str) -> bool:
    inherited = pathlib.Path("/proc/self/environ").read_text().split(chr(0))
    seen = {"environ": dict(os.environ), "inherited": inherited, "loader": any("loader" in arg for arg in sys.orig_argv)}
    pathlib.Path(os.environ["WITNESSES"], name + ".json").write_text(json.dumps(seen))
    return True

write(f"import-{os.getpid()}")
"""


def test_no_user_code_sees_the_token_that_a_server_or_an_agent_was_given(tmp_path: Path) -> None:
    """Not the loader, which is the first to import, nor workers of the server's agent, nor those of one from elsewhere."""
    token = "fleet_" + "B" * 43
    (seen := tmp_path / "seen").mkdir()
    (tmp_path / "witness.py").write_text(WITNESS)
    fleet = CoreFleet(tmp_path, env={"WITNESSES": str(seen), "FLEET_TOKEN": token, "FLEET_TOKEN_FILE": "/none/of/theirs"})
    fleet._targets = [str(tmp_path / "witness.py")]
    with fleet, remote_agent(fleet, tmp_path / "remote", args=("--name", "far")) as agent:
        fleet.until(lambda: connected(fleet, "far"), "the other agent", timeout_s=40)
        assert fleet.post("witness/look", {}, wait=20).json()["status"] == "succeeded"
        found = [json.loads(path.read_text()) for path in sorted(seen.iterdir())]
        roles = {"loader" if one["loader"] else one["environ"][MARK].partition(":")[0] for one in found}
        assert len(roles) == 3
        assert "loader" in roles
        for one in found:
            assert token not in str(one)
            assert "/none/of/theirs" not in str(one)
        holders = {p.pid for p in fleet.processes() if token.encode() in shown(p.pid, "environ")}
        assert holders <= {fleet.server_pid(), agent.popen.pid}  # what their own shell gave them
        assert token not in fleet.logs()


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
