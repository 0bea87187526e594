"""The Host allow-list."""

from __future__ import annotations

import pytest

from dask_fleet.model.errors import BadRequest, HostNotAllowed
from dask_fleet.server.hosts import HostCheck

CHECK = HostCheck(["fleet.example.org"])


def scope(*hosts: bytes) -> dict[str, object]:
    return {"headers": [(b"accept", b"*/*"), *((b"host", host) for host in hosts)]}


@pytest.mark.parametrize(
    "host",
    [
        b"localhost",
        b"localhost:8000",
        b"LOCALHOST:1",
        b"localhost.",
        b"127.0.0.1",
        b"127.0.0.1:65535",
        b"[::1]",
        b"[::1]:8000",
        b"fleet.example.org",
        b"Fleet.Example.org:443",
    ],
)
def test_own_names_pass_with_any_port(host: bytes) -> None:
    assert CHECK.check(scope(host)) == host
    assert CHECK.check(scope(host)) == host  # and again, out of memory


@pytest.mark.parametrize(
    "host",
    [
        b"evil.example",
        b"localhost.evil.example",
        b"xlocalhost",
        b"127.0.0.1.nip.io",
        b"127.0.0.2",
        b"[::2]",
        b"example.org",
        b"a.fleet.example.org",
        b"0.0.0.0",
        b"2130706433",
    ],
)
def test_other_names_are_misdirected(host: bytes) -> None:
    with pytest.raises(HostNotAllowed):
        CHECK.check(scope(host))


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        (b"",),
        (b"localhost", b"localhost"),
        (b"localhost", b"evil.example"),
        (b"localhost:8000:1",),
        (b"localhost:x",),
        (b"localhost/",),
        (b"user@localhost",),
        (b"localhost\r\nx: y",),
        (b"localhost, evil.example",),
        (b"localhost\n",),
        ("löcalhost".encode(),),
    ],
)
def test_missing_repeated_and_malformed_hosts_are_bad_requests(hosts: tuple[bytes, ...]) -> None:
    with pytest.raises(BadRequest):
        CHECK.check(scope(*hosts))


def test_what_passed_is_remembered_within_bounds() -> None:
    check = HostCheck()
    for port in range(1000):
        check.check(scope(b"localhost:%d" % port))
    assert len(check._passed) <= 256
    with pytest.raises(HostNotAllowed):
        check.check(scope(b"evil.example"))
