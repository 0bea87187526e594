"""Certificates by what a handshake makes of them."""

from __future__ import annotations

import pickle
import ssl
import time

import pytest
from distributed.security import Security

from dask_fleet.agent.clusters.authority import Authority, Role
from dask_fleet.agent.clusters.credentials import Credentials
from dask_fleet.agent.clusters.security import MemberSecurity, client_security


def shake_hands(client: Security, server: Security) -> dict[str, bytes | None]:
    """Do a handshake without a network; returns the certificates that each side saw, or raises what broke it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = {
        "client": client.get_connection_args("client")["ssl_context"].wrap_bio(to_client, to_server),
        "server": server.get_listen_args("scheduler")["ssl_context"].wrap_bio(to_server, to_client, server_side=True),
    }
    for _ in range(10):
        for end in ends.values():
            try:
                end.do_handshake()
                end.read(1)
            except ssl.SSLWantReadError:
                continue
    ends["client"].write(b"x")
    assert ends["server"].read(1) == b"x"
    return {name: end.getpeercert(binary_form=True) for name, end in ends.items()}


def member(authority: Authority, role: Role = Role.WORKER, **options: float) -> MemberSecurity:
    return MemberSecurity(authority.issue(role, **options))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("c-1")


def test_members_of_one_cluster_trust_each_other(authority: Authority) -> None:
    for role in Role:
        seen = shake_hands(member(authority, role), member(authority, Role.SCHEDULER))
        assert None not in seen.values()


def test_a_plain_security_for_clients_works_and_can_be_pickled(authority: Authority) -> None:
    security = pickle.loads(pickle.dumps(client_security(authority.issue(Role.CLIENT))))
    shake_hands(security, member(authority, Role.SCHEDULER))


def test_a_member_of_another_cluster_is_refused_by_both_sides(authority: Authority) -> None:
    stranger = Authority("c-1")  # the same name is of no use
    with pytest.raises(ssl.SSLError):
        shake_hands(member(stranger), member(authority))
    with pytest.raises(ssl.SSLError):
        shake_hands(member(authority), member(stranger))


def test_an_expired_certificate_is_refused_by_both_sides(authority: Authority) -> None:
    with pytest.raises(ssl.SSLError, match="expired"):
        shake_hands(member(authority, lifetime_s=-60), member(authority))
    with pytest.raises(ssl.SSLError, match="expired"):
        shake_hands(member(authority), member(authority, lifetime_s=-60))


def test_a_clients_certificate_does_not_pass_for_a_servers(authority: Authority) -> None:
    with pytest.raises(ssl.SSLError, match="purpose"):
        shake_hands(member(authority), member(authority, Role.CLIENT))


def test_without_a_certificate_nobody_gets_in(authority: Authority) -> None:
    class Bare(MemberSecurity):
        def _get_tls_context(self, tls: object, purpose: ssl.Purpose) -> ssl.SSLContext:
            context = ssl.create_default_context(purpose, cadata=authority.ca)
            context.check_hostname = False
            return context

    with pytest.raises(ssl.SSLError):
        shake_hands(Bare(authority.issue(Role.CLIENT)), member(authority))


def test_certificates_live_a_day_at_most_and_never_longer_than_the_authority() -> None:
    short = Authority("c", lifetime_s=3600)
    with pytest.raises(ValueError, match="renew"):
        short.issue(Role.WORKER, lifetime_s=24 * 3600 + 1)
    assert short.issue(Role.WORKER).expires_us <= (time.time() + 3600) * 1e6
    assert Authority("c").issue(Role.WORKER).expires_us <= (time.time() + 24 * 3600) * 1e6


def test_the_key_stays_and_secrets_are_not_shown(authority: Authority) -> None:
    with pytest.raises(TypeError, match="leave"):
        pickle.dumps(authority)
    credentials = authority.issue(Role.WORKER)
    for shown in (repr(authority), repr(credentials), repr(MemberSecurity(credentials))):
        assert "PRIVATE" not in shown


def test_a_renewed_certificate_is_shown_by_contexts_that_are_in_use(authority: Authority) -> None:
    server, client = member(authority, Role.SCHEDULER), member(authority)
    listening = server.get_listen_args("scheduler")["ssl_context"]
    before = shake_hands(client, server)
    server.renew(authority.issue(Role.SCHEDULER))
    client.renew(authority.issue(Role.WORKER))
    after = shake_hands(client, server)
    assert server.get_listen_args("scheduler")["ssl_context"] is listening
    assert not set(before.values()) & set(after.values())


def test_a_renewal_that_does_not_fit_changes_nothing(authority: Authority) -> None:
    security = member(authority)
    before = shake_hands(security, member(authority))["server"]
    with pytest.raises(ValueError, match="authority"):
        security.renew(Authority("c-1").issue(Role.WORKER))
    one, other = authority.issue(Role.WORKER), authority.issue(Role.WORKER)
    with pytest.raises(ssl.SSLError):
        security.renew(Credentials(one.ca, one.certificate, other.key, one.expires_us))
    assert shake_hands(security, member(authority))["server"] == before
